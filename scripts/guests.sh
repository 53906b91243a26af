#!/usr/bin/env bash
# Makes the guests of tests: Debian's cloud kernel, a small root filesystem with Python, an initrd that finds it. All of
# it comes from Debian's packages and, for what impound imports, from PyPI; nothing is installed on this machine, no
# package script runs, no root is needed. What is made stays in .cache/guests until the script or what it needs changes.
#
#   scripts/guests.sh [amd64|arm64]             kernel, root filesystem and initrd
#   scripts/guests.sh [amd64|arm64] --docker    and a disk with Docker, for what runs in it (80 MB to fetch)
#   scripts/guests.sh [amd64|arm64] --symbols   and the kernel with its DWARF (280 MB to fetch), and what dwarf2json makes
#                                               of it: from PATH, .cache/guests or, with `go`, from its own module
#
# Exits 0 when they are there, else 1; then the tests that need them are skipped.
set -euo pipefail
cd -P "$(dirname "$0")/.."
. scripts/environment.sh
export PATH=$PATH:/usr/sbin:/sbin

case "${1:-}" in
  -h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' scripts/guests.sh
    exit 0
    ;;
esac
architecture=amd64
case "${1:-}" in
  amd64 | arm64)
    architecture=$1
    shift
    ;;
esac

MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org}
SUITE=bookworm
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
SITE_PYTHON=3.11 # of the suite
PACKAGES=(
  base-files base-passwd bash busybox-static ca-certificates coreutils grep libc-bin mount procps python3 sed
  util-linux kmod "linux-image-cloud-$architecture"
)
case $architecture in
  amd64) machine=x86_64 console=ttyS0 ;;
  arm64) machine=aarch64 console=ttyAMA0 ;;
esac
TARGET=.cache/guests/$architecture
WORK=

clean() { [ -z "$WORK" ] || rm -rf --one-file-system "$WORK"; }

fail() {
  say "guests: $*; tests with them are skipped"
  exit 1
}

for program in apt-get dpkg-deb mkfs.ext4 cpio busybox; do
  have "$program" || fail "needs $program"
done
[ -r "$KEYRING" ] || fail "needs debian-archive-keyring"

mkdir -p .cache/guests
printf '*\n' >.cache/.gitignore

# An apt of our own: its state, its lists, its architecture. What this machine has installed does not count.
private_apt() {
  apt-get -q -y -o "Dir::State=$PWD/$WORK/apt/state" -o "Dir::Cache=$PWD/$WORK/apt/cache" \
    -o "Dir::State::status=$PWD/$WORK/apt/status" -o "Dir::Etc::SourceList=$PWD/$WORK/apt/sources.list" \
    -o Dir::Etc::SourceParts=/nonexistent -o Dir::Etc::Preferences=/nonexistent \
    -o Dir::Etc::PreferencesParts=/nonexistent -o "APT::Architecture=$architecture" \
    -o "APT::Architectures::=$architecture" -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@" </dev/null
}

make_apt() {
  mkdir -p "$WORK/apt/state/lists/partial" "$WORK/apt/cache/archives/partial"
  : >"$WORK/apt/status"
  cat >"$WORK/apt/sources.list" <<LIST
deb [signed-by=$KEYRING] $MIRROR/debian $SUITE main
deb [signed-by=$KEYRING] $MIRROR/debian-security $SUITE-security main
LIST
  private_apt update >"$WORK/apt.log" 2>&1 || fail "apt-get update: $(tail -n 1 "$WORK/apt.log")"
}

unpack_packages() {
  local package
  # Debian's packages expect the merged /usr, which no package makes.
  mkdir -p "$WORK/root/usr"/{bin,sbin,lib,lib64}
  for package in bin sbin lib lib64; do
    ln -s "usr/$package" "$WORK/root/$package"
  done
  private_apt install --no-install-recommends --download-only "${PACKAGES[@]}" >"$WORK/apt.log" 2>&1 ||
    fail "apt-get install: $(tail -n 1 "$WORK/apt.log")"
  for package in "$WORK"/apt/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink --no-same-owner -C "$WORK/root" \
      --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
  done
}

