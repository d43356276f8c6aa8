#!/bin/sh
# make demo: builds the programs and runs the main job once, without root.
set -eu
cd "$(dirname "$0")/../.."
make -s build
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
CGO_ENABLED=0 go build -o "$tmp/demo" ./test/demo
"$tmp/demo" -bin "$PWD/bin" "$@"
