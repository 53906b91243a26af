# shellcheck shell=bash
# Shared by scripts/test and scripts/demo, which source it: finds a Python, makes .venv, installs into it.
# Works in the checkout only; the one thing outside that it may touch is a package of the distribution, when root.

unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
VENV=.venv

say() { printf '%s\n' "$*"; }
die() {
  printf '%s: %s\n' "scripts/${0##*/}" "$*" >&2
  exit 2
}
is_root() { [ "$(id -u)" -eq 0 ]; }
have() { command -v "$1" >/dev/null 2>&1; }
distribution() { (. /etc/os-release 2>/dev/null && printf '%s %s' "${ID:-unknown}" "${VERSION_ID:-}") || printf 'unknown'; }

# Whatever ends the script: what it started or put somewhere is taken away again. `clean` is the script's own.
clean() { :; }
trap 'status=$?; trap - EXIT; trap "" INT TERM HUP; clean; allow_services; exit "$status"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# -- packages of the distribution -------------------------------------------------------------------------------------

UNDO_POLICY=
allow_services() { [ -z "$UNDO_POLICY" ] || { rm -f "$UNDO_POLICY" && UNDO_POLICY=; }; }

# A package that brings a service starts it, unless /usr/sbin/policy-rc.d says no (Debian Policy 9.3.3.1).
forbid_services() {
  [ ! -e /usr/sbin/policy-rc.d ] && [ -d /usr/sbin ] || return 0
  UNDO_POLICY=/usr/sbin/policy-rc.d
  printf '#!/bin/sh\nexit 101\n' >"$UNDO_POLICY" && chmod 755 "$UNDO_POLICY"
}

apt_quiet() {
  DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -q -y -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 "$@" </dev/null
}

APT_READY=
apt_knows() {
  if [ -z "$APT_READY" ]; then
    apt_quiet update >/dev/null || say "  apt-get update failed; going on with what is known"
    APT_READY=1
  fi
  apt-cache show "$1" >/dev/null 2>&1
}

# Installs packages by their names here; those that the distribution does not have are left out. Asks nothing, starts
# no service. Returns non-zero when something could not be installed.
install_packages() {
  local package known=() status=0 docker_was_there=
  have dockerd && docker_was_there=1
  if have apt-get; then
    for package in "$@"; do
      apt_knows "$package" && known+=("$package")
    done
    [ "${#known[@]}" -eq 0 ] && return 1
    say "  installing as root: ${known[*]} (apt-get)"
    forbid_services
    apt_quiet install --no-install-recommends "${known[@]}" >/dev/null || status=1
    allow_services
  elif have dnf; then
    say "  installing as root: $* (dnf; what it does not have is left out)"
    dnf -q -y --setopt=strict=False --setopt=install_weak_deps=False install "$@" </dev/null >/dev/null || status=1
  else
    say "  there is neither apt-get nor dnf here to install: $*"
    return 1
  fi
  # What has just been installed is not to run, now or after the next boot: tests and demo start their own daemon.
  if [ -z "$docker_was_there" ] && have dockerd && have systemctl; then
    say "  docker is installed; its service is neither started nor enabled"
    systemctl disable docker.service docker.socket containerd.service >/dev/null 2>&1 || true
    if [ -d /run/systemd/system ]; then
      systemctl stop docker.socket docker.service containerd.service >/dev/null 2>&1 || true
    fi
  fi
  return "$status"
}

# -- Python -----------------------------------------------------------------------------------------------------------

python_is_new() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14; do
    if have "$candidate" && python_is_new "$candidate"; then
      FOUND_PYTHON=$candidate
      return
    fi
  done
  case "$(distribution)" in
    "ubuntu 22.04") die "there is no Python 3.11 or newer: apt-get install python3.11 python3.11-venv" ;;
    debian* | ubuntu*) die "there is no Python 3.11 or newer: apt-get install python3 python3-venv" ;;
    amzn* | fedora* | rhel* | centos* | rocky* | almalinux*) die "there is no Python 3.11 or newer: dnf install python3.11" ;;
    *) die "there is no Python 3.11 or newer: install the package of this distribution, or name one with PYTHON=" ;;
  esac
}

can_make_venv() { "$1" -c 'import venv, ensurepip' </dev/null >/dev/null 2>&1; }

require_venv_module() {
  can_make_venv "$FOUND_PYTHON" && return
  local package=${FOUND_PYTHON##*/}-venv
  if have apt-get; then
    if is_root; then
      install_packages "$package" || true
      can_make_venv "$FOUND_PYTHON" && return
    fi
    die "$FOUND_PYTHON cannot make a virtual environment: apt-get install $package"
  fi
  have dnf && die "$FOUND_PYTHON cannot make a virtual environment: dnf install python3.11"
  die "$FOUND_PYTHON cannot make a virtual environment: install what brings its modules venv and ensurepip"
}

# What .venv was made from: the place of the checkout (an editable install names it), Python, and what was asked for.
stamp() { printf '%s\n%s\n%s\n' "$PWD" "$("$VENV/bin/python" -V 2>&1)" "$(sha256sum <pyproject.toml)"; }

venv_is_sound() {
  [ -x "$VENV/bin/python" ] &&
    "$VENV/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11) or sys.prefix == sys.base_prefix)' \
      </dev/null >/dev/null 2>&1 &&
    { [ ! -e "$VENV/installed" ] || [ "$(head -n 1 "$VENV/installed")" = "$PWD" ]; }
}

# make_environment runtime|dev: .venv with the project and what it needs, and with `dev` also what its tests need.
make_environment() {
  local level=$1 groups=()
  if ! venv_is_sound; then
    find_python
    require_venv_module
    if [ -e "$VENV" ] || [ -L "$VENV" ]; then
      say "making $VENV anew with $("$FOUND_PYTHON" -V 2>&1): the one that is there does not work here"
      rm -rf "$VENV"
    else
      say "making $VENV with $("$FOUND_PYTHON" -V 2>&1)"
    fi
    "$FOUND_PYTHON" -m venv "$VENV" </dev/null || die "$FOUND_PYTHON could not make $VENV"
  fi
  if [ -e "$VENV/installed" ]; then
    case "$(cat "$VENV/installed")" in
      "$(stamp)"$'\n'dev | "$(stamp)"$'\n'"$level") return ;;
    esac
  fi
  if [ "$level" = dev ]; then
    # `pip install --group` needs pip 25.1; what a fresh machine has may be older.
    mapfile -t groups < <("$VENV/bin/python" -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["dependency-groups"]["dev"]))')
    [ "${#groups[@]}" -gt 0 ] || die "pyproject.toml names no dependency group dev"
  fi
  say "installing impound and what it needs${groups:+, and what its tests need,} into $VENV (pip)"
  rm -f "$VENV/installed"
  # Editable: nothing is built into the checkout, and what is tested is what lies there.
  "$VENV/bin/python" -m pip install --quiet --editable . ${groups[@]+"${groups[@]}"} </dev/null ||
    die "pip could not install; its last lines say why (without a network, PIP_INDEX_URL or PIP_FIND_LINKS name another source)"
  { stamp && printf '%s\n' "$level"; } >"$VENV/installed"
}