# What impound imports, for the guest's Python and architecture.
install_modules() {
  local platforms=() requirements platform
  for platform in manylinux2014 manylinux_2_17 manylinux_2_28 manylinux_2_34; do
    platforms+=(--platform "${platform}_$machine")
  done
  mapfile -t requirements < <("$VENV/bin/python" -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["dependencies"]))')
  "$VENV/bin/python" -m pip install --quiet --no-compile --target "$WORK/root/opt/site" "${platforms[@]}" \
    --implementation cp --python-version "$SITE_PYTHON" --only-binary :all: "${requirements[@]}" </dev/null ||
    fail "pip could not fetch what impound imports"
}

# Software emulation makes the compiler slow; the same Python outside writes the same bytecode.
compile_modules() {
  local place
  [ "$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$SITE_PYTHON" ] || return 0
  for place in usr/lib/python3 "usr/lib/python$SITE_PYTHON" opt/site; do
    "$VENV/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$WORK/root" -p / \
      "$WORK/root/$place" >/dev/null 2>&1 || true
  done
}

finish_root() {
  rm -rf "$WORK/root/usr/share/doc" "$WORK/root/usr/share/man" "$WORK/root/usr/share/locale"
  mkdir -p "$WORK/root"/{proc,sys,dev,run,tmp,etc,code,evidence,root}
  [ -e "$WORK/root/usr/bin/sh" ] || ln -s bash "$WORK/root/usr/bin/sh"
  ln -sf /proc/mounts "$WORK/root/etc/mtab"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n' >"$WORK/root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$WORK/root/etc/group"
  printf 'guest\n' >"$WORK/root/etc/hostname"
  printf '127.0.0.1 localhost guest\n' >"$WORK/root/etc/hosts"
  printf '%s\n' 00000000000000000000000000000001 >"$WORK/root/etc/machine-id"
  cat >"$WORK/root/usr/sbin/guest-init" <<'INIT'
#!/bin/sh
# The first process of the guest: mounts, then the agent that the tests speak to (tests/rigs/guest_agent.py).
b=/usr/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t tmpfs tmpfs /run
$b mount -t tmpfs tmpfs /tmp
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b mount -t securityfs securityfs /sys/kernel/security
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts devpts /dev/pts
$b mount -t tmpfs tmpfs /dev/shm
$b hostname guest
$b ip link set lo up
[ ! -b /dev/vdb ] || $b mount -t ext4 -o ro /dev/vdb /code
[ ! -b /dev/vdc ] || $b mount -t ext4 -o noatime /dev/vdc /evidence
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PYTHONPATH=/code:/opt/site
export PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
/usr/bin/python3 /code/guest_agent.py
$b poweroff -f
INIT
  chmod 755 "$WORK/root/usr/sbin/guest-init"
}

# The modules that lead to the root filesystem, each after what it needs (modules.dep names the whole chain).
make_initrd() {
  local release=$1 name path initrd=$WORK/initrd wanted=()
  mkdir -p "$initrd"/{bin,dev,proc,sys,newroot,modules}
  cp "$WORK/root/usr/bin/busybox" "$initrd/bin/busybox"
  for name in virtio_pci virtio_mmio virtio_blk virtio_console virtio_net ext4 crc32c_generic crc32c-generic; do
    path=$(sed -n "s|^\([^:]*/${name}\.ko[^:]*\):.*|\1|p" "$WORK/root/lib/modules/$release/modules.dep")
    [ -n "$path" ] || continue # built in
    while read -r path; do
      [[ " ${wanted[*]-} " == *" $path "* ]] || wanted+=("$path")
    done < <(sed -n "s|^$path: *||p" "$WORK/root/lib/modules/$release/modules.dep" | tr ' ' '\n' | tac | sed '/^$/d'
      printf '%s\n' "$path")
  done
  : >"$initrd/modules/order"
  for path in "${wanted[@]}"; do
    cp "$WORK/root/lib/modules/$release/$path" "$initrd/modules/"
    printf '%s\n' "${path##*/}" >>"$initrd/modules/order"
  done
  cat >"$initrd/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
$b mount -t proc proc /proc
while read -r module; do
  $b insmod "/modules/$module"
done </modules/order
tries=0
while [ ! -b /dev/vda ] && [ "$tries" -lt 300 ]; do
  $b sleep 0.1
  tries=$((tries + 1))
done
$b mount -t ext4 -o ro /dev/vda /newroot || $b poweroff -f
$b mount --move /dev /newroot/dev
$b umount /proc
exec $b switch_root /newroot /usr/sbin/guest-init
INIT
  chmod 755 "$initrd/init"
  (cd "$initrd" && find . | cpio --quiet -o -H newc -R 0:0) | gzip -1 >"$WORK/out/initrd.gz"
}

