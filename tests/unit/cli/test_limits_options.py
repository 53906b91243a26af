"""LIMITS and S3 on the command line of `acquire`: what they become, what is refused, what they do to the process."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from acquirers import registry
from agent.cli.acquire import command
from agent.errors import UsageError
from agent.job import Job, Limits
from agent.limits import DIRECTORY, MIB, S3, Budget, least_mib, make_budget
from tests.support.runs import ENVIRONMENT, acquire, agent_command, impound, keygen

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def recipient(tmp_path: Path) -> str:
    return keygen(tmp_path)[1]


def job_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Job:
    """The job that a command line becomes."""
    seen: list[Job] = []

    def keep(job: Job, **_: object) -> int:
        seen.append(job)
        return 0

    monkeypatch.setattr("agent.cli.acquire.perform", keep)
    command.main(args=["--case", "C", *arguments], standalone_mode=False)
    return seen[0]


def test_every_limit_reaches_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipient: str) -> None:
    job = job_of(
        monkeypatch, "--to", str(tmp_path / "ev"), "-r", recipient, "--max-memory", "100", "--max-mbit", "50",
        "--max-cpu", "150", "--nice", "5", "--io", "idle", "--deadline", "2m",
    )  # fmt: skip
    assert job.limits == Limits(deadline_s=120, nice=5, io="idle", max_memory_mib=100, max_mbit=50, max_cpu=150)


def test_the_defaults_are_gentle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipient: str) -> None:
    limits = job_of(monkeypatch, "--to", str(tmp_path / "ev"), "-r", recipient).limits
    assert (limits.nice, limits.io, limits.max_memory_mib) == (10, "low", None)


def test_how_the_bucket_is_reached_is_in_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipient: str
) -> None:
    (tmp_path / "ca.pem").write_text("certificates\n")
    job = job_of(
        monkeypatch, "--to", "s3://evidence/2026", "-r", recipient, "--authority", "ambient",
        "--region", "eu-central-1", "--endpoint-url", "https://s3.test:1", "--ca-bundle", str(tmp_path / "ca.pem"),
        "--bucket-owner", "111122223333", "--sse-kms-key", "arn:aws:kms:eu-central-1:111122223333:key/1",
    )  # fmt: skip
    assert (job.to, job.s3.authority, job.s3.region) == ("s3://evidence/2026", "ambient", "eu-central-1")
    assert (job.s3.endpoint_url, job.s3.ca_bundle) == ("https://s3.test:1", "certificates\n")
    assert (job.s3.bucket_owner, job.s3.sse_kms_key[-1]) == ("111122223333", "1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-memory", "10"], ("--max-memory 10", f"{least_mib(DIRECTORY)} MiB")),
        (["--max-memory", "0"], ("positive",)),
        (["--max-mbit", "0"], ("--max-mbit",)),
        (["--max-cpu", "-5"], ("--max-cpu",)),
        (["--io", "fast"], ("--io",)),
        (["--nice", "20"], ("--nice",)),
        (["--authority", "ambient"], ("--authority", "s3://")),
        (["--channel"], ("--job -",)),
        (["--endpoint-url", "ftp://x"], ("--endpoint-url",)),
        (["--sse-kms-key", "key\r\nX: y"], ("--sse-kms-key is",)),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, recipient: str, arguments: list[str], words: tuple[str, ...]
) -> None:
    code, _, error = acquire(tmp_path / "ev", recipient, *arguments)
    assert code == 2, error
    assert all(word in error for word in words), error
    assert not (tmp_path / "ev").exists()


@pytest.mark.parametrize(
    ("authority", "words"),
    [([], ("--authority ambient", "examines")), (["--authority", "session"], ("controller",)),
     (["--authority", "broker"], ("controller",))],
)  # fmt: skip
def test_a_bucket_needs_a_right_that_was_given_by_name(
    recipient: str, monkeypatch: pytest.MonkeyPatch, authority: list[str], words: tuple[str, ...]
) -> None:
    def touched() -> list[object]:
        raise AssertionError("the machine was looked at")

    monkeypatch.setattr(registry, "acquirers", touched)
    code, _, error = impound("acquire", "--case", "C", "--to", "s3://evidence/x", "-r", recipient, *authority)
    assert code == 2
    assert all(word in error for word in words), error


@pytest.mark.parametrize("option", [["--max-mbit", "5"], ["--case", "C"], ["--to", "/x"], ["--authority", "ambient"]])
def test_a_job_document_goes_with_no_other_option(option: list[str]) -> None:
    code, _, error = impound("acquire", "--job", "-", *option)
    assert (code, "no other option" in error) == (2, True)


# -- memory -----------------------------------------------------------------------------------------------------------


def cost(budget: Budget, kind: str) -> int:
    """What the pipeline's own account of its memory says, and the parts."""
    from agent import limits
    from agent.sealing import pipeline

    return (
        limits.BASE[kind]
        + budget.blocks * pipeline.BLOCK_MEMORY
        + pipeline.OPEN_OBJECTS * pipeline.OBJECT_MEMORY
        + (budget.workers + 1) * pipeline.COMPRESSOR_MEMORY
        + budget.parts
    )


