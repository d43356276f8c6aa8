#!/bin/bash
# Builds Debian packages of what `make build` has made: ssh-broker, and ssh-gateway
# where there is that program. The same sources give the same bytes, wherever and
# whenever it is done.
#
# usage: etc/deb/build.sh OUTDIR, from the top of the tree, with
#   PROGRAMS           names of the programs in bin/
#   VERSION            as git describes it
#   SOURCE_DATE_EPOCH  seconds; the time of the last commit if it is not given
#   MAINTAINER         who answers for the package: NAME <ADDRESS>
set -eu -o pipefail

out=${1:?usage: etc/deb/build.sh OUTDIR}
: "${PROGRAMS:?}" "${VERSION:?}"
here=etc/deb
export LC_ALL=C TZ=UTC
umask 022

if [ -z "${SOURCE_DATE_EPOCH-}" ] && ! SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null); then
	echo "$0: not a git repository: set SOURCE_DATE_EPOCH to the time of the release" >&2
	exit 1
fi
export SOURCE_DATE_EPOCH

# debian_version makes a version of Debian's of one of git's: v1.2.3-4-gabc is
# 1.2.3+4.gabc; a commit without a tag comes before every release, by its time.
debian_version() {
	local version=${1#v} dirty=
	case $version in *-dirty) version=${version%-dirty} dirty=+dirty ;; esac
	case $version in
	[0-9]*.*) version=${version//-/+} ;;
	*) version=0~git$(date -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$version ;;
	esac
	echo "$version$dirty"
}
version=$(debian_version "$VERSION")
maintainer=${MAINTAINER:-ssh-broker maintainers <ssh-broker@localhost.localdomain>}
case $(go env GOARCH) in
386) arch=i386 ;;
arm) arch=armhf ;;
ppc64le) arch=ppc64el ;;
*) arch=$(go env GOARCH) ;;
esac

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"

# licences prints those of the modules that are linked into programs, and of Go.
licences() {
	local path version dir file
	# shellcheck disable=SC2086 # they are words
	printf './cmd/%s\n' $PROGRAMS |
		xargs go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' | sort -u |
		while read -r path version dir; do
		for file in "$dir"/LICENSE* "$dir"/COPYING* "$dir"/NOTICE* "$dir"/PATENTS*; do
			if [ -f "$file" ]; then
				printf '==== %s %s: %s\n\n' "$path" "$version" "${file##*/}"
				cat "$file"
				echo
			fi
		done
	done
	printf '==== Go %s: LICENSE\n\n' "$(go env GOVERSION)"
	cat "$(go env GOROOT)/LICENSE"
}

# take moves what belongs to a package out of the installation, documents aside.
take() {
	local root=$stage/$1 pattern=$2 file
	while read -r file; do
		mkdir -p "$root/${file%/*}"
		mv "$stage/all/$file" "$root/$file"
	done < <(cd "$stage/all" && find . \( -type f -o -type l \) -path "$pattern" -printf '%P\n')
}

# arrange brings documents and pages to where Debian has them.
arrange() {
	local package=$1 root=$stage/$1 doc page
	doc=$root/usr/share/doc
	if [ "$package" != ssh-broker ] && [ -d "$doc/ssh-broker" ]; then
		mv "$doc/ssh-broker" "$doc/$package"
	fi
	doc=$doc/$package
	mkdir -p "$doc"
	if [ -d "$doc/etc" ]; then
		mv "$doc/etc" "$doc/examples"
	fi
	rm -f "$doc/LICENSE" # copyright tells where it is
	if [ -d "$root/usr/share/zsh" ]; then
		mv "$root/usr/share/zsh/site-functions" "$root/usr/share/zsh/vendor-completions"
	fi
	cp "$here/copyright" "$doc/copyright"
	licences >"$doc/third-party-licences"
	printf '%s (%s) unstable; urgency=medium\n\n  * Built from %s; CHANGELOG.md of ssh-broker tells what is new.\n\n -- %s  %s\n' \
		"$package" "$version" "$VERSION" "$maintainer" "$(date -R -d "@$SOURCE_DATE_EPOCH")" >"$doc/changelog"
	gzip -9n "$doc/changelog" "$doc/third-party-licences"
	if [ -f "$doc/CHANGELOG.md" ]; then
		gzip -9n "$doc/CHANGELOG.md"
	fi
	for page in "$root"/usr/share/man/man*/*; do
		if [ -L "$page" ]; then
			ln -s "$(readlink "$page").gz" "$page.gz"
			rm "$page"
		elif [ -f "$page" ]; then
			gzip -9n "$page"
		fi
	done
	if [ -f "$here/$package.lintian-overrides" ]; then
		install -D -m 644 "$here/$package.lintian-overrides" "$root/usr/share/lintian/overrides/$package"
	fi
}

# pack makes the package of its tree.
pack() {
	local package=$1 root=$stage/$1 size script
	find "$root" -depth -type d -empty -delete
	size=$(find "$root" -type f -printf '%s\n' | awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')
	mkdir "$root/DEBIAN"
	sed "s|@VERSION@|$version|; s|@ARCHITECTURE@|$arch|; s|@SIZE@|$size|; s|@MAINTAINER@|$maintainer|" "$here/$package.control" >"$root/DEBIAN/control"
	for script in postinst prerm postrm; do
		install -m 755 "$here/$package.$script" "$root/DEBIAN/$script"
	done
	(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
	find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	mkdir -p "$out"
	# One thread: how many there are is not to show in the bytes.
	dpkg-deb --root-owner-group -Zxz --threads-max=1 --build "$root" "$out/${package}_${version}_$arch.deb"
}

DESTDIR=$stage/all PREFIX=/usr etc/install.sh install
packages=ssh-broker
case " $PROGRAMS " in
*" ssh-gateway "*)
	packages="$packages ssh-gateway"
	take ssh-gateway '*ssh-gateway*'
	;;
*) find "$stage/all" -path '*ssh-gateway*' -delete ;; # its example comes with its program
esac
take ssh-broker '*'
for package in $packages; do
	arrange "$package"
	pack "$package"
done
