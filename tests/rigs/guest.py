"""A machine of one's own: a real kernel in QEMU, with /proc/kcore, whose true memory QEMU gives beside it.

    with Guest(Machine(memory=512, paging=5), tmp_path / "guest") as guest:      # about 5 s; scripts/guests.sh before
        done = guest.run(["python3", "-m", "agent", "--version"])                # .code, .out, .err
        pid = guest.start(["sleep", "1000"])
        with guest.paused():
            guest.pmemsave(0x1000, 0x9F000 - 0x1000, tmp_path / "low")
        guest.copy_out("case", tmp_path)                                         # from /evidence, a disk of its own

Inside, impound and what it imports are on PYTHONPATH; `/` and `/code` are read-only disks, `/evidence` a writable one,
`/tmp`, `/run` and `/dev/shm` memory. There is no network. What runs in it runs as root, nothing else runs.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.rigs.guest_disk import copy_out, make_disk
from tests.rigs.s3_process import Program, RigError

REPOSITORY = Path(__file__).parents[2]
EVIDENCE = "/evidence"
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_BOOT_SECONDS = 180.0
_LENGTH = struct.Struct("<Q")

Architecture = Literal["amd64", "arm64"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the guest is to be like."""

    memory: int = 512
    """MiB."""
    paging: Literal[4, 5] = 4
    """Levels of page tables, on amd64."""
    hole: bool = False
    """Half of the memory lies at 4 GiB, and nothing before it."""
    processors: int = 2
    architecture: Architecture = "amd64"
    options: str = ""
    """More of the kernel's command line."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a program in the guest ended."""

    code: int
    out: bytes
    err: bytes
    pid: int

    def __str__(self) -> str:
        words = [stream.decode("utf-8", "replace")[-4000:] for stream in (self.out, self.err)]
        return f"exit {self.code}\n{words[0]}\n{words[1]}"


def cache(architecture: Architecture = "amd64") -> Path:
    return REPOSITORY / ".cache/guests" / architecture


def why_not(architecture: Architecture = "amd64") -> str:
    """Why no guest can run here; empty when one can."""
    programs = ["qemu-system-x86_64" if architecture == "amd64" else "qemu-system-aarch64", "mkfs.ext4", "debugfs"]
    for program in programs:
        if shutil.which(program, path=_PATH) is None:
            return f"needs {program}"
    if not (cache(architecture) / "made").exists():
        return f"needs a guest of {architecture}: scripts/guests.sh {architecture} makes it"
    return ""


