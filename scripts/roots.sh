#!/usr/bin/env bash
# Root filesystems in which the single file is tried: made below .cache/roots, once. Needs root, debootstrap, dpkg-deb.
#
#   bookworm    Debian 12                       bullseye    Debian 11, glibc 2.31
#   rpm         as Amazon Linux lays it out: /usr/lib64, nsswitch.conf with modules; the libraries are Debian 11's
#   musl        musl and busybox                distroless  a C library, certificates and time zones, no shell
#
# Ends with 1 where one of them could not be made.
set -euo pipefail
cd -P "$(dirname "$0")/.."
. scripts/environment.sh

roots=.cache/roots
mirror=${DEBIAN_MIRROR:-http://deb.debian.org}/debian
mkdir -p "$roots"

unpack() { # target, package …
  local target=$1 package
  shift
  mkdir -p "$target"
  for package in "$@"; do
    (cd "$roots/debs" && apt-get download -qq "$package" >/dev/null)
    dpkg-deb --extract "$roots"/debs/"$package"_*.deb "$target"
  done
}

make_bookworm() { debootstrap --variant=minbase --foreign bookworm "$1" "$mirror" >/dev/null; }
make_bullseye() { debootstrap --variant=minbase --foreign bullseye "$1" "$mirror" >/dev/null; }

make_rpm() {
  local library=usr/lib64
  mkdir -p "$1/$library" "$1/usr/lib" "$1/etc/ssl" "$1/tmp" "$1/usr/bin" "$1/dev/shm" "$1/run"
  ln -s usr/lib64 "$1/lib64"
  ln -s usr/lib "$1/lib"
  ln -s usr/bin "$1/bin"
  cp -a "$roots"/bullseye/lib/x86_64-linux-gnu/. "$roots"/bullseye/usr/lib/x86_64-linux-gnu/. "$1/$library/"
  cp -a "$roots"/bullseye/bin/. "$1/usr/bin/"
  echo 'Amazon Linux release 2 (Karoo)' >"$1/etc/system-release"
  printf 'passwd: sss files systemd\ngroup: sss files systemd\nhosts: files dns myhostname\n' >"$1/etc/nsswitch.conf"
}

make_musl() {
  unpack "$1" musl busybox-static
  mkdir -p "$1/etc" "$1/tmp" "$1/dev"
}

make_distroless() {
  unpack "$1" libc6 tzdata netbase ca-certificates
  mkdir -p "$1/etc" "$1/tmp" "$1/dev"
}

is_root || {
  say "root filesystems are made by root only"
  exit 1
}
have debootstrap || install_packages debootstrap
rm -rf "$roots/debs"
mkdir -p "$roots/debs"
failed=0
for name in bookworm bullseye rpm musl distroless; do
  [ -d "$roots/$name" ] && continue
  rm -rf "$roots/$name.new"
  say "making the root filesystem $name"
  if "make_$name" "$roots/$name.new"; then
    mv "$roots/$name.new" "$roots/$name"
  else
    say "$name could not be made"
    failed=1
  fi
done
rm -rf "$roots/debs"
exit "$failed"
