"""Makes a release: everything that is shipped, its digests, and a signature of them. `scripts/release` calls it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent / "binary")]

import build as binaries  # noqa: E402 - where it lies is known only now
import deb  # noqa: E402
import distributor  # noqa: E402
import image  # noqa: E402
import pins  # noqa: E402
import rpm  # noqa: E402
import tree  # noqa: E402

from agent.custody.countersign import LocalCountersigner, parse_signing_key  # noqa: E402
from agent.delivery.released import RELEASED  # noqa: E402
from agent.errors import ImpoundError  # noqa: E402
from agent.installation import SIGNATURE, SUMS  # noqa: E402

ABOUT = {
    "version": pins.version(),
    "maintainer": "The impound developers <impound@example.org>",
    "home": "https://github.com/impound/impound",
}
_EARLIEST = 315532800  # 1980-01-01: no archive has a smaller time


def epoch() -> int:
    """The time that everything in a release has: of the commit, so that two builds of it are the same bytes."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    told = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    return int(told.stdout) if told.returncode == 0 and told.stdout.strip() else _EARLIEST


def release(machines: list[str], signer: LocalCountersigner | None, out: Path) -> None:
    """Everything for these machines, into the new directory `out`."""
    when = epoch()
    out.mkdir(parents=True)
    version = ABOUT["version"]
    made = {machine: out / f"impound-{version}-linux-{machine}" for machine in machines}
    for machine, binary in made.items():
        binaries.build(machine, version, binary)
        _say(binary.name)
        with tempfile.TemporaryDirectory(prefix="impound-release.") as name:
            root = Path(name) / "root"
            tree.make(root, binary, version, datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d"), signer)
            architecture = deb.ARCHITECTURES[machine]
            _made(deb.build, "dpkg-deb", root, machine, when, out / f"impound_{version}_{architecture}.deb")
            _made(rpm.build, "rpmbuild", root, machine, when, out / f"impound-{version}-1.{machine}.rpm")
        _made(image.build, "umoci", binary, machine, when, out / f"impound-{version}-{architecture}.oci.tar")
    distributor.build(made, version, when, out / "distributor")
    _say("the package for SSM Distributor")
    released = ROOT / "agent/delivery" / RELEASED
    released.write_text(json.dumps({machine: _sha256(binary) for machine, binary in made.items()}))
    try:
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT],
            check=True, timeout=600, env={**os.environ, "SOURCE_DATE_EPOCH": str(when)},
        )  # fmt: skip
    finally:
        released.unlink()
    _say("the wheel")
    (out / SUMS).write_text(tree.sums(out))
    if signer is not None:
        (out / SIGNATURE).write_text(tree.signature(signer, out / SUMS))
        (out / "signer.pem").write_bytes(tree.public(signer))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _made(
    build: Callable[[Path, str, dict[str, str], int, Path], None], program: str, source: Path, machine: str, when: int,
    out: Path,
) -> None:  # fmt: skip
    if shutil.which(program) is None:
        raise SystemExit(f"scripts/release: {program} is missing, which makes {out.name}")
    build(source, machine, ABOUT, when, out)
    _say(out.name)


def _say(what: str) -> None:
    print(f"made {what}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/release", description=__doc__)
    parser.add_argument("--sign", type=Path, metavar="KEY", help="an Ed25519 key: `impound keygen --signing -o KEY`")
    parser.add_argument("--machine", action="append", choices=sorted(deb.ARCHITECTURES), help="default: both")
    parser.add_argument("-o", "--output", type=Path, help="a new directory; default: dist/VERSION")
    given = parser.parse_args()
    out = given.output or ROOT / "dist" / ABOUT["version"]
    if out.exists():
        raise SystemExit(f"scripts/release: {out} is there already: remove it, or name another with -o")
    try:
        signer = parse_signing_key(given.sign.read_bytes()) if given.sign else None
    except (ImpoundError, OSError) as error:
        raise SystemExit(f"scripts/release: {given.sign}: {error}") from error
    release(given.machine or sorted(deb.ARCHITECTURES), signer, out)
    if signer is None:
        print("not signed: no --sign")
    else:
        print(f"signed by {signer.signer}: publish that where nobody who can change the files can change it")


if __name__ == "__main__":
    main()
