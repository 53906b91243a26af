#!/usr/bin/env bash
# Installs the S3 server of tests that comes from PyPI: LocalStack, pinned, into an environment of its own. It needs
# Python 3.11 or 3.12. Exits 0 when it is there, else 1; then the tests that need it are skipped.
#
#   scripts/s3-servers.sh
set -euo pipefail
cd -P "$(dirname "$0")/.."
. scripts/environment.sh

TARGET=.venv-localstack
# The base runtime, what S3 and CloudFormation import beyond it, and pins where newer ones break 4.4.0.
PACKAGES=(
  "localstack-core[base-runtime]==4.4.0"
  "moto-ext"
  "cbor2<5.8"
  "pyopenssl==24.2.1"
  "cryptography<44"
  "service_identity<24.2"
  "aws-sam-translator"
  "jsonpatch"
)

wanted() { printf '%s\n%s\n' "$PWD" "${PACKAGES[*]}"; }

if [ -e "$TARGET/installed" ] && [ "$(cat "$TARGET/installed")" = "$(wanted)" ] && "$TARGET/bin/python" -c ''; then
  exit 0
fi
for candidate in python3.11 python3.12 python3; do
  if have "$candidate" && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' \
    </dev/null >/dev/null 2>&1 && can_make_venv "$candidate"; then
    python=$candidate
    break
  fi
done
if [ -z "${python:-}" ]; then
  say "LocalStack needs Python 3.11 or 3.12; tests with it are skipped"
  exit 1
fi
say "installing LocalStack 4.4.0 into $TARGET (pip)"
rm -rf "$TARGET"
if "$python" -m venv "$TARGET" </dev/null &&
  "$TARGET/bin/python" -m pip install --quiet "${PACKAGES[@]}" </dev/null &&
  "$TARGET/bin/python" -c 'import localstack.runtime.main' </dev/null >/dev/null 2>&1; then
  wanted >"$TARGET/installed"
else
  say "pip could not install LocalStack; tests with it are skipped"
  rm -rf "$TARGET"
  exit 1
fi
