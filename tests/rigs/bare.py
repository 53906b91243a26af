"""The one file on machines that have nothing, or something evil: roots to run in, and a network of their own.

    unshare --net --mount python -m tests.rigs.bare DIRECTORY BINARY < cases.json > results.jsonl

DIRECTORY holds what is needed meanwhile. In the network there are a name server at 127.0.0.1:53, which knows
`s3.test`, and an S3 server of that name, over TLS 1.3. Each case, `{"name", "root", "conditions"}`, is a root
filesystem (empty: nothing at all) under an overlay that goes with it, and in it three commands: `self-check`, `acquire`
to `s3://…` by that name, and out here `verify` of what came of it. A result is `{"name", "steps": [[code, out, err]]}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.rigs.strict_s3 import StrictS3
from tests.support.runs import ENVIRONMENT, agent_command

BUCKET = "evidence"
Step = tuple[int, str, str]
"""Exit code, output, errors."""
EVIL = """
#include <unistd.h>
__attribute__((constructor)) static void evil(void) { write(2, "EVIL WAS LOADED\\n", 16); _exit(66); }
int bind_engine(void) { return 0; }
"""
SET_UP = r"""
set -e
mount --make-rprivate /
mount -t tmpfs none "$WORK"
mkdir "$WORK/upper" "$WORK/work" "$WORK/root" "$WORK/none"
mount -t overlay -o "lowerdir=${LOWER:-$WORK/none},upperdir=$WORK/upper,workdir=$WORK/work" none "$WORK/root"
cd "$WORK/root"
[ ! -L proc ] || rm proc
mkdir -p proc etc
touch impound
mount --bind "$BINARY" impound
mount -t proc proc proc
rm -f etc/resolv.conf
echo 'nameserver 127.0.0.1' > etc/resolv.conf
cp "$CA" ca.pem
chmod 644 ca.pem etc/resolv.conf
"""
CONDITIONS = {
    "plain": "",
    "nobody": "WHO=--userspec=65534:65534",
    "noexec-tmp": "mkdir -p tmp; mount -t tmpfs -o noexec,mode=1777 none tmp",
    "no-directories": "rm -rf tmp var/tmp dev run",
    "devices-without-pts": "mkdir -p dev; mount -t tmpfs none dev; mknod -m 666 dev/null c 1 3",
    "no-memfd": 'FILTER="$PYTHON -m tests.rigs.seccomp no-memfd"',
    "old-seccomp": 'FILTER="$PYTHON -m tests.rigs.seccomp old"',
    "memfd-noexec": "echo 2 > /proc/sys/vm/memfd_noexec",
    "preload": 'cp "$EVIL" evil.so; echo /evil.so > etc/ld.so.preload',
    "environment": 'cp "$EVIL" evil.so; GIVEN="LD_PRELOAD=/evil.so LD_AUDIT=/evil.so LD_LIBRARY_PATH=/ PYTHONPATH=/ '
    'PYTHONHOME=/ PYTHONINSPECT=1 OPENSSL_CONF=/etc/ssl/openssl.cnf SSL_CERT_FILE=/nowhere GLIBC_TUNABLES=x=y"',
    "openssl": 'cp "$EVIL" evil.so; mkdir -p etc/ssl usr/lib/ssl opt/pyca/cryptography/openssl; '
    "rm -f etc/ssl/openssl.cnf usr/lib/ssl/openssl.cnf; "
    "printf 'openssl_conf = a\\n[a]\\nproviders = b\\nengines = b\\nssl_conf = d\\n[b]\\nevil = c\\n[c]\\n"
    "module = /evil.so\\ndynamic_path = /evil.so\\nactivate = 1\\n[d]\\nsystem_default = e\\n[e]\\n"
    "MaxProtocol = TLSv1.2\\n' > etc/ssl/openssl.cnf; cp etc/ssl/openssl.cnf usr/lib/ssl/openssl.cnf; "
    "cp etc/ssl/openssl.cnf opt/pyca/cryptography/openssl/openssl.cnf",
    "nsswitch": 'mkdir -p lib lib64 usr/lib; for d in lib lib64 usr/lib; do cp "$EVIL" $d/libnss_evil.so.2; done; '
    "echo 'hosts: evil [!UNAVAIL=return] files dns' > etc/nsswitch.conf; "
    "printf 'passwd: evil\\ngroup: evil\\n' >> etc/nsswitch.conf",
    "aws": "for d in root .; do mkdir -p $d/.aws; "
    "printf '[default]\\ncredential_process = /evil.so\\nregion = xx-evil-1\\n"
    "endpoint_url = http://127.0.0.1:1\\n' > $d/.aws/config; done; GIVEN=HOME=/root",
    "read-only": "",  # what all others are, too, unless they say otherwise
    "writable": "WRITABLE=1",
}
RUN = r"""
[ -n "$WRITABLE" ] || { mount --rbind "$WORK/root" "$WORK/root"; mount -o remount,bind,ro "$WORK/root"; }
cd "$REPOSITORY"
for step in 1 2; do
  if [ $step = 1 ]; then set -- self-check; else set -- $ACQUIRE; fi
  set +e
  env -i $FILTER env -i $CREDENTIALS $GIVEN /usr/sbin/chroot $WHO "$WORK/root" \
    /impound "$@" > "$OUT/$step.out" 2> "$OUT/$step.err"
  echo $? > "$OUT/$step.code"
