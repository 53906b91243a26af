from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from acquirers.memory import crosscheck
from acquirers.memory.block import PAGE
from acquirers.memory.ranges import Ranges
from acquirers.memory.smear import digest

if TYPE_CHECKING:
    import pytest


class Scripted:
    """A source that gives what a function of (frame, how often it was read before) says: a byte, or None for EIO."""

    direct_map: int | None = None
    covers = Ranges([(0, 1 << 40)])

    def __init__(self, name: str, content: Callable[[int, int], int | None], *, zero_fills: bool = False) -> None:
        self.name, self._content, self.zero_fills = name, content, zero_fills
        self._count: dict[int, int] = {}

    def open(self) -> Scripted:
        return self

    def read(self, address: int, into: memoryview) -> None:
        assert address % PAGE == 0
        assert len(into) == PAGE
        frame = address // PAGE
        count = self._count[frame] = self._count.get(frame, -1) + 1
        value = self._content(frame, count)
        if value is None:
            raise OSError(errno.EIO, "Input/output error")
        into[:] = bytes([value]) * PAGE

    def close(self) -> None:
        pass


def always(value: int) -> Callable[[int, int], int]:
    def content(frame: int, count: int) -> int:
        return value

    return content


def test_equal_changing_differing_and_errors_are_told_apart() -> None:
    def first(frame: int, count: int) -> int | None:
        return {1: 1, 2: count, 3: 3, 4: None, 5: 5, 6: 6 + (count > 1), 7: 7, 8: 0, 9: count % 2}[frame]

    def second(frame: int, count: int) -> int | None:
        return {1: 1, 2: 99, 3: 33, 4: 4, 5: None, 6: 66, 7: 77 if not count else 7, 8: 88, 9: 1}[frame]

    kcore = Scripted("kcore", first, zero_fills=True)
    result = crosscheck.check(kcore, Scripted("bpf", second), range(1, 10))
    assert (result.asked, result.equal, result.differing, result.filled) == (9, 2, 1, 1)  # 1, 9; 3; 8
    assert result.changing == 3  # 2; 6 changes late; 7: the second agrees later
    assert (result.errors_first, result.errors_second, result.unchecked) == (1, 1, 0)
    assert result.listed == [
        crosscheck.Difference(3, digest(b"\3" * PAGE), digest(b"\x21" * PAGE), filled=False),
        crosscheck.Difference(8, digest(bytes(PAGE)), digest(b"\x58" * PAGE), filled=True),
    ]
    assert "0x3000" in result.finding
    told = list(crosscheck.lines(result))
    assert [line["type"] for line in told] == ["crosscheck", "crosscheck-finding", "crosscheck-zero-filled"]
    assert told[1] | {"first": "", "second": ""} == {
        "type": "crosscheck-finding", "frame": 3, "first": "", "second": "",
    }  # fmt: skip


def test_zeros_from_a_source_that_does_not_fill_are_a_finding() -> None:
    hidden = Scripted("kcore", lambda frame, _: 0 if frame == 7 else 1)
    result = crosscheck.check(hidden, Scripted("bpf", always(1)), range(20))
    assert (result.equal, result.differing, result.filled) == (19, 1, 0)
    assert [found.frame for found in result.listed] == [7]


def test_a_frozen_view_of_a_page_that_changes_is_a_finding() -> None:
    result = crosscheck.check(Scripted("kcore", always(1)), Scripted("bpf", lambda _, count: 10 + count), [5])
    assert result.differing == 1


def test_sources_that_agree_make_no_finding() -> None:
    same = Scripted("a", lambda frame, _: frame % 251)
    result = crosscheck.check(same, Scripted("b", lambda frame, _: frame % 251), range(2000))
    assert (result.asked, result.equal) == (crosscheck.MAX_FRAMES, crosscheck.MAX_FRAMES)
    assert not result.finding
    assert [line["type"] for line in crosscheck.lines(result)] == ["crosscheck"]


def test_the_list_is_bounded_and_the_count_is_not() -> None:
    result = crosscheck.check(Scripted("a", always(1)), Scripted("b", always(2)), range(500))
    assert (result.differing, len(result.listed)) == (500, crosscheck.MAX_LISTED)
    assert len(list(crosscheck.lines(result))) == 1 + crosscheck.MAX_LISTED


def test_stuck_reads_and_sources_that_do_not_open_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crosscheck, "SECONDS", 0.3)

    def stuck(frame: int, count: int) -> int:
        if frame in {3, 900}:
            time.sleep(3600)
        return 1

    result = crosscheck.check(Scripted("a", stuck), Scripted("b", always(1)), range(1024))
    assert (result.equal, result.unchecked) == (1024 - 256, 256)
    assert result.problem

    class Closed(Scripted):
        def open(self) -> Scripted:
            raise OSError(errno.EPERM, "Operation not permitted")

    shut = Closed("b", always(1))
    result = crosscheck.check(Scripted("a", always(1)), shut, range(1024))
    assert (result.equal, result.unchecked) == (0, 1024)
    assert "not permitted" in result.problem
