#!/bin/sh
# Puts the one file of impound into a machine image, and fails when it is not the one that was pinned or does not run.
#
#   install.sh SHA256 [URL|FILE]     into /opt/impound/bin/impound; without URL or FILE it only checks what is there
#
# Packer and SSM Distributor run it as it stands; where a file cannot lie beside what is run (EC2 Image Builder, cloud-init,
# Dockerfiles), the same steps are written out. It needs sh, sha256sum, and curl for a URL.
# Nothing else on the system changes: no service, no PATH, no user.
set -eu
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
place=/opt/impound/bin/impound

fail() {
  echo "impound: $1" >&2
  exit 1
}

case $# in
  1 | 2) ;;
  *) fail "usage: install.sh SHA256 [URL|FILE]" ;;
esac
case $1 in
  *[!0-9a-f]*) fail "the SHA-256 is 64 lower-case hexadecimal digits" ;;
esac
[ ${#1} -eq 64 ] || fail "the SHA-256 is 64 lower-case hexadecimal digits"

is_pinned() {
  sum=$(sha256sum "$1") && [ "${sum%% *}" = "$2" ]
}

if [ $# -eq 2 ]; then
  mkdir -p "${place%/*}"
  new=$(mktemp "$place.XXXXXXXX")
  trap 'rm -f "$new"' EXIT
  case $2 in
    https://*)
      curl --disable --fail --silent --show-error --location --proto =https --proto-redir =https --max-time 600 --output "$new" \
        "$2" || fail "$2 cannot be fetched"
      ;;
    *) cat <"$2" >"$new" || fail "$2 cannot be read" ;;
  esac
  is_pinned "$new" "$1" || fail "$2 is not the file that was pinned"
  chmod 755 "$new"
  mv "$new" "$place"
fi

is_pinned "$place" "$1" || fail "$place is not the file that was pinned"
"$place" self-check >/dev/null || fail "$place does not run here as it should: $place self-check says why"
echo "impound: $("$place" --version) is in place: $place"
