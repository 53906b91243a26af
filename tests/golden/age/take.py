"""Takes the vectors of this folder from their producers; see README.md.

python tests/golden/age/take.py cctv DIR      a checked-out C2SP/CCTV
python tests/golden/age/take.py hpke DIR      the Go module filippo.io/hpke
python tests/golden/age/take.py age PROGRAM   a stock age of 1.3 or later
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEMS = {(0x0050, 1), (0x647A, 1)}
"""MLKEM768-P256 and MLKEM768-X25519, both with HKDF-SHA-256."""


def take_cctv(checkout: Path) -> None:
    """All vectors of the age testkit, as they are."""
    target = HERE / "cctv"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(checkout / "age" / "testdata", target)


def take_hpke(module: Path) -> None:
    """The vectors of the two hybrids, without what impound has no use for."""
    vectors = [
        {name: value for name, value in vector.items() if name not in {"encryptions", "exports"}}
        for vector in json.loads((module / "testdata" / "hpke-pq.json").read_text("utf-8"))
        if (vector["kem_id"], vector["kdf_id"]) in KEMS and vector["mode"] == 0
    ]
    (HERE / "hpke-pq.json").write_text(json.dumps(vectors, indent=1) + "\n", "utf-8")
    shutil.copyfile(module / "LICENSE", HERE / "LICENSE.hpke")


def take_age(program: str) -> None:
    """What stock age seals to the keys of keys.json. Other bytes every time."""
    keys = json.loads((HERE / "keys.json").read_text("utf-8"))
    for name in ("tag", "tagpq", "pq"):
        command = [program, "-r", keys[name]["recipient"]]
        done = subprocess.run(command, input=f"sealed to {name}\n".encode(), capture_output=True, check=True)
        (HERE / "made" / f"{name}.age").write_bytes(done.stdout)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    (HERE / "made" / "VERSION").write_text(f"age {version}\n", "utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["cctv", folder]:
            take_cctv(Path(folder))
        case ["hpke", folder]:
            take_hpke(Path(folder))
        case ["age", executable]:
            take_age(executable)
        case _:
            sys.exit(__doc__)