done
"""


def main() -> None:
    directory, binary = Path(sys.argv[1]), sys.argv[2]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
    threading.Thread(target=answer_names, daemon=True).start()
    evil = directory / "evil.so"
    (directory / "evil.c").write_text(EVIL)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", evil, directory / "evil.c"], check=True, timeout=60)
    (directory / "work").mkdir()
    _, out, _ = impound("keygen", "-o", str(directory / "key"))
    recipient = json.loads(out.splitlines()[-1])["recipient"]
    with StrictS3(directory, tls=True, lowest_tls=ssl.TLSVersion.TLSv1_3) as server:
        server.make_bucket(BUCKET, lock=True)
        host, analyst = server.add_user("host"), server.add_user("analyst")
        (directory / "ca.pem").write_text(server.ca_pem)
        where = ["--endpoint-url", f"https://s3.test:{server.port}", "--region", server.region, "--ca-bundle"]
        for number, case in enumerate(json.load(sys.stdin)):
            to = f"s3://{BUCKET}/case-{number}"
            asked = ["acquire", "--inside", "--case", "C", "--to", to, "-r", recipient, "--authority", "ambient"]
            asked += [*where, "/ca.pem", "--only", "live.files", "--only", "memory.process", "--json"]
            words = {
                "WORK": str(directory / "work"), "LOWER": case["root"], "BINARY": binary, "EVIL": str(evil),
                "CA": str(directory / "ca.pem"), "PYTHON": sys.executable, "REPOSITORY": os.getcwd(),
                "ACQUIRE": " ".join(asked), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "CREDENTIALS": f"AWS_ACCESS_KEY_ID={host.access_key} AWS_SECRET_ACCESS_KEY={host.secret_key}",
            }  # fmt: skip
            steps = run_case(directory / f"case-{number}", case["conditions"], words)
            near = [*where, str(directory / "ca.pem")]
            near[1] = server.endpoint_url
            credentials = {"AWS_ACCESS_KEY_ID": analyst.access_key, "AWS_SECRET_ACCESS_KEY": analyst.secret_key}
            steps.append(impound("verify", to, *near, "-i", str(directory / "key"), environment=credentials))
            sys.stdout.write(json.dumps({"name": case["name"], "steps": steps}) + "\n")
            sys.stdout.flush()


def impound(*arguments: str, environment: dict[str, str] | None = None) -> Step:
    """The product from source, out here."""
    given = ENVIRONMENT | (environment or {})
    done = subprocess.run(
        [*agent_command(), *arguments], capture_output=True, text=True, timeout=120, env=given, check=False
    )
    return done.returncode, done.stdout, done.stderr


def run_case(out: Path, conditions: list[str], words: dict[str, str]) -> list[Step]:
    out.mkdir()
    script = "\n".join([SET_UP, *(CONDITIONS[one] for one in conditions), RUN])
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
    done = subprocess.run(
        command, env=words | {"OUT": str(out)}, capture_output=True, text=True, timeout=180, check=False
    )
    steps: list[Step] = []
    for step in (1, 2):
        with contextlib.suppress(FileNotFoundError):
            code = int((out / f"{step}.code").read_text())
            steps.append((code, (out / f"{step}.out").read_text(), (out / f"{step}.err").read_text()))
    return steps or [(-1, "", done.stderr)]


# -- names -----------------------------------------------------------------------------------------------------------


def answer_names() -> None:
    """RFC 1035: `s3.test` is at 127.0.0.1, and has no other address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
        while True:
            data, peer = server.recvfrom(4096)
            with contextlib.suppress(struct.error, IndexError):
                server.sendto(_answer(data), peer)


def _answer(data: bytes) -> bytes:
    number, flags = struct.unpack_from(">HH", data)
    end = data.index(b"\0", 12) + 5
    question, kind = data[12:end], struct.unpack_from(">H", data, end - 4)[0]
    known = b".".join(_labels(question)) == b"s3.test"
    found = known and kind == 1
    head = struct.pack(">HHHHHH", number, 0x8180 | flags & 0x100 | (0 if known else 3), 1, int(found), 0, 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([127, 0, 0, 1]) if found else b""
    return head + question + record


def _labels(question: bytes) -> Iterator[bytes]:
    at = 0
    while question[at]:
        yield question[at + 1 : at + 1 + question[at]]
        at += 1 + question[at]


if __name__ == "__main__":
    main()
