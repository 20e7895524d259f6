#!/bin/sh
# A root file system from Debian packages, for machines that reach a Debian mirror but no container registry.
# usage: make.sh ROOT.TAR     DEBIAN_MIRROR=URL chooses another mirror, or a snapshot of one, which pins every package.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
root=$(mktemp -d)
inside() { chroot "$root" "$@"; }
finish() {
  for place in proc dev; do ! mountpoint -q "$root/$place" || umount "$root/$place"; done
  rm -rf --one-file-system "$root"
}
trap finish EXIT
trap 'exit 1' INT TERM

debootstrap --variant=minbase --include=ca-certificates bookworm "$root" ${DEBIAN_MIRROR:-} >&2

# Documents, manual pages and translations are half of a small image; packages installed later leave them out too.
cat > "$root/etc/dpkg/dpkg.cfg.d/spira" <<-END
	path-exclude /usr/share/doc/*
	path-include /usr/share/doc/*/copyright
	path-exclude /usr/share/man/*
	path-exclude /usr/share/info/*
	path-exclude /usr/share/locale/*
END
cat > "$root/etc/apt/apt.conf.d/90spira" <<-END
	APT::Install-Recommends "false";
	Acquire::Languages "none";
END
# debootstrap takes packages of the release as it came out; what was mended since is in two more suites.
mirror=$(awk '$1 == "deb" { print $2; exit }' "$root/etc/apt/sources.list")
cat > "$root/etc/apt/sources.list" <<-END
	deb $mirror bookworm main
	deb $mirror bookworm-updates main
	deb ${mirror%/debian*}/debian-security${mirror#*/debian} bookworm-security main
END
# The host's way out: its resolver, its apt proxy (http_proxy is in the environment), its trust.
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
if [ -n "${CA_BUNDLE:-}" ]; then
  cp "$CA_BUNDLE" "$root/ca.pem"
  echo 'Acquire::https::CAInfo "/ca.pem";' > "$root/etc/apt/apt.conf.d/99ca"
fi
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
inside apt-get -q update >&2
inside apt-get -qy dist-upgrade >&2
inside apt-get -qy install python3.11 python3.11-venv >&2
umount "$root/proc" "$root/dev"

rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old "$root"/var/log/* \
  "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/* "$root"/tmp/* \
  "$root"/ca.pem "$root"/etc/apt/apt.conf.d/99ca "$root"/etc/resolv.conf "$root"/etc/machine-id \
  "$root"/usr/sbin/policy-rc.d
find "$root/usr/share/doc" -not -name copyright -not -type d -delete
find "$root/usr/share/doc" -type d -empty -delete
mkdir -p "$root/usr/share/man/man1"  # packages with alternatives (Java) put links there and fail without it
tar -C "$root" --numeric-owner --sort=name -cf "$1" .
