"""`impound export tree` and `impound export oci`: one container of a run, merged, or as an image."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from agent.cli.output import printable, say, size
from agent.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from agent.analysis.containers import Container, ContainerRun
    from agent.analysis.notes import Note
    from agent.analysis.view import View
    from agent.job import S3
    from agent.sealing import Identity

SHOWN = 10


def export_tree(
    source: str,
    keys: Sequence[Identity],
    output: str,
    write: Callable[[str, Iterator[bytes]], int],
    *,
    container: str,
    versions: bool,
    signers: Collection[str],
    receipts: Collection[str],
    s3: S3 | None,
    quiet: bool,
) -> dict[str, object]:
    """Writes the merged tree to `output`, and where each of it is from to `output`.jsonl. Returns the result."""
    from agent.analysis.treetar import tree

    beside = output + ".jsonl"
    counts: dict[str, object] = {}
    with (
        _opened(source, keys, output, container, signers=signers, receipts=receipts, s3=s3) as (_, view),
        _new_file(beside) as records,
    ):
        encode = msgspec.json.Encoder().encode

        def sink(record: dict[str, object]) -> None:
            records.write(encode(record) + b"\n")
            if record["type"] == "end":
                counts.update(record)

        written = write(output, map(bytes, tree(view, sink, versions=versions)))
        notes = view.notes
        chosen = view.container
    if not quiet:
        _say_notes(notes)
        say(f"  {_called(chosen)}: {len(view.present)} of {len(view.layers)} layers, {counts['path']} files,")
        say(f"  {counts['deleted']} deleted, {counts['older']} older versions and whiteouts")
        say(f"wrote {printable(output)}, {size(written)}, and {printable(beside)}, which says where each of it is from")
    return {
        "verdict": "done",
        "output": os.path.abspath(output),
        "records": os.path.abspath(beside),
        "bytes": written,
        "container": chosen.id,
        "layers": len(view.present),
        "layers_missing": len(view.layers) - len(view.present),
        **{key: counts[key] for key in ("path", "deleted", "older", "problem")},
        **_noted(notes),
        "exit": 0,
    }


def export_layers(
    source: str,
    keys: Sequence[Identity],
    output: str,
    *,
    container: str,
    signers: Collection[str],
    receipts: Collection[str],
    s3: S3 | None,
    quiet: bool,
) -> dict[str, object]:
    """Writes what each image layer is proved to be, as JSON lines. Returns the result."""
    from agent.analysis.containers import containers_of
    from agent.analysis.layerproof import prove_layers

    encode = msgspec.json.Encoder().encode
    counts = {"layers": 0, "proved": 0, "changed": 0, "unknown": 0, "left_out": 0, "blobs": 0, "blobs_changed": 0}
    with (
        containers_of(source, keys, beside=output, signers=signers, receipts=receipts, s3=s3) as run,
        _new_file(output) as records,
    ):
        only = None
        if container:
            rootfs = run.find(container).rootfs
            only = frozenset(rootfs.lowers if rootfs is not None else ())
        for record in prove_layers(run, only):
            records.write(encode(record) + b"\n")
            if record["type"] == "blob":
                counts["blobs"] += 1
                counts["blobs_changed"] += not record["proved"]
            elif record.get("left_out"):
                counts["left_out"] += 1
            else:
                counts["layers"] += 1
                counts["proved"] += bool(record["proved"])
                counts["changed"] += not record["proved"] and not record["why"]
                counts["unknown"] += bool(record["why"])
            if not quiet and not record["proved"] and not record.get("left_out"):
                _say_unproved(record)
    if not quiet:
        _say_layers(counts)
        say(f"wrote {printable(output)}")
    return {"verdict": "done", "output": os.path.abspath(output), **counts, "exit": 0}


def _say_layers(counts: dict[str, int]) -> None:
    if counts["layers"]:
        say(f"  of {counts['layers']} layers that were acquired, {counts['proved']} are what the digest says that this")
        say(f"  machine records of them, {counts['changed']} are not, and of {counts['unknown']} it cannot be told")
        say("  that digest is the machine's own word: compare it with the registry's (`expected` in each line)")
    else:
        say("  no image layer was acquired")
    if counts["left_out"]:
        say(
            f"  {counts['left_out']} were left out when it was acquired: proved then to be ones that the responder knew"
        )


def _say_unproved(record: dict[str, object]) -> None:
    say(f"  {printable(str(record['path']))}: {record.get('why') or 'not what its digest says'}")
    differences = record.get("differences")
    for one in differences[:SHOWN] if isinstance(differences, list) else ():
        say(f"    {printable(one['path'])}: {one['what']}")


def export_oci(
    source: str,
    keys: Sequence[Identity],
    output: str,
    *,
    container: str,
    signers: Collection[str],
    receipts: Collection[str],
    s3: S3 | None,
    quiet: bool,
) -> dict[str, object]:
    """Writes the container as an image that podman, Docker and skopeo load. Returns the result."""
    from agent.analysis.ociimage import write_image

    with (
        _opened(source, keys, output, container, signers=signers, receipts=receipts, s3=s3, runtime=True) as (
            run,
            view,
        ),
        _new_file(output) as out,
    ):
        image = write_image(out, view, run.run, machine=run.machine)
        chosen = view.container
    path = printable(output)
    if not quiet:
        _say_notes(image.notes)
        if image.more_notes:
            say(f"  … and {image.more_notes} more notes")
        say(f"  {_called(chosen)}: {len(image.layers)} layers, {image.reference}")
        say(f"wrote {path}, {size(image.bytes)}; for example, on a machine that may be lost")
        say(f"  podman load -i {path}   docker load -i {path}   skopeo copy oci-archive:{path} dir:IMAGE")
    return {
        "verdict": "done",
        "output": os.path.abspath(output),
        "bytes": image.bytes,
        "container": chosen.id,
        "image": image.reference,
        "config": image.config,
        "manifest": image.manifest,
        "layers": len(image.layers),
        "layers_missing": len(view.layers) - len(view.present),
        "config_from": image.config_from[:300],
        **_noted(image.notes, image.more_notes),
        "exit": 0,
    }


@contextlib.contextmanager
def _opened(
    source: str,
    keys: Sequence[Identity],
    output: str,
    container: str,
    *,
    signers: Collection[str],
    receipts: Collection[str],
    s3: S3 | None,
    runtime: bool = False,
) -> Iterator[tuple[ContainerRun, View]]:
    """The layers of one container. `runtime`: what was taken of its runtime is looked at, too."""
    from agent.analysis.containers import containers_of
    from agent.analysis.tarindex import TarIndex
    from agent.analysis.view import open_view

    if not container:
        raise UsageError("--container ID_OR_NAME is missing: which container of the run is meant")
    told: list[Note] = []
    with containers_of(source, keys, beside=output, signers=signers, receipts=receipts, s3=s3) as run:
        chosen = run.find(container)
        index = TarIndex(os.path.join(run.directory, "index"), on_note=told.append)
        with contextlib.closing(index):
            view = open_view(run, chosen, index, told)
            if runtime:
                for item in run.runtime_items(chosen):
                    index.add(run.archive(item))
            yield run, view


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[BinaryIO]:
    """A new file, which is gone again if an error ends its making. Raises `UsageError`, `StoreError`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{path!r} is there already and is not overwritten") from None
    except OSError as error:
        raise UsageError(f"{path!r} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(fd, "w+b", buffering=1 << 20) as file:
            yield file
    except OSError as error:
        os.unlink(path)
        raise StoreError(f"{path!r} could not be written: {error.strerror}") from error
    except BaseException:
        os.unlink(path)
        raise


def _called(container: Container) -> str:
    return f"{printable(container.name)} ({printable(container.id[:12])})"


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes[:SHOWN]:
        say(f"  note         {note}")
    if len(notes) > SHOWN:
        say(f"  … and {len(notes) - SHOWN} more notes")


def _noted(notes: Sequence[str], more: int = 0) -> dict[str, object]:
    """The first notes, as far as there is room in one line of a result."""
    if not notes:
        return {}
    return {"notes": [note[:160] for note in notes[:4]], "notes_count": len(notes) + more}
