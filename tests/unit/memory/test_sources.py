"""The survey: what can read this machine's memory, what cannot, why, and what to do about it."""

from __future__ import annotations

import errno
import gzip
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from acquirers.base import State
from acquirers.host import Host, Mode
from acquirers.memory import bpf, crash, devmem, gates, iomem, kcore, sources
from acquirers.memory.block import PAGE
from acquirers.memory.ranges import Ranges
from tests.support.fake_kcore import NO_PADDR, Load, write
from tests.unit.memory.test_kcore import FIVE, FOUR, HIGH, LOW, x86

if TYPE_CHECKING:
    from acquirers.facts import Facts
    from acquirers.memory.source import Candidate, Survey

IOMEM = b"00001000-0001efff : System RAM\n00100000-0013ffff : System RAM\n  00100000-001fffff : Kernel code\n"
HIDDEN = b"00000000-00000000 : System RAM\n00000000-00000000 : System RAM\n"


def fixture(root: Path, text: bytes = IOMEM, loads: list[Load] | None = None, **facts: object) -> Host:
    """A recorded machine: its /proc is a directory of files."""
    for name in ("proc", "etc", "dev", "boot"):
        (root / name).mkdir(exist_ok=True)
    (root / "proc/iomem").write_bytes(text)
    if loads is not None:
        write(root / "proc/kcore", loads)
    host = Host(Mode.HOST, os.fsencode(root), os.fsencode(root / "proc"))
    host.__dict__["facts"] = told(**facts)
    return host


def told(**changes: object) -> Facts:
    known: dict[str, object] = {
        "kernel": "6.1.0-test", "architecture": "x86_64", "lockdown": "none", "namespaces": {"user": 0xEFFF_FFFD},
        "capabilities": ("sys_rawio", "sys_admin", "bpf", "perfmon"),
    }  # fmt: skip
    return replace(Host(Mode.HOST).facts, **{**known, **changes})


def of(survey: Survey, name: str) -> Candidate:
    return next(one for one in survey.candidates if one.name == name)


# -- a recorded machine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [FOUR, FIVE])
def test_kcore_is_the_first_source(tmp_path: Path, base: int) -> None:
    survey = sources.survey(fixture(tmp_path, loads=x86(base)))
    assert survey.ram == Ranges([(0x1000, 0x1F000), (0x10_0000, 0x14_0000)])
    assert survey.iomem == IOMEM
    assert survey.reason == survey.remedy == ""
    (source,) = survey.sources
    assert (source.name, source.zero_fills, source.direct_map, source.covers) == ("kcore", True, base, survey.ram)
    assert of(survey, "kcore").reason == ""
    reader = source.open()
    into = bytearray(len(LOW))
    reader.read(0x1000, memoryview(into))
    reader.close()
    assert into == LOW


def test_order_and_description(tmp_path: Path) -> None:
    described = sources.describe(sources.survey(fixture(tmp_path, loads=x86(FOUR))))
    assert [(name, state) for name, state, _, _ in described] == [
        ("kcore", State.AVAILABLE),
        ("bpf", State.UNAVAILABLE),
        ("crash", State.UNAVAILABLE),
        ("devmem", State.UNAVAILABLE),
    ]
    assert all(reason for _, state, reason, _ in described if state is State.UNAVAILABLE)
    assert all("\n" not in reason + remedy for _, _, reason, remedy in described)


def test_a_recorded_proc_is_never_mixed_with_the_running_kernel(tmp_path: Path) -> None:
    assert (
        of(sources.survey(fixture(tmp_path)), "bpf").reason
        == "the /proc that was given is not that of the running kernel"
    )


def test_what_kcore_does_not_cover_is_counted(tmp_path: Path) -> None:
    text = b"00001000-0001f3ff : System RAM\n00100000-0013ffff : System RAM\n100000000-1000fffff : System RAM\n"
    survey = sources.survey(fixture(tmp_path, text, x86(FOUR)))
    assert survey.ram.total == 0x1E400 + 0x40000 + 0x10_0000
    assert of(survey, "kcore").reason == (
        f"does not give {0x400 + 0x10_0000} bytes of System RAM, of which {0x400} are parts of pages; "
        "no other source gives them"
    )


def test_hidden_addresses_are_taken_from_kcore(tmp_path: Path) -> None:
    survey = sources.survey(fixture(tmp_path, HIDDEN, x86(FOUR), capabilities=("sys_rawio",)))
    assert survey.ram == Ranges([(0x1000, 0x1F000), (0x10_0000, 0x14_0000)])
    assert survey.iomem == HIDDEN
    assert survey.reason == ""
    found = of(survey, "kcore")
    assert "/proc/iomem hides all addresses without CAP_SYS_ADMIN: RAM is what /proc/kcore names" in found.reason
    assert found.remedy


