#!/bin/bash
# Boots the Debian tree in ROOT with its own systemd as PID 1. To be run in namespaces
# for mounts, processes, cgroups, IPC and the host name, made for it, and in the network
# namespace of the machine that it is to be:
#   unshare --pid --fork --kill-child --mount --uts --ipc --cgroup boot.sh ROOT
#
# Nothing of this host is shared with it: device nodes are new ones (a getty changes
# owner and mode of its terminal), /sys and /proc/sys are read-only but for the network's,
# and modules, clock and raw devices are out of reach.
set -eu

root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
while read -r name minor; do
	mknod -m 666 "dev/$name" c 1 "$minor"
done <<-END
	null 3
	console 3
	kmsg 3
	zero 5
	full 7
	random 8
	urandom 9
END
mknod -m 666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

# What has nothing to do here, or looks at hardware.
for unit in console-getty.service getty@.service systemd-modules-load.service modprobe@.service systemd-udevd.service \
	sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount dev-hugepages.mount \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer man-db.timer \
	ssh.service ssh.socket; do
	ln -sf /dev/null "etc/systemd/system/$unit"
done

pivot_root . mnt
umount -l mnt
mount --make-rshared / # in a container systemd leaves that to others, and credentials need it
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-syslog,-mac_admin,-audit_control,-perfmon \
	/lib/systemd/systemd --log-target=journal --show-status=no </dev/null >/dev/null 2>&1
