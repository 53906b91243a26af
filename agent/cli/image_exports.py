"""`impound export lime` and `impound export elf`: the memory image for other tools."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agent.cli.output import printable, say, size
from agent.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from agent.job import S3
    from agent.sealing import Identity


def export_lime(
    source: str,
    keys: Sequence[Identity],
    output: str,
    write: Callable[[str, Iterator[bytes]], int],
    *,
    signers: Collection[str],
    receipts: Collection[str],
    s3: S3 | None,
    quiet: bool,
) -> dict[str, object]:
    """Writes what was read at once and what was read late as one LiME image. Returns the result."""
    from agent.analysis import lime
    from agent.analysis.image import image
    from agent.analysis.items import items_of

    with items_of(source, keys, signers=signers, receipts=receipts, s3=s3) as items:
        written = write(output, lime.write(image(items)))
    if not quiet:
        say(f"wrote {output}, {size(written)}; for example")
        say(f"  vol -s SYMBOLS -f {printable(output)} linux.pslist.PsList   (`impound export isf` makes the symbols)")
    return {"verdict": "done", "output": os.path.abspath(output), "bytes": written, "exit": 0}


def export_elf(
    source: str,
    keys: Sequence[Identity],
    output: str,
    *,
    signers: Collection[str],
    receipts: Collection[str],
    s3: S3 | None,
    quiet: bool,
) -> dict[str, object]:
    """Writes the image as an ELF vmcore. Returns the result."""
    from agent.analysis import image as images
    from agent.analysis.items import items_of
    from agent.analysis.vmcore import MACHINES, vmcoreinfo_note, write_vmcore

    with items_of(source, keys, signers=signers, receipts=receipts, s3=s3) as items:
        pieces = images.image(items)
        about = images.about(items)
        if not about.machine:
            raise UsageError("memory/pages.jsonl, which says what machine it is, is not in this run: `export lime` it")
        if about.machine not in MACHINES:
            known = " or ".join(MACHINES)
            raise UsageError(f"the image is of no machine that a vmcore can be made for ({known}): `export lime` it")
        notes = []
        if not about.vmcoreinfo:
            notes.append("VMCOREINFO was not acquired (memory.symbols): drgn and crash do not open it without")
        if about.direct_map is None:
            notes.append("where the kernel maps memory is not known: only physical addresses are right")
        note = vmcoreinfo_note(about.vmcoreinfo) if about.vmcoreinfo else b""
        fd = _create(output)
        try:
            with os.fdopen(fd, "wb") as out:
                written, segments = write_vmcore(
                    out, pieces, machine=about.machine, notes=note, direct_map=about.direct_map
                )
        except OSError as error:
            os.unlink(output)
            raise StoreError(f"{output!r} could not be written: {error.strerror}") from error
        except BaseException:
            os.unlink(output)
            raise
    if not quiet:
        for one in notes:
            say(f"  note         {one}")
        say(f"wrote {output}, {size(written)}, {segments} segments; for example")
        say(f"  drgn -c {printable(output)} -s VMLINUX   (the kernel's debugging symbols, by its build id)")
    result = {"verdict": "done", "output": os.path.abspath(output), "bytes": written, "segments": segments, "exit": 0}
    return result | ({"notes": notes} if notes else {})


def _create(output: str) -> int:
    try:
        return os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{output!r} is there already and is not overwritten") from None
    except OSError as error:
        raise UsageError(f"{output!r} cannot be written: {error.strerror}") from error