def test_hidden_addresses_and_no_kcore_leave_nothing(tmp_path: Path) -> None:
    survey = sources.survey(fixture(tmp_path, HIDDEN, namespaces={"user": 0xF000_0001}))
    assert not survey.ram
    assert survey.sources == ()
    assert survey.reason == "/proc/iomem hides all addresses in a user namespace"
    assert "privileged pod" in survey.remedy


def test_hidden_addresses_and_an_old_kernel_cannot_be_matched(tmp_path: Path) -> None:
    old = [Load(one.vaddr, 0, one.data) for one in x86(FOUR)]
    survey = sources.survey(fixture(tmp_path, HIDDEN, old))
    assert survey.sources == ()
    assert of(survey, "kcore").reason == "the segments of /proc/kcore tell no physical addresses"
    assert sources.survey(fixture(tmp_path, IOMEM, old)).sources[0].direct_map == FOUR


def test_without_any_source_all_reasons_are_told(tmp_path: Path) -> None:
    survey = sources.survey(fixture(tmp_path))
    assert survey.ram.total == 0x1E000 + 0x40000
    assert survey.reason.startswith("kcore: this kernel has no /proc/kcore")
    assert "; bpf: " in survey.reason
    assert "; crash: no /dev/crash" in survey.reason


@pytest.mark.parametrize("masked", ["empty", "pipe", "device"])
def test_a_masked_kcore_is_told_and_never_opened(tmp_path: Path, masked: str) -> None:
    host = fixture(tmp_path)
    path = tmp_path / "proc/kcore"
    if masked == "pipe":
        os.mkfifo(path)
    elif masked == "device":
        path.symlink_to("/dev/null")
    else:
        path.touch()
    found = of(sources.survey(host), "kcore")
    assert found.source is None
    assert found.reason.startswith("/proc/kcore: it is masked: ")
    assert "privileged pod" in found.remedy


def test_a_kcore_that_does_not_open_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "KCORE_SECONDS", 0.3)
    monkeypatch.setattr(kcore, "open_checked", lambda _: time.sleep(60))
    began = time.monotonic()
    found = of(sources.survey(fixture(tmp_path, loads=x86(FOUR))), "kcore")
    assert time.monotonic() - began < 5
    assert found.reason == "/proc/kcore did not open in 0.3 s"


def test_a_hostile_kcore_is_one_line(tmp_path: Path) -> None:
    host = fixture(tmp_path)
    (tmp_path / "proc/kcore").write_bytes(b"\x1b[2J" * 8192)
    found = of(sources.survey(host), "kcore")
    assert (found.source, found.reason) == (None, "/proc/kcore: it is no ELF file")
    write(tmp_path / "proc/kcore", [Load(FOUR, NO_PADDR, HIGH)])
    assert of(sources.survey(host), "kcore").source is None


def test_a_missing_or_endless_iomem_is_a_reason(tmp_path: Path) -> None:
    host = fixture(tmp_path, b"x" * (iomem.MAX_BYTES + 1), x86(FOUR))
    survey = sources.survey(host)
    assert "larger than 4 MiB" in of(survey, "kcore").reason
    assert survey.ram
    (tmp_path / "proc/iomem").unlink()
    (tmp_path / "proc/kcore").unlink()
    assert sources.survey(host).reason == "/proc/iomem cannot be read: No such file or directory"


# -- gates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "what"), [(Mode.INSIDE, "inside a container"), (Mode.DEAD, "a mounted disk has no memory")]
)
def test_there_is_no_memory_inside_a_container_and_on_a_disk(mode: Mode, what: str) -> None:
    survey = sources.survey(Host(mode))
    assert what in survey.reason
    assert survey.remedy
    assert len(survey.candidates) == 4
    assert all(one.source is None and what in one.reason for one in survey.candidates)


def test_other_architectures_and_a_small_python_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "riscv64 is not supported" in sources.survey(fixture(tmp_path, architecture="riscv64")).reason
    monkeypatch.setattr(sys, "maxsize", (1 << 31) - 1)
    assert "32 bits" in sources.survey(fixture(tmp_path)).reason


