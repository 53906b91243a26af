"""BTF with anything in it: `BtfError` or `KeyError`, in bounded time, nothing else."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers.memory.btf import BtfError, parse
from agent.analysis.isf_symbols import Symbols
from agent.analysis.isf_types import Types
from tests.support.btf_maker import kernel

WHOLE = kernel().bytes()


def look_everywhere(data: bytes) -> None:
    with contextlib.suppress(BtfError):
        found = parse(data)
        for name in ("task_struct", "list_head", "spinlock_t"):
            with contextlib.suppress(BtfError, KeyError):
                found.struct(name)
        types = Types(found)
        for section in (types.base_types(), types.enums(), types.user_types(), types.forward()):
            with contextlib.suppress(BtfError):
                for _ in section:
                    pass
        list(Symbols(types, {"init_task": 1, "runqueues": 2, "taint_flags": 3, "modules": 1 << 63}).all())


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    look_everywhere(WHOLE[:24] + data)
    look_everywhere(data)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_bytes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    look_everywhere(bytes(data))
