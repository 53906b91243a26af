"""What is inside the binary: as CycloneDX, for programs, and with every licence, for people.

Both are made of the pins, and of what the packages and wheels say about themselves; no clock and no chance is in them.
"""

from __future__ import annotations

import email.parser
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pins
import sysroot

SPECIFICATION = "1.6"
_NAMESPACE = uuid.UUID("5d1a7d2c-3f0e-5b56-9d0b-6c1f6f3c7a10")
_LICENCE_FILES = re.compile(r"(?:licenses/.+|(?:LICEN[CS]E|NOTICE|COPYING|AUTHORS)[^/]*)", re.IGNORECASE)
_INSIDE_WHEELS = {"zstandard": (("zstd", "1.5.7", "BSD-3-Clause"),)}
"""What a wheel has compiled in and does not say itself (PEP 770)."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def bill(machine: str, version: str, name: str, sha256: str, site: Path) -> str:
    """The software bill of materials of one binary, as CycloneDX in JSON."""
    pinned = pins.read(machine)
    parts = [_debian(pin, machine) for pin in pinned.debian] + [_wheel(pin, site) for pin in pinned.wheels]
    own = {
        "type": "application",
        "bom-ref": "impound",
        "name": "impound",
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "purl": f"pkg:generic/impound@{version}?file_name={quote(name)}",
        "properties": [{"name": "impound:file", "value": name}, {"name": "impound:machine", "value": machine}],
    }
    told = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, sha256)}",
        "version": 1,
        "metadata": {"component": own},
        "components": parts,
        "dependencies": [{"ref": "impound", "dependsOn": [part["bom-ref"] for part in parts if _is_inside(part)]}],
    }
    return json.dumps(told, indent=1) + "\n"


def _is_inside(part: dict[str, Any]) -> bool:
    return bool(part["scope"] == "required")


def _component(pin: pins.Pin, purl: str) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": purl,
        "name": pin.name,
        "version": pin.version,
        "scope": "excluded" if pin.name in pins.FOR_THE_BUILD else "required",
        "hashes": [{"alg": "SHA-256", "content": pin.sha256}],
        "purl": purl,
        "externalReferences": [{"type": "distribution", "url": _public(pin)}],
    }


def _public(pin: pins.Pin) -> str:
    """Where anybody finds it, whichever mirror it came from here."""
    return pin.place if "://" in pin.place else f"http://deb.debian.org/{pin.place}"


def _debian(pin: pins.Pin, machine: str) -> dict[str, Any]:
    where = f"arch={pins.DEBIAN_NAMES[machine]}&distro={pins.SUITE}"
    return _component(pin, f"pkg:deb/debian/{pin.name}@{quote(pin.version, safe='')}?{where}")


def _wheel(pin: pins.Pin, site: Path) -> dict[str, Any]:
    found = _component(pin, f"pkg:pypi/{normal(pin.name)}@{pin.version}")
    about = _metadata(pin, site)
    if expression := about.get("License-Expression"):
        found["licenses"] = [{"expression": expression}]
    elif (name := about.get("License", "").strip()) and "\n" not in name:
        found["licenses"] = [{"license": {"name": name}}]
    inside = [
        {"type": "library", "name": name, "version": version, "licenses": [{"license": {"id": licence}}]}
        for name, version, licence in _INSIDE_WHEELS.get(normal(pin.name), ())
    ]
    for path in sorted((_about(pin, site) / "sboms").glob("*.json")):
        for part in json.loads(path.read_text())["components"]:
            kept = {key: part[key] for key in ("type", "name", "version", "hashes", "licenses") if key in part}
            inside.append(kept)
    if inside:
        found["components"] = inside
    return found


def _about(pin: pins.Pin, site: Path) -> Path:
    """The directory in which a wheel describes itself."""
    for path in site.glob("*.dist-info"):
        if normal(path.name.partition("-")[0]) == normal(pin.name):
            return path
    raise SystemExit(f"{pin.name}: its wheel does not describe itself")


def _metadata(pin: pins.Pin, site: Path) -> dict[str, str]:
    text = (_about(pin, site) / "METADATA").read_text("utf-8")
    return dict(email.parser.HeaderParser().parsestr(text).items())


def licences(machine: str, root: Path, site: Path) -> str:
    """The licences of everything that is inside, in one text."""
    pinned = pins.read(machine)
    texts: dict[str, list[str]] = {(pins.ROOT / "LICENSE").read_text("utf-8"): ["impound"]}
    for pin in pinned.debian:
        if pin.name not in pins.FOR_THE_BUILD:
            copyright_file = sysroot.inside(root, Path("usr/share/doc") / pin.name) / "copyright"
            texts.setdefault(copyright_file.read_text("utf-8", "replace"), []).append(f"{pin.name} {pin.version}")
    for pin in pinned.wheels:
        if pin.name not in pins.FOR_THE_BUILD:
            for name, text in _wheel_licences(pin, site):
                texts.setdefault(text, []).append(f"{pin.name} {pin.version} ({name})")
    line = "=" * 100
    return "\n".join(f"{line}\n{', '.join(names)}\n{line}\n\n{text.strip()}\n" for text, names in texts.items())


def _wheel_licences(pin: pins.Pin, site: Path) -> Iterator[tuple[str, str]]:
    about = _about(pin, site)
    names = sorted(str(path.relative_to(about)) for path in about.rglob("*") if path.is_file())
    found = [name for name in names if _LICENCE_FILES.fullmatch(name)]
    if not found:
        raise SystemExit(f"{pin.name}: its wheel holds no licence")
    for name in found:
        yield name, (about / name).read_text("utf-8", "replace")