class Guest:
    """One guest below `directory`, which should be new. A context manager: no guest outlives it."""

    def __init__(
        self, machine: Machine, directory: Path, *, evidence_mib: int = 2048, disks: Sequence[Path] = ()
    ) -> None:
        """`disks`: more of them, to be read only; in the guest they are /dev/vdd and so on."""
        self.machine, self.directory, self._evidence_mib = machine, directory.absolute(), evidence_mib
        self._disks = disks
        self._program: Program | None = None
        self._agent: socket.socket | None = None
        self._monitor: socket.socket | None = None
        self._spoken = b""
        self._requests = 0

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def evidence_disk(self) -> Path:
        return self.directory / "evidence.img"

    def boot(self) -> None:
        """Starts the guest and waits until its agent answers. Raises `RigError`."""
        reason = why_not(self.machine.architecture)
        if reason:
            raise RigError(reason)
        self.directory.mkdir(parents=True, exist_ok=True)
        code = self.directory / "code"
        for package in ("agent", "acquirers"):
            shutil.copytree(REPOSITORY / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "tests/rigs/guest_agent.py", code)
        _compile(code)
        make_disk(self.directory / "code.img", 64, code)
        make_disk(self.evidence_disk, self._evidence_mib)
        console = (cache(self.machine.architecture) / "console").read_text().strip()
        with contextlib.ExitStack() as listening:
            ends = [self._listen(listening, name) for name in ("agent", "qmp")]
            self._program = Program(self._command(console), self.directory / "log", dict(os.environ), self.directory)
            self._agent, self._monitor = (self._accept(end) for end in ends)
        self._answer_of_monitor()  # its greeting
        self.qmp("qmp_capabilities")
        if self.run(["true"], seconds=_BOOT_SECONDS).code:
            raise RigError("the guest cannot even run true")

    def stop(self) -> None:
        """Ends the guest, at once, and lets its disks lie."""
        if self._program is not None:
            self._program.stop(gently_s=0)
        for end in (self._agent, self._monitor):
            if end is not None:
                end.close()
        self._program = self._agent = self._monitor = None

    def _listen(self, listening: contextlib.ExitStack, name: str) -> socket.socket:
        # Paths of Unix sockets end at 107 bytes, and those of tests do not.
        end = listening.enter_context(socket.socket(socket.AF_UNIX))
        path = self.directory / name
        path.unlink(missing_ok=True)
        here = os.open(self.directory, os.O_PATH | os.O_DIRECTORY)
        try:
            end.bind(f"/proc/self/fd/{here}/{name}")
        finally:
            os.close(here)
        end.listen(1)
        end.settimeout(30)
        return end

    def _accept(self, end: socket.socket) -> socket.socket:
        try:
            connection, _ = end.accept()
        except TimeoutError as error:
            raise RigError(f"QEMU does not start: {self.log()}") from error
        connection.settimeout(60)
        return connection

    def _command(self, console: str) -> list[str]:
        machine, files = self.machine, cache(self.machine.architecture)
        words = f"console={console} quiet panic=-1 oops=panic {machine.options}".strip()
        if machine.architecture == "amd64":
            board = "q35,graphics=off" + (f",max-ram-below-4g={machine.memory // 2}M" if machine.hole else "")
            qemu = ["qemu-system-x86_64", "-M", board, "-cpu", "max" if machine.paging == 5 else "max,la57=off"]
        else:
            qemu = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72"]
        disks: list[str] = []
        for name, path, access in (
            ("root", files / "root.img", "readonly=on"),
            ("code", self.directory / "code.img", "readonly=on"),
            ("evidence", self.evidence_disk, "cache=unsafe"),
            *((f"more{number}", path.absolute(), "readonly=on") for number, path in enumerate(self._disks)),
        ):
            disks += ["-drive", f"file={path},if=none,id={name},format=raw,{access}"]
            disks += ["-device", f"virtio-blk-pci,drive={name}"]
        return [
            # Software emulation everywhere: /dev/kvm may be there and still not start a guest, and has no five levels.
            *qemu, "-accel", "tcg,thread=multi", "-smp", str(machine.processors), "-m", str(machine.memory),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
            "-kernel", str(files / "vmlinuz"), "-initrd", str(files / "initrd.gz"), "-append", words, *disks,
            "-chardev", "socket,id=agent,path=agent", "-device", "virtio-serial-pci",
            "-device", "virtserialport,chardev=agent,name=agent",
            "-chardev", "socket,id=qmp,path=qmp", "-mon", "chardev=qmp,mode=control",
        ]  # fmt: skip

    def log(self) -> str:
        """The last lines of the console, and what QEMU says."""
        return self._program.tail() if self._program is not None else ""

    # -- commands -----------------------------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        seconds: float = 60,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        check: bool = False,
    ) -> Done:
        """Runs a program to its end. Raises `RigError` where it takes longer, or with `check` where it fails."""
        request = {"argv": list(argv), "seconds": seconds, "stdin": _text(stdin), "env": dict(env or {})}
        answer = self._ask("run", seconds + 30, **request)
        done = Done(int(answer["code"]), _bytes(answer["out"]), _bytes(answer["err"]), int(answer["pid"]))
        if answer["late"]:
            raise RigError(f"{list(argv)} did not end in {seconds:.0f} s: {done}")
        if check and done.code:
            raise RigError(f"{list(argv)}: {done}")
        return done

    def impound(self, *arguments: str, seconds: float = 300) -> Done:
        return self.run(["python3", "-m", "agent", *arguments], seconds=seconds)

    def start(self, argv: Sequence[str], *, output: str = "/dev/null", env: Mapping[str, str] | None = None) -> int:
        """Starts a program in the background, its output in a file of the guest; its process id."""
        return int(self._ask("start", 60, argv=list(argv), output=output, env=dict(env or {}))["pid"])

    def wait(self, pid: int, seconds: float) -> int:
        """The exit code of what `start` started. Raises `RigError` where it does not end in time."""
        answer = self._ask("wait", seconds + 30, pid=pid, seconds=seconds)
        if answer["late"]:
            raise RigError(f"process {pid} of the guest did not end in {seconds:.0f} s")
        return int(answer["code"])

    def kill(self, pid: int) -> None:
        """Ends what `start` started, and its process group."""
        self._ask("kill", 60, pid=pid)

    def read(self, path: str, *, most: int = 64 << 20) -> bytes:
        return _bytes(self._ask("read", 120, path=path, most=most)["data"])

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        self._ask("write", 120, path=path, data=_text(data), mode=mode)

    def copy_out(self, path: str, target: Path) -> None:
        """Copies a file or directory of /evidence, named from there, into the directory `target`."""
        self.run(["sync"], check=True)
        with self.paused():
            copy_out(self.evidence_disk, path, target)

    def _ask(self, do: str, deadline: float, /, **words: Any) -> dict[str, Any]:
        if self._agent is None:
            raise RigError("the guest does not run")
        self._requests += 1
        data = json.dumps({"id": self._requests, "do": do, **words}).encode()
        try:
            self._agent.settimeout(deadline)
            self._agent.sendall(_LENGTH.pack(len(data)) + data)
            (size,) = _LENGTH.unpack(self._receive(_LENGTH.size))
            answer: dict[str, Any] = json.loads(self._receive(size))
        except (OSError, EOFError) as error:
            raise RigError(f"the guest does not answer ({type(error).__name__}: {error}): {self.log()}") from error
        if answer["id"] != self._requests or "error" in answer:
            raise RigError(f"{do}: {answer.get('error', 'an answer to something else')}")
        return answer

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while self._agent is not None and len(data) < size:
            piece = self._agent.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    # -- QEMU ---------------------------------------------------------------------------------------------------------

    def qmp(self, command: str, **arguments: Any) -> Any:
        """One command of QEMU's monitor. Raises `RigError` where QEMU refuses it."""
        if self._monitor is None:
            raise RigError("the guest does not run")
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self._answer_of_monitor()
            if "error" in answer:
                raise RigError(f"{command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def _answer_of_monitor(self) -> dict[str, Any]:
        assert self._monitor is not None
        self._monitor.settimeout(300)
        while b"\n" not in self._spoken:
            piece = self._monitor.recv(1 << 16)
            if not piece:
                raise RigError(f"QEMU ended: {self.log()}")
            self._spoken += piece
        line, _, self._spoken = self._spoken.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Not one instruction of the guest runs in the meantime."""
        self.qmp("stop")
        try:
            yield
        finally:
            self.qmp("cont")

    def pmemsave(self, address: int, size: int, path: Path) -> None:
        """Physical memory as QEMU has it, into a file outside."""
        self.qmp("pmemsave", val=address, size=size, filename=str(path))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _compile(directory: Path) -> None:
    """Bytecode for the guest's Python, where ours is the same: emulated compiling takes longer than the test."""
    if sys.version_info[:2] != (3, 11) or platform.python_implementation() != "CPython":
        return
    arguments = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(directory), "-p", "/code"]
    subprocess.run([sys.executable, *arguments, str(directory)], check=True, timeout=120)


def wait_until(ready: Any, seconds: float, what: str) -> None:
    """Polls from outside. Raises `RigError` naming `what` where it does not come about."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RigError(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.1)