@pytest.mark.parametrize(
    ("code", "facts", "what"),
    [
        (errno.ENOENT, {}, "has no /proc/kcore"),
        (errno.EPERM, {"lockdown": "confidentiality"}, "lockdown mode confidentiality"),
        (errno.EPERM, {"lockdown": "integrity"}, "perhaps by a security module"),
        (errno.EPERM, {"lockdown": ""}, "perhaps by lockdown"),
        (errno.EPERM, {"capabilities": ("sys_admin",)}, "CAP_SYS_RAWIO"),
        (errno.EACCES, {"capabilities": ()}, "CAP_SYS_RAWIO"),
        (errno.EPERM, {"namespaces": {"user": 1}}, "user namespace"),
        (errno.ENOMEM, {}, "ENOMEM"),
    ],
)
def test_why_kcore_does_not_open(code: int, facts: dict[str, object], what: str) -> None:
    assert what in gates.kcore(OSError(code, os.strerror(code)), told(**facts)).reason


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({}, None),
        ({"capabilities": ("bpf", "perfmon")}, None),
        ({"capabilities": ("sys_admin",)}, None),
        ({"lockdown": "integrity"}, None),
        ({"namespaces": {}}, None),
        ({"capabilities": ("bpf", "sys_rawio")}, "CAP_PERFMON"),
        ({"lockdown": "confidentiality"}, "confidentiality"),
        ({"namespaces": {"user": 1}}, "user namespace"),
    ],
)
def test_when_loading_a_program_is_not_tried(facts: dict[str, object], what: str | None) -> None:
    why = gates.bpf_beforehand(told(**facts))
    assert (why is None) if what is None else (why is not None and what in why.reason)


@pytest.mark.parametrize(
    ("step", "code", "kernel", "what"),
    [
        ("map", errno.ENOSYS, "6.1.0", "CONFIG_BPF_SYSCALL"),
        ("map", errno.EPERM, "5.10.230-223.885.amzn2", "RLIMIT_MEMLOCK: 65536 bytes"),
        ("map", errno.EPERM, "5.15.0", "seccomp"),
        ("map", errno.EINVAL, "4.14.355-275.amzn2", "before 5.5"),
        ("load", errno.EINVAL, "5.4.0-1103-aws", "before 5.5"),
        ("run", errno.EINVAL, "5.8.0", "before it, a raw tracepoint program"),
        ("run", 524, "5.4.0", "before it, a raw tracepoint program"),
        ("load", errno.EACCES, "6.18.0", "eBPF failed at load: Permission denied (EACCES)"),
        ("run", 524, "6.18.0", "(524)"),
    ],
)
def test_why_a_program_does_not_work(
    monkeypatch: pytest.MonkeyPatch, step: str, code: int, kernel: str, what: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    error = bpf.UnavailableError(step, OSError(code, os.strerror(code)))
    assert what in gates.bpf_failed(error, told(kernel=kernel)).reason


def test_kernels_that_name_themselves_strangely_are_not_called_old() -> None:
    assert gates.version(told(kernel="6.18.44-fc")) == (6, 18)
    assert gates.version(told(kernel="")) is None
    assert not gates.before(told(kernel="weird"), 5, 10)
    assert gates.before(told(kernel="4.14.1"), 5, 10)


# -- /dev/crash and /dev/mem ------------------------------------------------------------------------------------------


def test_crash_reads_page_by_page_and_cuts_out_parts(tmp_path: Path) -> None:
    """The driver's rule, held against a file: nothing crosses a page, nothing is outside whole pages of RAM."""
    data = os.urandom(8 * PAGE)
    (tmp_path / "memory").write_bytes(data)
    covers = Ranges([(PAGE - 100, 5 * PAGE + 7)]).rounded_in(PAGE)
    reader = crash.CrashReader(os.open(tmp_path / "memory", os.O_RDONLY), covers)
    for start, end in ((PAGE, 5 * PAGE), (PAGE + 1, PAGE + 2), (2 * PAGE - 1, 4 * PAGE + 1), (PAGE, PAGE)):
        into = bytearray(end - start)
        reader.read(start, memoryview(into))
        assert into == data[start:end]
    for start, end in ((PAGE - 1, PAGE + 1), (5 * PAGE, 5 * PAGE + 7)):
        with pytest.raises(OSError, match="whole pages"):
            reader.read(start, memoryview(bytearray(end - start)))
    os.truncate(tmp_path / "memory", 3 * PAGE + 9)
    with pytest.raises(OSError, match="less than a page"):
        reader.read(3 * PAGE, memoryview(bytearray(PAGE)))
    reader.close()


def test_a_device_that_only_has_the_name_is_not_opened(tmp_path: Path) -> None:
    host = fixture(tmp_path)
    (tmp_path / "proc/misc").write_bytes(b"235 autofs\n 58 crash\n  1 crashing\n")
    os.mkfifo(tmp_path / "dev/crash")
    found = of(sources.survey(host), "crash")
    assert (found.source, found.reason) == (None, "/dev/crash: it is not the device of the crash driver")


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b" 58 crash\n", 58), (b"235 autofs\n183 crash\n", 183), (b"58 crashes\n", None), (b"", None)],
)
def test_the_number_of_the_crash_driver(data: bytes, expected: int | None) -> None:
    assert crash.minor(data) == expected


