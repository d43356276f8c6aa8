#!/bin/sh
# Installs what `make build` has made and what is shipped with it, or removes it again.
# One table says what goes where, so that both do the same.
#
# usage: etc/install.sh install|uninstall, from the top of the tree, with
#   PROGRAMS  names of the programs in bin/
#   PREFIX    where to, /usr/local or /usr
#   DESTDIR   a directory in place of /, or nothing
set -eu

: "${PROGRAMS:?}" "${PREFIX:?}" "${DESTDIR=}"
share=$PREFIX/share
systemd=$PREFIX/lib

# table prints for each file: how, source or target of a link, destination.
table() {
	for program in $PROGRAMS; do
		echo "program bin/$program $PREFIX/bin/$program"
	done
	echo "link ssh-broker $PREFIX/bin/ssh-broker-g3"
	echo "link ssh-broker.1 $share/man/man1/ssh-broker-g3.1"
	for page in docs/man/*.[158]; do
		echo "file $page $share/man/man${page##*.}/${page##*/}"
	done
	for unit in etc/systemd/*.service etc/systemd/*.socket; do
		echo "unit $unit $systemd/systemd/system/${unit##*/}"
	done
	for unit in etc/systemd/user/*; do
		echo "unit $unit $systemd/systemd/user/${unit##*/}"
	done
	for file in etc/sysusers.d/* etc/tmpfiles.d/*; do
		echo "file $file $systemd/${file#etc/}"
	done
	for file in README.md CHANGELOG.md LICENSE docs/*.md; do
		echo "file $file $share/doc/ssh-broker/${file##*/}"
	done
	for file in etc/*.xml etc/*.dtd etc/*.yaml etc/grafana/*.json; do
		echo "file $file $share/doc/ssh-broker/$file"
	done
	for file in etc/apparmor.d/*; do
		echo "file $file $share/ssh-broker/${file#etc/}"
	done
	for file in etc/completions/*.bash; do
		name=${file##*/}
		echo "file $file $share/bash-completion/completions/${name%.bash}"
	done
	for file in etc/completions/_*; do
		echo "file $file $share/zsh/site-functions/${file##*/}"
	done
	for file in etc/completions/*.fish; do
		echo "file $file $share/fish/vendor_completions.d/${file##*/}"
	done
}

put() {
	how=$1 source=$2 to=$DESTDIR$3
	mkdir -p "${to%/*}"
	case $how in
	program) install -m 755 "$source" "$to" ;;
	link) ln -sf "$source" "$to" ;;
	file) install -m 644 "$source" "$to" ;;
	unit)
		sed "s|=/usr/local/bin/|=$PREFIX/bin/|" "$source" >"$to"
		chmod 644 "$to"
		;;
	esac
}

# prune removes the directories of a file that are empty now, below those that every
# host has, such as $PREFIX/bin and $PREFIX/share.
prune() {
	dir=${1%/*}
	while [ "${dir#"$PREFIX"/*/}" != "$dir" ] && rmdir "$DESTDIR$dir" 2>/dev/null; do
		dir=${dir%/*}
	done
}

case ${1-} in
install | uninstall) ;;
*)
	echo "usage: etc/install.sh install|uninstall" >&2
	exit 2
	;;
esac
umask 022
table | while read -r how source to; do
	case $source in *'*'*) continue ;; esac # a pattern that nothing matches
	if [ "$1" = install ]; then
		put "$how" "$source" "$to"
	else
		rm -f "$DESTDIR$to"
		prune "$to"
	fi
done
