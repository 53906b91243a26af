"""What goes into the binary: packages of Debian and wheels of PyPI, each by version and SHA-256.

`pins/<machine>.json` holds them. `fetch` gets what is pinned and takes nothing else; `update` asks Debian's mirror and
PyPI what is newest now. Both need the network, and write only below `.cache/binary`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache/binary"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org").rstrip("/")
SUITE = "bookworm"
PYTHON = "3.11"
DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
PACKAGES = (
    "libc6", "libc6-dev", "libpython3.11-minimal", "libpython3.11-stdlib", "libpython3.11-dev", "libssl3", "zlib1g",
    "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1", "libgcc-s1", "gcc-12-base", "libsqlite3-0",
    "linux-libc-dev", "libcrypt1", "libcrypt-dev",
)  # fmt: skip
FOR_THE_BUILD = ("gcc-12-base", "linux-libc-dev", "libcrypt1", "libcrypt-dev", "pycparser")
"""Nothing of these gets into the binary: headers, what others need to be unpacked, the licence of libgcc. Of libc6-dev
and libpython3.11-dev come the objects that are linked into the interpreter."""
SECONDS = 300
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Pin:
    """One file: `place` is a path below Debian's mirror, or a URL."""

    name: str
    version: str
    place: str
    sha256: str

    @property
    def url(self) -> str:
        return self.place if "://" in self.place else f"{MIRROR}/{self.place}"

    @property
    def file(self) -> str:
        return self.place.rpartition("/")[2]


@dataclass(frozen=True)
class Pins:
    debian: tuple[Pin, ...]
    wheels: tuple[Pin, ...]


def read(machine: str) -> Pins:
    told = json.loads((HERE / f"pins/{machine}.json").read_text())
    return Pins(*(tuple(Pin(**pin) for pin in told[kind]) for kind in ("debian", "wheels")))


def fetch(pin: Pin) -> Path:
    """The file, from the cache or the network. Ends the build where it is another one than was pinned."""
    path = CACHE / "files" / pin.sha256[:16] / pin.file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with urllib.request.urlopen(pin.url, timeout=SECONDS) as answer, temporary.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
        temporary.replace(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != pin.sha256:
        path.unlink()
        raise SystemExit(f"{pin.url}: not the file that was pinned (SHA-256 differs)")
    return path


def update(machine: str) -> None:
    told = {"debian": _debian(machine), "wheels": _wheels(machine)}
    path = HERE / f"pins/{machine}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({kind: [asdict(pin) for pin in pins] for kind, pins in told.items()}, indent=1) + "\n")


def _run(*command: str | Path) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SECONDS
    ).stdout


def _debian(machine: str) -> list[Pin]:
    """Asked of an apt with its own state: what this machine has installed, and its architecture, do not count."""
    architecture = DEBIAN_NAMES[machine]
    place = CACHE / "apt" / architecture
    for name in ("state/lists/partial", "cache/archives/partial"):
        (place / name).mkdir(parents=True, exist_ok=True)
    (place / "status").touch()
    (place / "sources.list").write_text(
        f"deb [signed-by={_KEYRING}] {MIRROR}/debian {SUITE} main\n"
        f"deb [signed-by={_KEYRING}] {MIRROR}/debian-security {SUITE}-security main\n"
    )
    options = {
        "Dir::State": place / "state",
        "Dir::Cache": place / "cache",
        "Dir::State::status": place / "status",
        "Dir::Etc::SourceList": place / "sources.list",
        "Dir::Etc::SourceParts": "/nonexistent",
        "Dir::Etc::Preferences": "/nonexistent",
        "Dir::Etc::PreferencesParts": "/nonexistent",
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "APT::Sandbox::User": "",
    }
    given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    _run("apt-get", "-q", *given, "update")
    found = []
    for package in PACKAGES:
        text = _run("apt-cache", *given, "show", "--no-all-versions", package)
        fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))
        archive = "debian-security" if "security" in _origin(given, package) else "debian"
        found.append(Pin(package, fields["Version"], f"{archive}/{fields['Filename']}", fields["SHA256"]))
    return found


def _origin(given: list[str], package: str) -> str:
    """The line of `apt-get download --print-uris`, which begins with the URL."""
    return _run("apt-get", "-q", *given, "download", "--print-uris", package)


def project() -> dict[str, Any]:
    """What pyproject.toml says of impound."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        told: dict[str, Any] = tomllib.load(file)["project"]
    return told


def version() -> str:
    return str(project()["version"])


def _wheels(machine: str) -> list[Pin]:
    requirements = project()["dependencies"]
    platforms = [word for tag in ("manylinux2014", "manylinux_2_17") for word in ("--platform", f"{tag}_{machine}")]
    target = ("--python-version", PYTHON, "--implementation", "cp", "--only-binary", ":all:", *platforms)
    report = CACHE / f"wheels-{machine}.json"
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-cache-dir",
        "--target", CACHE / "none", "--report", report, *target, *requirements,
    )  # fmt: skip
    found = []
    for one in json.loads(report.read_text())["install"]:
        about, download = one["metadata"], one["download_info"]
        found.append(
            Pin(about["name"], about["version"], download["url"], download["archive_info"]["hashes"]["sha256"])
        )
    return sorted(found, key=lambda pin: pin.name.lower())