def test_dev_mem_is_diagnosed_and_never_a_source(tmp_path: Path) -> None:
    host = fixture(tmp_path)
    assert devmem.diagnose(host).reason == "not there"
    (tmp_path / "boot/config-6.1.0-test").write_bytes(b"# CONFIG_DEVMEM is not set\n")
    assert devmem.diagnose(host).reason == "not there: not built into this kernel"
    (tmp_path / "dev/mem").touch()
    assert devmem.diagnose(host).reason == "masked: not a device"
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_DEVMEM=y\nCONFIG_STRICT_DEVMEM=y\n"))
    assert devmem._says(devmem._config(host), b"CONFIG_STRICT_DEVMEM") is True
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(bytes(1 << 26)))
    assert len(devmem._config(host)) <= 1 << 20


@pytest.mark.root
@pytest.mark.parametrize(
    ("config", "lockdown", "what"),
    [
        (b"CONFIG_DEVMEM=y\nCONFIG_STRICT_DEVMEM=y\n", "none", "refuses RAM"),
        (b"CONFIG_DEVMEM=y\n", "none", "device registers"),
        (b"", "none", "is not known"),
        (b"CONFIG_DEVMEM=y\n", "integrity", "lockdown (integrity)"),
    ],
)
def test_a_dev_mem_that_is_there_says_what_it_would_do(tmp_path: Path, config: bytes, lockdown: str, what: str) -> None:
    """The node is made, and not opened: it has the numbers of /dev/null."""
    if os.geteuid():
        pytest.skip("needs root")
    host = fixture(tmp_path, lockdown=lockdown)
    os.mknod(tmp_path / "dev/mem", 0o20600, os.makedev(1, 3))
    (tmp_path / "boot/config-6.1.0-test").write_bytes(config)
    found = devmem.diagnose(host)
    assert found.source is None
    assert what in found.reason


# -- the running machine ----------------------------------------------------------------------------------------------

_SURVEY = (
    "import json\nfrom acquirers.host import Host, Mode\nfrom acquirers.memory import sources\n"
    "found = sources.survey(Host(Mode.HOST))\n"
    "print(json.dumps([found.ram.total, found.reason, sources.describe(found)]))\n"
)


def elsewhere(*command: str) -> tuple[int, str, dict[str, str]]:
    """The survey in another process: bytes of RAM, why not, and why each source is none."""
    done = subprocess.run(
        [*command, sys.executable, "-c", _SURVEY],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip
    if command[0] == "unshare" and done.returncode and "Traceback" not in done.stderr:
        pytest.skip(f"needs user namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    total, reason, described = json.loads(done.stdout)
    return total, reason, {name: why for name, _, why, _ in described}


@pytest.mark.root
def test_the_running_machine_has_a_source() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    survey = sources.survey(Host(Mode.HOST))
    if not survey.sources:
        pytest.skip(f"needs BPF, or /proc/kcore: {survey.reason}")
    assert survey.reason == ""
    assert survey.ram == iomem.parse(survey.iomem)
    covered = Ranges(span for source in survey.sources for span in source.covers)
    if of(survey, "bpf").source:
        assert survey.ram.subtract(covered).total == 0
        assert of(survey, "bpf").reason == ""  # VMCOREINFO is where the kernel says it is


def test_in_a_user_namespace_nothing_works_and_it_says_so() -> None:
    total, reason, why = elsewhere("unshare", "--user", "--map-root-user")
    assert total == 0
    assert reason == "/proc/iomem hides all addresses in a user namespace"
    assert why["bpf"] == "in a user namespace no BPF program may read the kernel"
    assert "user namespace" in why["kcore"] or "no /proc/kcore" in why["kcore"]


@pytest.mark.root
@pytest.mark.parametrize(
    ("dropped", "what"),
    [
        ("-sys_admin,-bpf", "eBPF needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN"),
        ("-sys_admin", "which addresses are RAM is not known"),
    ],
)
def test_without_a_capability_the_reason_names_it(dropped: str, what: str) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    _, reason, why = elsewhere("setpriv", f"--bounding-set={dropped}")
    assert reason == "/proc/iomem hides all addresses without CAP_SYS_ADMIN"
    assert why["bpf"] == what