make_guest() {
  local release
  make_apt
  unpack_packages
  install_modules
  finish_root
  compile_modules
  for release in "$WORK"/root/lib/modules/*; do
    release=${release##*/}
  done
  busybox depmod -b "$WORK/root" "$release" || fail "depmod failed"
  mkdir -p "$WORK/out"
  make_initrd "$release"
  cp "$WORK/root/boot/vmlinuz-$release" "$WORK/out/vmlinuz"
  printf '%s\n' "$release" >"$WORK/out/release"
  printf '%s\n' "$console" >"$WORK/out/console"
  truncate -s 1G "$WORK/out/root.img"
  mkfs.ext4 -q -F -L root -m 0 -E root_owner=0:0 -O '^has_journal' -d "$WORK/root" "$WORK/out/root.img" ||
    fail "mkfs.ext4 failed"
}

wanted() { { cat scripts/guests.sh && sed -n '/^dependencies = \[/,/^\]/p' pyproject.toml; } | sha256sum; }

if [ ! -e "$TARGET/made" ] || [ "$(cat "$TARGET/made")" != "$(wanted)" ]; then
  make_environment runtime
  say "making the guest for $architecture in $TARGET (Debian's packages; about 100 MB to fetch)"
  WORK=$(mktemp -d ".cache/guests/making.XXXXXX")
  make_guest
  wanted >"$WORK/out/made"
  rm -rf "$TARGET"
  mv "$WORK/out" "$TARGET"
  clean
  WORK=
fi

# Docker as Debian has it, to be mounted anywhere: nothing of it is configured, and what it needs is beside it.
make_docker_disk() {
  WORK=$(mktemp -d ".cache/guests/making.XXXXXX")
  make_apt
  say "making a disk with Docker for the guest of $architecture"
  PACKAGES=(docker.io containerd runc libdevmapper1.02.1 libsystemd0 libseccomp2)
  unpack_packages
  rm -rf "$WORK/root/usr/share" "$WORK/root/boot"
  truncate -s 1G "$WORK/docker.img"
  mkfs.ext4 -q -F -L docker -m 0 -E root_owner=0:0 -O '^has_journal' -d "$WORK/root" "$WORK/docker.img" ||
    fail "mkfs.ext4 failed"
  mv "$WORK/docker.img" "$TARGET/docker.img"
  clean
  WORK=
}

if [ "${1:-}" = --docker ]; then
  [ -e "$TARGET/docker.img" ] || make_docker_disk
  exit 0
fi
[ "${1:-}" = --symbols ] || exit 0

# The kernel with its DWARF, of the very version that the guest runs.
fetch_symbols() {
  WORK=$(mktemp -d ".cache/guests/making.XXXXXX")
  make_apt
  say "fetching the kernel's DWARF for $release (280 MB)"
  private_apt install --no-install-recommends --download-only "linux-image-$release-dbg" >"$WORK/apt.log" 2>&1 ||
    fail "apt-get: $(tail -n 1 "$WORK/apt.log")"
  dpkg-deb --fsys-tarfile "$WORK"/apt/cache/archives/linux-image-*-dbg_*.deb |
    tar -x -O "./usr/lib/debug/boot/vmlinux-$release" >"$WORK/vmlinux"
  mv "$WORK/vmlinux" ".cache/guests/vmlinux-$release"
  clean
  WORK=
}

find_dwarf2json() {
  if have dwarf2json; then
    command -v dwarf2json
    return
  fi
  [ -x .cache/guests/dwarf2json ] || ! have go ||
    GOBIN=$PWD/.cache/guests go install github.com/volatilityfoundation/dwarf2json@latest >/dev/null 2>&1 || true
  [ ! -x .cache/guests/dwarf2json ] || printf '%s\n' .cache/guests/dwarf2json
}

release=$(cat "$TARGET/release")
[ -e ".cache/guests/vmlinux-$release" ] || fetch_symbols
if [ ! -e ".cache/guests/$release.json" ]; then
  dwarf2json=$(find_dwarf2json)
  [ -n "$dwarf2json" ] || fail "needs dwarf2json"
  say "making Volatility's symbols of $release from its DWARF"
  "$dwarf2json" linux --elf ".cache/guests/vmlinux-$release" >".cache/guests/$release.json.part" ||
    fail "dwarf2json failed"
  mv ".cache/guests/$release.json.part" ".cache/guests/$release.json"
fi