@pytest.mark.parametrize("kind", [DIRECTORY, S3])
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_a_budget_never_exceeds_its_ceiling_and_every_worker_has_work(kind: str, workers: int) -> None:
    for mib in (None, *range(least_mib(kind), 600, 7)):
        budget = make_budget(Limits(max_memory_mib=mib), kind, workers=workers)
        assert cost(budget, kind) <= budget.ceiling == (mib or {DIRECTORY: 128, S3: 256}[kind]) * MIB
        assert 1 <= budget.workers <= workers
        assert budget.workers < budget.blocks <= 2 * budget.workers + 2
        assert (budget.parts > 0) == (kind == S3)


@pytest.mark.parametrize("kind", [DIRECTORY, S3])
def test_one_mebibyte_less_than_the_least_is_refused(kind: str) -> None:
    make_budget(Limits(max_memory_mib=least_mib(kind)), kind)
    with pytest.raises(UsageError, match=f"{least_mib(kind)} MiB"):
        make_budget(Limits(max_memory_mib=least_mib(kind) - 1), kind)


def test_more_memory_is_more_parts() -> None:
    few, many = (make_budget(Limits(max_memory_mib=mib), S3, workers=2) for mib in (256, 512))
    assert many.parts - few.parts == 256 * MIB


def test_half_a_core_is_one_worker() -> None:
    assert make_budget(Limits(max_cpu=50), DIRECTORY, workers=8).workers == 1
    assert make_budget(Limits(max_cpu=250), DIRECTORY, workers=8).workers == 3


# -- priorities -------------------------------------------------------------------------------------------------------

SPY = """
import ctypes, json, os, sys, threading
from agent.job import Limits
from agent.limits import lower_priority
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 252, "aarch64": 31}[os.uname().machine]
problems = lower_priority(Limits(nice=int(sys.argv[1]), io=sys.argv[2]))
seen = []
def look():
    seen.append([os.getpriority(os.PRIO_PROCESS, 0), libc.syscall(number, 1, 0)])
look()
thread = threading.Thread(target=look)
thread.start()
thread.join()
print(json.dumps([problems, seen]))
"""


@pytest.mark.parametrize(("io", "value"), [("low", 2 << 13 | 7), ("idle", 3 << 13)])
def test_the_process_and_its_threads_give_way(io: str, value: int) -> None:
    if platform.machine() not in {"x86_64", "aarch64"}:
        pytest.fail("the number of ioprio_get is not known here")
    done = subprocess.run(
        [sys.executable, "-c", SPY, "12", io], capture_output=True, env=ENVIRONMENT, timeout=60, check=True
    )
    problems, seen = json.loads(done.stdout)
    assert problems == []
    nice, priority = seen[0]
    assert nice >= 12
    # io_prio of a thread that has no I/O context of its own yet is told from its nice value by some kernels.
    assert priority == value
    assert seen[1] == [nice, value]


def test_a_priority_that_is_refused_is_told_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent import limits

    def refuse(*_: object) -> int:
        ctypes.set_errno(1)
        return -1

    class Library:
        syscall = staticmethod(refuse)

    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_more: Library())
    assert limits.lower_priority(Limits(nice=0, io="idle")) == ["I/O class idle: Operation not permitted"]


def test_the_custody_log_says_under_which_limits_it_ran(tmp_path: Path, recipient: str) -> None:
    disk = tmp_path / "disk"
    (disk / "etc").mkdir(parents=True)
    code = subprocess.run(
        [*agent_command(), "acquire", "--case", "C-1", "--to", tmp_path / "ev", "-r", recipient, "--root", disk,
         "--max-memory", "100", "--io", "idle"],
        capture_output=True, env=ENVIRONMENT, timeout=60,
    ).returncode  # fmt: skip
    assert code == 0
    assert impound("open", tmp_path / "ev", "-i", tmp_path / "case.key", "-o", tmp_path / "out")[0] == 0
    log = [json.loads(line) for line in (tmp_path / "out/attempt-1/custody.jsonl").read_text().splitlines()]
    [told] = [line["data"] for line in log if line["event"] == "limits"]
    assert told["memory"] == 100 * MIB
    assert told["not_applied"] == []
    assert 1 <= told["workers"] <= (os.cpu_count() or 1)
