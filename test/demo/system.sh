#!/bin/sh
# make demo-system: rules for a whole host with three users, shown on this machine. Needs root.
set -eu
cd "$(dirname "$0")/../.."
if [ "$(id -u)" != 0 ]; then
	echo "demo-system: needs root, for network namespaces and ssh-captured: sudo make demo-system" >&2
	echo "demo-system: make demo needs none" >&2
	exit 1
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM HUP
make -s build
cp bin/* "$tmp"
CGO_ENABLED=0 go build -o "$tmp" ./test/demo/system ./test/programs/testprog
chmod 755 "$tmp" # its users run these
trap - EXIT INT TERM HUP
exec "$tmp/system" -dir "$tmp" -remove
