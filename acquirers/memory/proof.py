"""Whether the image can be analysed, proved on its own bytes as they pass.

Before the image, live memory is asked where the things lie that Volatility 3 and drgn begin with: VMCOREINFO, the
banner, the kernel's page tables, the list of tasks (`expected`). While the image passes, those places are copied
(`catch`). Then the copies must say what live memory said: the same VMCOREINFO, the same banner, page tables that lead
to it, the same tasks (`judge`).
"""

from __future__ import annotations

import os
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import msgspec

from acquirers.memory import child, expected, judge
from acquirers.memory.catch import Catch
from acquirers.memory.expected import Ground, People
from acquirers.memory.judge import Verdict
from acquirers.memory.tasks import COMM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acquirers.host import Host
    from acquirers.memory.block import Block
    from acquirers.memory.source import Survey

__all__ = ["Proof", "Verdict"]

T = TypeVar("T", Ground, People)

_GROUND_SECONDS = 20.0
_PEOPLE_SECONDS = 30.0
_SLACK = 15.0
"""Seconds for the kernel's BTF beside the walk."""


class Proof:
    """Prepared once, before the image; then shown every block; then asked."""

    def __init__(self, host: Host, survey: Survey, *, machine: str = "") -> None:
        self._host = host
        self._survey = survey
        self._machine = machine or os.uname().machine
        self._ground = Ground(self._machine)
        self._people = People()
        self._problem = "it was not prepared"
        self._catch = Catch(())

    def prepare(self) -> None:
        """Reads live memory in a child, for a minute at the most. Never raises for what the machine is like."""
        host, survey, machine = self._host, self._survey, self._machine
        self._problem = ""
        found, problem = _asked(lambda: expected.ground(host, survey, machine), Ground, _GROUND_SECONDS)
        if found is None:
            self._problem = problem
            return
        self._ground = found
        people, problem = _asked(
            lambda: expected.people(host, survey, found, _PEOPLE_SECONDS), People, _PEOPLE_SECONDS + _SLACK
        )
        self._people = people or People(why=problem)
        self._catch = Catch(self._pieces())

    def _pieces(self) -> Iterator[tuple[int, int]]:
        ground, people = self._ground, self._people
        yield ground.note_at, len(ground.note)
        yield ground.banner_at, len(ground.banner)
        yield ground.root, ground.root_size
        for target in ground.targets:
            for address in target.steps:
                yield address, 8
        if not people.init:
            return
        first = memoryview(people.tasks)[: judge.CHECKED * expected.PACKED_TASK.size]
        for _, physical, *_ in chain([(0, people.init)], expected.PACKED_TASK.iter_unpack(first)):
            yield physical + people.pid_at, 4
            yield physical + people.comm_at, COMM
            yield physical + people.tasks_at, 8

    def block(self, block: Block) -> None:
        self._catch.take(block)

    def verdict(self) -> Verdict:
        """After the last block, `late` ones included."""
        return judge.judge(self._ground, self._people, self._catch.get, self._survey.ram, self._problem)


def _asked(ask: Callable[[], T], kind: type[T], seconds: float) -> tuple[T | None, str]:
    try:
        answer = child.call(lambda: msgspec.msgpack.encode(ask()), seconds)
        return msgspec.msgpack.decode(answer, type=kind), ""
    except child.StuckError:
        return None, f"live memory did not answer within {seconds:g} s"
    except (child.ChildError, OSError, msgspec.DecodeError) as error:
        return None, f"live memory could not be asked: {error}"
