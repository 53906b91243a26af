"""What nobody who has root can put into a layer that is then left out: each of these was tried by an attacker."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from acquirers.containers.docker.beside import strange
from acquirers.files.tree import open_tree
from acquirers.layers import tarsplit
from acquirers.layers.disk import Directory
from acquirers.layers.proof import Proof, Rules, prove
from tests.unit.layers.test_tarsplit import split

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LINK = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Layer:
    """A directory as overlay2 keeps it, and the tar that it was: it has no member of `etc`, only what is in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, path / "diff"
        (self.files / "etc/hidden").mkdir(parents=True)
        (self.files / "etc/word").write_bytes(b"published\n")
        (self.files / "etc/hidden/.wh..wh..opq").touch()
        (path / "link").write_bytes(LINK)
        (path / "lower").write_bytes(b"l/" + LINK + b":l/" + LINK)
        (path / "committed").touch()
        (path / "work/work").mkdir(parents=True)
        (path / "merged").mkdir()
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in ("etc/word", "etc/hidden", "etc/hidden/.wh..wh..opq"):
                os.utime(self.files / name, (1_700_000_000, 1_700_000_000))
                tar.add(self.files / name, arcname=name, recursive=False)
        self.tar = out.getvalue()
        (self.files / "etc/hidden/.wh..wh..opq").unlink()
        os.setxattr(self.files / "etc/hidden", "trusted.overlay.opaque", b"y")
        os.utime(self.files / "etc/hidden", (1_700_000_000, 1_700_000_000))
        for directory in (self.files, self.files / "etc"):
            directory.chmod(0o755)

    def proof(self, rules: Rules | None = None) -> Proof:
        fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY)
        try:
            with Directory(open_tree(fd, os.fsencode(self.path))) as files:
                digest = f"sha256:{hashlib.sha256(self.tar).hexdigest()}"
                text = split(self.tar)
                proof = prove(
                    lambda: tarsplit.read([text]), files.within(b"diff"), digest, rules=rules or Rules(), name=False
                )
                for name, what in strange(files):
                    proof.add(name, what)
                return proof
        finally:
            os.close(fd)


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    return Layer(tmp_path / "layer")


def test_what_nobody_touched_is_proved(layer: Layer) -> None:
    assert layer.proof().proved, layer.proof()
    (layer.path / "work/work").rmdir()
    (layer.path / "merged").rmdir()
    (layer.path / "lower").unlink()  # the lowest layer
    assert layer.proof().proved


def _attribute(name: str, where: str, value: bytes = b"x") -> Callable[[Layer], None]:
    def touch(layer: Layer) -> None:
        stat = (layer.path / where).stat()
        os.setxattr(layer.path / where, name, value)
        os.utime(layer.path / where, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    return touch


def _instead(name: str, make: Callable[[Path], object]) -> Callable[[Layer], None]:
    def touch(layer: Layer) -> None:
        path = layer.path / name
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)

    return touch


TOUCHES: dict[str, Callable[[Layer], object]] = {
    "opaque-no": _attribute("trusted.overlay.opaque", "diff/etc/hidden", b"n"),
    "opaque-empty": _attribute("trusted.overlay.opaque", "diff/etc/hidden", b""),
    "opaque-implied": _attribute("trusted.overlay.opaque", "diff/etc", b"y"),
    "opaque-of-others": _attribute("user.overlay.opaque", "diff/etc/hidden", b"y"),
    "opaque-root": _attribute("trusted.overlay.opaque", "diff", b"y"),
    "redirect": _attribute("trusted.overlay.redirect", "diff/etc/hidden", b"/usr"),
    "metacopy": _attribute("trusted.overlay.metacopy", "diff/etc/word", b""),
    "payload": _attribute("trusted.overlay.payload", "diff/etc/word", b"hidden"),
    "payload-in-origin": _attribute("trusted.overlay.origin", "diff/etc/word", bytes(1000)),
    "override": _attribute("user.fuseoverlayfs.override_stat", "diff/etc/word", b"0:0:0104755"),
    "capability-of-implied": _attribute("user.note", "diff/etc"),
    "note-on-root": _attribute("user.note", "diff"),
    "note-on-layer": _attribute("user.note", "."),
    "note-on-link": _attribute("user.note", "link"),
    "note-on-work": _attribute("trusted.note", "work/work"),
    "root-mode": lambda layer: layer.files.chmod(0o777),
    "root-owner": lambda layer: os.chown(layer.files, 0, 5),
    "implied-mode": lambda layer: (layer.files / "etc").chmod(0o1777),
    "implied-owner": lambda layer: os.chown(layer.files / "etc", 5, 0),
    "beside": lambda layer: (layer.path / "payload").write_bytes(b"hidden"),
    "link-longer": lambda layer: (layer.path / "link").write_bytes(LINK + b"\nhidden"),
    "link-is-directory": _instead("link", lambda path: path.mkdir()),
    "lower-is-no-list": lambda layer: (layer.path / "lower").write_bytes(b"l/" + LINK + b":hidden"),
    "committed-not-empty": lambda layer: (layer.path / "committed").write_bytes(b"hidden"),
    "committed-is-link": _instead("committed", lambda path: path.symlink_to("hidden")),
    "work-is-file": _instead("work/work", lambda path: path.write_bytes(b"hidden")),
    "in-work": lambda layer: (layer.path / "work/index").mkdir(),
    "deep-in-work": lambda layer: (layer.path / "work/work/x").touch(),
    "in-merged": lambda layer: (layer.path / "merged/work").mkdir(),
    "merged-is-file": _instead("merged", lambda path: path.write_bytes(b"hidden")),
}


@pytest.mark.parametrize("name", TOUCHES)
def test_whatever_somebody_touched_it_is_not_proved(layer: Layer, name: str) -> None:
    TOUCHES[name](layer)
    proof = layer.proof()
    assert not proof.proved
    assert proof.differences or proof.why, proof


@pytest.mark.parametrize(("name", "value"), [("origin", bytes(90)), ("impure", b"y"), ("nlink", b"U+1")])
def test_what_the_kernel_notes_is_no_difference(layer: Layer, name: str, value: bytes) -> None:
    _attribute(f"trusted.overlay.{name}", "diff/etc/word", value)(layer)
    assert layer.proof().proved, layer.proof()


def test_with_userns_remap_owners_are_shifted_and_still_compared(layer: Layer) -> None:
    for path in (layer.files, *layer.files.rglob("*")):
        os.chown(path, 100_000, 200_000)
    assert layer.proof(Rules(shift=(100_000, 200_000))).proved
    os.chown(layer.files / "etc/word", 100_001, 200_000)
    assert not layer.proof(Rules(shift=(100_000, 200_000))).proved
    assert layer.proof(Rules(shift=None)).proved
