"""BTF as the kernel writes it is read, and nothing that claims to be BTF does harm."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import pytest

from acquirers.memory import btf
from acquirers.memory.btf import BtfError, Kind, Member, parse
from tests.support.btf_maker import Maker, kernel

OWN = Path("/sys/kernel/btf/vmlinux")


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_kind_is_read(order: str) -> None:
    made = Maker(order)
    number = made.integer("int", 4, signed=True)
    pointer = made.pointer(number)
    array = made.array(pointer, 7)
    made.struct("pair", 12, [("a", number, 0), ("b", pointer, 32)])
    made.struct("either", 8, [("a", number, 0)], union=True)
    made.enum("color", [("RED", 0), ("OFF", -1)], signed=True)
    made.add(Kind.FWD, "later", 0, flag=True)
    made.add(Kind.TYPEDEF, "t", array)
    for kind in (Kind.VOLATILE, Kind.CONST, Kind.RESTRICT):
        made.add(kind, "", made.next - 1)
    proto = made.add(Kind.FUNC_PROTO, "", number, made.words(0, number, 0, pointer), count=2)
    made.add(Kind.FUNC, "f", proto)
    variable = made.add(Kind.VAR, "v", number, made.words(1))
    made.add(Kind.DATASEC, ".data", 4, made.words(variable, 0, 4), count=1)
    made.add(Kind.FLOAT, "double", 8)
    made.add(Kind.DECL_TAG, "tag", variable, made.words(0xFFFFFFFF))
    made.add(Kind.TYPE_TAG, "user", number)
    big = made.enum64("big", [("MANY", 1 << 40), ("NEG", -5)], signed=True)
    found = parse(made.bytes())

    assert {one.kind for one in found.types()} == set(Kind) - {Kind.VOID}
    assert found.int_of(found.type(number)) == btf.Int(32, 0, signed=True, char=False, bool_=False)
    assert found.array_of(found.type(array)) == btf.Array(pointer, 1, 7)
    assert found.size(found.find("t", Kind.TYPEDEF).id) == 56
    assert found.plain(11).id == array
    assert found.values(found.find("color", Kind.ENUM)) == [("RED", 0), ("OFF", -1)]
    assert found.values(found.type(big)) == [("MANY", 1 << 40), ("NEG", -5)]
    assert found.variables(found.find(".data", Kind.DATASEC)) == [(variable, 0, 4)]
    assert found.linkage_of(found.type(variable)) == 1
    assert found.find("later", Kind.FWD).flag
    assert found.struct("either").size == 8
    assert found.offset("pair", "b") == 4


def test_members_of_unnamed_parts_count_as_the_structures_own() -> None:
    found = parse(kernel().bytes())
    assert found.offset("task_struct", "other") == 12
    task = found.struct("task_struct")
    assert task.size == 96
    assert task.members["tasks"] == Member(128, 0, 5)
    assert task.members["mode"].bits == 2
    with pytest.raises(KeyError, match=r"task_struct\.mode"):
        found.offset("task_struct", "mode")
    with pytest.raises(KeyError, match=r"task_struct\.nothing"):
        found.offset("task_struct", "nothing")
    with pytest.raises(KeyError, match="no_such"):
        found.struct("no_such")


def test_a_module_goes_on_where_its_kernel_ends() -> None:
    base = kernel()
    below = parse(base.bytes())
    split = Maker(first=below.end, base_names=len(base.names))
    own = split.struct("sock", 24, [("list", 5, 64)])
    found = parse(split.bytes(), below)
    assert own == below.end == found.first
    assert found.offset("sock", "list") == 8
    assert found.type(5).name == "list_head"
    assert found.offset("task_struct", "tasks") == 16
    assert [one.name for one in found.types()] == ["sock"]
    with pytest.raises(KeyError):
        below.struct("sock")


def test_a_name_may_be_the_end_of_another() -> None:
    made = Maker()
    number = made.integer("int", 4)
    at = made.name("mytask")
    made.types += made.words(at + 2, Kind.STRUCT << 24 | 1, 8) + made.words(made.name("a"), number, 32)
    assert parse(made.bytes()).offset("task", "a") == 4


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda data: data[:10], "shorter than its header"),
        (lambda data: b"\0\0" + data[2:], "magic"),
        (lambda data: data[:2] + b"\2" + data[3:], "version 2"),
        (lambda data: data[:-1], "longer than it is"),
        (lambda data: data[:-1] + b"x", "last name"),
        (lambda data: data[:12] + (len(data)).to_bytes(4, "little") + data[16:], "longer than it is"),
        (lambda data: data[:27] + b"\x7f" + data[28:], "a name of BTF lies outside"),
        (lambda data: data[:31] + b"\x1f" + data[32:], "unknown kind"),
        (lambda data: data[:28] + b"\xff\xff\xff\x04" + data[32:], "cut short"),
    ],
)
def test_what_is_wrong_is_said(harm: object, why: str) -> None:
    assert callable(harm)
    with pytest.raises(BtfError, match=why):
        list(parse(harm(kernel().bytes())).types())


def test_types_that_lead_in_circles_end() -> None:
    made = Maker()
    made.add(Kind.TYPEDEF, "a", 2)
    made.add(Kind.TYPEDEF, "b", 1)
    made.add(Kind.ARRAY, "", 0, made.words(3, 3, 2))
    made.struct("own", 8, [("", 4, 0)])
    found = parse(made.bytes())
    with pytest.raises(BtfError, match="aliases"):
        found.plain(1)
    with pytest.raises(BtfError, match="larger than any memory"):
        found.size(3)
    with pytest.raises(BtfError, match="levels"):
        found.struct("own")
    with pytest.raises(BtfError, match="no type 77"):
        found.type(77)


def test_structures_inside_one_another_cost_no_more_than_they_may() -> None:
    made = Maker()
    made.integer("int", 4)
    last = made.struct("", 8, [("x", 1, 0)])
    for _ in range(40):  # two to the power of 40 ways to `x`
        last = made.struct("", 8, [("", last, 0), ("", last, 32)])
    made.struct("top", 8, [("", last, 0)])
    began = time.monotonic()
    with pytest.raises(BtfError, match="members"):
        parse(made.bytes()).struct("top")
    assert time.monotonic() - began < 5


class _Utsname(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_char * 65) for name in ("s", "n", "r", "v", "m", "d"))


@pytest.mark.skipif(not os.access(OWN, os.R_OK), reason="needs BPF type format (BTF) of the running kernel")
def test_the_running_kernel_is_read_whole_and_quickly() -> None:
    data = OWN.read_bytes()
    began = time.process_time()
    found = parse(data)
    for one in found.types():
        if one.kind in btf.COMPOSITE:
            found.fields(one)
        elif one.kind in btf.ENUMS:
            found.values(one)
    assert time.process_time() - began < 4
    # What user space knows of the same types.
    assert found.struct("new_utsname").size == ctypes.sizeof(_Utsname)
    assert found.offset("new_utsname", "release") == _Utsname.r.offset
    assert found.offset("list_head", "prev") == 8
    assert dict(found.values(found.find("pid_type", Kind.ENUM)))["PIDTYPE_PID"] == 0
    assert found.offset("task_struct", "comm") > 0
