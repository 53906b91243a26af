"""`impound export`: turns a run into what other tools read."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from acquirers.near import did_you_mean
from agent import __version__
from agent.cli import options, places
from agent.cli.other_key import explained
from agent.cli.output import emit, say, size
from agent.cli.s3_options import make_s3, s3_options
from agent.errors import StoreError, UsageError
from agent.stores.directory import check_outside_runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.analysis.notes import Note
    from agent.job import S3
    from agent.sealing import Identity

SHOWN = 10
NAMED = 4
LOOKED_AT = 100_000
"""Files of a directory that are looked at for one that `open` wrote."""
OPENED = (".tar", ".jsonl", ".lime", ".core")
KINDS = ("elf", "host", "isf", "layers", "lime", "logs", "oci", "proof", "tree")


@click.command("export")
@click.argument("kind", metavar="KIND")
@click.argument("source", metavar="SRC|OPENED")
@options.identity_option
@click.option("--output", "-o", required=True, metavar="PATH", help="New file, or new directory.")
@click.option("--only", multiple=True, metavar="PATTERN", help="proof: the object of this name.")
@click.option(
    "--container", "containers", multiple=True, metavar="ID|NAME", help="layers, logs, oci, tree: of this one."
)
@click.option("--range", "part", metavar="A-B", help="proof: bytes A to B (both included) of what it opens to.")
@click.option("--versions", is_flag=True, help="tree: older versions and deleted files with their content, too.")
@options.signer_option
@options.receipt_option
@s3_options
@options.json_option
def command(
    kind: str,
    source: str,
    identities: tuple[str, ...],
    output: str,
    only: tuple[str, ...],
    containers: tuple[str, ...],
    part: str | None,
    versions: bool,
    signers: tuple[str, ...],
    receipts: tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> int:
    """Turn a run, sealed or opened, into what other tools read.

    \b
    KIND:
      host   one host.tar that dissect.target opens, with its containers as child targets; archives only, so neither
             snapshots nor memory, which `open` gives
      lime   the memory image, with what had to be read late in its place: for Volatility 3
      elf    the same bytes as an ELF vmcore: for drgn and crash
      isf    a symbol file for Volatility 3, made of the types and symbols of the acquired kernel alone
      logs   a new directory: one timeline for each container, as JSON lines, whatever its runtime wrote
      tree   the files of one container as it saw them, as a tar, and beside it (.jsonl) which layer each is from, its
             older versions and what was deleted
      oci    one container as an image, with what it wrote as a layer of its own: for podman, docker and skopeo
      layers whether each image layer is what was published, as JSON lines: what was changed in it, put in, taken out
      proof  a range of one object, for somebody who has nothing else; `verify` checks it, `open` takes it out

    \b
    Example:
      impound export host ./evidence --identity case.key --output host.tar
      target-query host.tar --list-children
      impound export isf ./evidence -i case.key --output vmlinux.json
      impound export elf ./evidence -i case.key --output vmcore
      impound export lime ./evidence -i case.key --output memory.lime
      impound export tree ./evidence -i case.key --container web --output web.tar
      impound export oci ./evidence -i case.key --container web --output web.oci.tar
      impound export logs ./evidence -i case.key --output logs
      impound export layers ./evidence -i case.key --output layers.jsonl
      impound export proof ./evidence -i case.key --only snapshot/processes.jsonl --range 0-511 --output proof.json
    """
    if kind not in KINDS:
        raise UsageError(f"there is no export {kind!r}{did_you_mean(kind, KINDS)}; this version has {', '.join(KINDS)}")
    s3 = make_s3(values)
    keys = options.read_identities(identities)
    byte_range = options.parse_range(part)
    pinned, digests = options.parse_pins(signers, receipts)
    _check_source(source, kind)
    with explained(source, s3, keys):
        return _export(
            kind, source, output, keys, pinned, digests, s3,
            only=only, containers=containers, byte_range=byte_range, versions=versions, as_json=as_json,
        )  # fmt: skip


def _check_source(source: str, kind: str) -> None:
    """Whether there is a run, or what `open` wrote of one. Raises `SourceError`."""
    from agent.stores.directory import DirectorySource, find_runs

    places.check_source(source)
    if source.startswith("s3://"):
        return
    if os.path.isfile(source):
        raise places.no_run(source)
    if kind == "proof" or find_runs(source):
        return
    with contextlib.closing(DirectorySource(source)) as opened:
        names = sorted(one.name for one in itertools.islice(opened.names(), LOOKED_AT))
        if not any(name.endswith(OPENED) for name in names):
            raise places.no_run(source, ", nor what `open` wrote")


def _export(
    kind: str,
    source: str,
    output: str,
    keys: list[Identity],
    pinned: list[str],
    digests: list[str],
    s3: S3,
    *,
    only: tuple[str, ...],
    containers: tuple[str, ...],
    byte_range: tuple[int, int] | None,
    versions: bool,
    as_json: bool,
) -> int:
    from agent.analysis.archives import archives_of
    from agent.analysis.hosttar import join, not_joined
    from agent.analysis.notes import NoteKind
    from agent.analysis.opening import names_in

    told: list[str] = []
    """How the source was read."""
    result: dict[str, object]
    if kind == "proof":
        from agent.cli.proofs import make_proof

        check_outside_runs(output)
        proof = make_proof(source, keys, only=only, byte_range=byte_range, signers=pinned, receipts=digests, s3=s3)
        if source.startswith("s3://"):
            names_in(source, s3, told=told.append)
        written = _write(output, iter([proof]))
        if not as_json:
            _say_notes(told)
            say(f"wrote {output}, {size(written)}")
        result = {"verdict": "done", "output": os.path.abspath(output), "bytes": written, "exit": 0}
        emit(result | ({"source_notes": told} if told else {}))
        return 0
    if only or byte_range:
        raise UsageError("--only and --range are for `export proof`")
    if containers and kind not in {"layers", "logs", "oci", "tree"}:
        raise UsageError("--container is for `export layers`, `export logs`, `export oci` and `export tree`")
    if kind in {"elf", "lime"}:
        from agent.cli.image_exports import export_elf, export_lime

        check_outside_runs(output)
        if kind == "elf":
            made = export_elf(source, keys, output, signers=pinned, receipts=digests, s3=s3, quiet=as_json)
        else:
            made = export_lime(source, keys, output, _write, signers=pinned, receipts=digests, s3=s3, quiet=as_json)
        emit(made)
        return 0
    if versions and kind != "tree":
        raise UsageError("--versions is for `export tree`")
    if len(containers) > 1 and kind != "logs":
        raise UsageError(f"`export {kind}` takes one --container: run it once for each")
    if kind in {"layers", "oci", "tree"}:
        from agent.cli.container_exports import export_layers, export_oci, export_tree

        check_outside_runs(output)
        chosen: dict[str, Any] = {"signers": pinned, "receipts": digests, "s3": s3, "quiet": as_json}
        chosen["container"] = containers[0] if len(containers) == 1 else ""
        if kind == "tree":
            made = export_tree(source, keys, output, _write, versions=versions, **chosen)
        elif kind == "oci":
            made = export_oci(source, keys, output, **chosen)
        else:
            made = export_layers(source, keys, output, **chosen)
        emit(made)
        return 0
    if kind == "isf":
        from agent.cli.memory_exports import export_isf

        check_outside_runs(output)
        made = export_isf(source, keys, output, _write, signers=pinned, receipts=digests, s3=s3, quiet=as_json)
        emit(made)
        return 0
    if kind == "logs":
        from agent.cli.log_exports import export_logs

        made = export_logs(
            source, keys, output, containers=containers, signers=pinned, receipts=digests, s3=s3, quiet=as_json
        )
        emit(made)
        return 0
    notes = joined = 0
    counted_only: Counter[NoteKind] = Counter()

    def note(one: Note) -> None:
        nonlocal notes
        if one.kind in {NoteKind.REPEATED, NoteKind.OURS}:  # every run has them: `uac.log` says which
            counted_only[one.kind] += 1
            return
        notes += 1
        if not as_json and notes <= SHOWN:
            say(f"  {one}")

    def counted(archives: Iterator[Iterator[bytes]]) -> Iterator[Iterator[bytes]]:
        nonlocal joined
        for joined, archive in enumerate(archives, 1):  # noqa: B007 - counts for whoever called
            yield archive

    with archives_of(source, keys, signers=pinned, receipts=digests, s3=s3) as archives:
        about = f"impound {__version__}: the archives of one run, joined"
        left_out = not_joined(names_in(source, s3, told=told.append))
        written = _write(output, join(counted(archives), on_note=note, about=about))
    if not as_json:
        if notes > SHOWN:
            say(f"  … and {notes - SHOWN} more notes of this kind")
        if counted_only:
            again, added = counted_only[NoteKind.REPEATED], counted_only[NoteKind.OURS]
            say(f"  directories  {again} came again, {added} were added, empty: uac.log lists these")
        _say_notes(told)
        if left_out:
            more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
            say(f"  left out     what is no archive of the host: {', '.join(left_out[:NAMED])}{more}; `open` gives it")
        if not joined:
            say("  empty        no archive of the host is in this run: the file has nothing of the examined machine")
        say(f"wrote {output}, {size(written)}")
    result = {
        "verdict": "done",
        "output": os.path.abspath(output),
        "bytes": written,
        "archives": joined,
        "notes": notes + counted_only.total(),
        "left_out": left_out[:SHOWN],
        "left_out_count": len(left_out),
        "exit": 0,
    }
    emit(result | ({"source_notes": told} if told else {}))
    return 0


def _say_notes(told: list[str]) -> None:
    for note in told[:SHOWN]:
        say(f"  note         {note}")
    if len(told) > SHOWN:
        say(f"  … and {len(told) - SHOWN} more notes of this kind")


def _write(output: str, chunks: Iterator[bytes]) -> int:
    check_outside_runs(output)
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{output!r} is there already and is not overwritten") from None
    except OSError as error:
        raise UsageError(f"{output!r} cannot be written: {error.strerror}") from error
    written = 0
    try:
        with os.fdopen(fd, "wb", buffering=1 << 20) as file:
            for chunk in chunks:
                file.write(chunk)
                written += len(chunk)
    except OSError as error:
        os.unlink(output)
        raise StoreError(f"{output!r} could not be written: {error.strerror}") from error
    except BaseException:
        os.unlink(output)
        raise
    return written
