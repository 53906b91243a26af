"""`impound export isf`: a symbol file that Volatility 3 itself takes and reads as the kernel means it."""

from __future__ import annotations

import base64
import importlib
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from acquirers.base import Scope
from acquirers.host import Host, Mode
from acquirers.memory import btf as btf_module
from acquirers.memory.btf import COMPOSITE
from acquirers.memory.kallsyms import X86_LINK
from acquirers.memory.symbols import Symbols
from agent.analysis import isf, isf_source
from agent.analysis.isf_table import DECLARED
from agent.errors import DamagedError, SourceError
from tests.support.btf_maker import Maker, kernel

BANNER = b"Linux version 6.1.0-test (me@here) (gcc) #1 SMP\n"
SLIDE = 0x1120_0000
START = X86_LINK + SLIDE
KALLSYMS = b"".join(
    b"%x %s %s\n" % line
    for line in (
        (START, b"T", b"_text"), (START + 0x10, b"t", b"modules"), (START + 0x20, b"t", b"twice"),
        (START + 0x30, b"b", b"twice"), (START + 0x1000, b"D", b"init_task"), (START + 0x2000, b"D", b"init_files"),
        (START + 0x3000, b"D", b"init_mm"), (START + 0x4000, b"D", b"modules"), (START + 0x5000, b"D", b"linux_banner"),
        (START + 0x6000, b"D", b"init_top_pgt"), (START + 0x7000, b"d", b"node_data"), (0x3000, b"A", b"runqueues"),
    )
) + b"ffffffffc0000000 t evil\t[rootkit]\n"  # fmt: skip
VMCOREINFO = b"OSRELEASE=6.1.0-test\nKERNELOFFSET=11200000\nSYMBOL(kallsyms_names)=%x\n" % (START + 0x9000)
WHOLE: dict[str, bytes] = {
    "[root]/proc/version": BANNER,
    "[root]/proc/kallsyms": KALLSYMS,
    "[root]/sys/kernel/btf/vmlinux": kernel().bytes(),
    "[derived]/vmcoreinfo": VMCOREINFO,
}


def archive(members: dict[str, bytes]) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    made.seek(0)
    return made


def make(members: dict[str, bytes]) -> tuple[dict[str, Any], isf.Made]:
    made = isf.Made()
    document = b"".join(isf.make(isf_source.read(archive(members)), made, version="0.0.0"))
    found: dict[str, Any] = json.loads(document, object_pairs_hook=unique)
    return found, made


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    assert len(found) == len(pairs), "a key that stands twice"
    return found


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_structures_are_as_the_kernel_describes_them() -> None:
    found, made = make(WHOLE)
    task = found["user_types"]["task_struct"]
    fields = task["fields"]
    assert (task["kind"], task["size"]) == ("struct", 96)
    assert fields["pid"] == {"type": {"kind": "base", "name": "int"}, "offset": 0}
    assert fields["tasks"] == {"type": {"kind": "struct", "name": "list_head"}, "offset": 16}
    assert fields["comm"]["type"] == {"kind": "array", "count": 16, "subtype": {"kind": "base", "name": "char"}}
    assert fields["handler"]["type"] == {"kind": "pointer", "subtype": {"kind": "function"}}
    assert fields["lock"]["type"] == {"kind": "struct", "name": "spinlock_t"}
    assert found["user_types"]["spinlock_t"] == found["user_types"]["spinlock"]
    unnamed = fields["unnamed_field_0"]
    assert unnamed["anonymous"] is True
    inner = found["user_types"][unnamed["type"]["name"]]
    assert inner["kind"] == "union"
    assert found["user_types"]["nowhere"] == {"kind": "struct", "size": 0, "fields": {}}
    assert found["enums"]["state"] == {"size": 4, "base": "unsigned int", "constants": {"IDLE": 0, "BUSY": 1}}
    assert made.types == len(found["user_types"])


def test_bits_are_cut_out_of_integers() -> None:
    fields = make(WHOLE)[0]["user_types"]["task_struct"]["fields"]
    flag, mode = fields["flag"], fields["mode"]
    assert (flag["offset"], flag["type"]["bit_position"], flag["type"]["bit_length"]) == (48, 0, 1)
    assert flag["type"]["type"] == {"kind": "base", "name": "unsigned char"}
    assert (mode["offset"], mode["type"]["bit_position"], mode["type"]["bit_length"]) == (48, 1, 2)
    assert mode["type"]["type"]["kind"] == "base"


def test_symbols_are_where_they_were_linked_to_and_of_the_type_that_plugins_want() -> None:
    found, made = make(WHOLE)
    symbols = found["symbols"]
    assert symbols["init_task"] == {
        "address": X86_LINK + 0x1000,
        "type": {"kind": "struct", "name": "task_struct"},
    }
    assert symbols["modules"]["address"] == X86_LINK + 0x4000  # the variable, not the function of that name
    assert symbols["modules"]["type"] == {"kind": "struct", "name": "list_head"}
    assert symbols["twice"]["address"] == X86_LINK + 0x20
    assert symbols["runqueues"]["address"] == 0x3000  # per-CPU: not moved; its type is in BTF
    assert symbols["runqueues"]["type"]["name"] == "files_struct"
    assert symbols["kallsyms_names"]["address"] == X86_LINK + 0x9000  # only VMCOREINFO names it
    assert "evil" not in symbols
    assert symbols["linux_banner"]["constant_data"] == base64.b64encode(BANNER).decode()
    assert symbols["node_data"]["type"] == {"kind": "base", "name": "void"}  # this BTF has no pglist_data
    assert made.notes == []


def test_types_of_modules_are_in_it_and_damaged_ones_are_told() -> None:
    base = kernel()
    split = Maker(first=base.next, base_names=len(base.names))
    split.struct("packet_sock", 24, [("list", 5, 64), ("", split.next + 1, 0)])
    split.struct("", 8, [("inner", 1, 0)])
    split.struct("task_struct", 4, [("mine", 1, 0)])
    extra = {"[root]/sys/kernel/btf/af_packet": split.bytes(), "[root]/sys/kernel/btf/\x1b[31mevil": b"no BTF"}
    found, made = make(WHOLE | extra)
    sock = found["user_types"]["packet_sock"]
    assert sock["fields"]["list"]["type"]["name"] == "list_head"
    assert found["user_types"][sock["fields"]["unnamed_field_0"]["type"]["name"]]["fields"]["inner"]["offset"] == 0
    assert "pid" in found["user_types"]["task_struct"]["fields"]
    assert made.modules == 1
    assert "\x1b" not in made.notes[0]
    assert "evil" in made.notes[0]


def test_a_distributions_system_map_stands_in_for_masked_symbols() -> None:
    lines = b"".join(b"%x T f%d\n" % (X86_LINK + 16 * index, index) for index in range(2000))
    lines += b"%x D init_task\n" % (X86_LINK + 0x100000)
    without = {name: data for name, data in WHOLE.items() if name != "[root]/proc/kallsyms"}
    found, made = make(without | {"[root]/boot/System.map-6.1.0-test": lines})
    assert found["symbols"]["init_task"]["address"] == X86_LINK + 0x100000
    assert "System.map" in made.addresses
    assert "init_files" in made.notes[0]
    stub = b"ffffffffffffffff B The_real_System.map_is_in_the_dbg_package\n"
    with pytest.raises(SourceError, match="masked"):
        make(without | {"[root]/boot/System.map-6.1.0-test": stub})


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("[root]/proc/version", "banner"),
        ("[root]/sys/kernel/btf/vmlinux", "no BTF"),
        ("[root]/proc/kallsyms", "no symbols with addresses"),
    ],
)
def test_what_is_missing_is_said(missing: str, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        make({name: data for name, data in WHOLE.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("[root]/sys/kernel/btf/vmlinux", b"\x9f\xeb" + b"\xff" * 40, "BTF"),
        ("[root]/proc/kallsyms", b"what\n", "symbols cannot be read"),
        ("[derived]/vmcoreinfo", b"nothing", "OSRELEASE"),
        ("[root]/proc/version", b"x" * 100_000, "more than"),
    ],
)
def test_what_is_damaged_is_said(name: str, data: bytes, why: str) -> None:
    with pytest.raises(DamagedError, match=why):
        make(WHOLE | {name: data})


# -- what Volatility makes of it --------------------------------------------------------------------------------------


def volatility(path: Path) -> Any:
    pytest.importorskip("volatility3", reason="needs volatility3")
    contexts = importlib.import_module("volatility3.framework.contexts")
    intermed = importlib.import_module("volatility3.framework.symbols.intermed")
    context = contexts.Context()
    table = intermed.IntermediateSymbolTable(context, "table", "kernel", path.as_uri())
    context.symbol_space.append(table)
    return context


@pytest.mark.skipif(not os.access("/sys/kernel/btf/vmlinux", os.R_OK), reason="needs BPF type format (BTF)")
def test_volatility_sees_every_member_of_this_kernel_where_btf_has_it(tmp_path: Path) -> None:
    class Told:
        def member(self, member: object) -> None: ...
        def gap(self, gap: object) -> None: ...
        def flag(self, flag: object) -> None: ...

    (item,) = Symbols().items(Host(Mode.HOST), Scope())
    kernel_files = isf_source.read(bytes(chunk) for chunk in item.read(Told()))
    path = tmp_path / "here.json.xz"
    made = isf.Made()
    if not kernel_files.kallsyms:
        kernel_files.kallsyms = isf_source.read(archive(WHOLE)).kallsyms
    path.write_bytes(b"".join(isf.compressed(isf.make(kernel_files, made, version="0.0.0"))))
    document = json.loads(lzma.decompress(path.read_bytes()), object_pairs_hook=unique)
    assert set(document["base_types"]) >= {"pointer", "void", "long unsigned int", "char"}
    space = volatility(path).symbol_space
    types = btf_module.parse(Path("/sys/kernel/btf/vmlinux").read_bytes())
    compared = 0
    for name in ("task_struct", "mm_struct", "vm_area_struct", "file", "net_device", "sock", "inode", "page", "module"):
        theirs, ours = space.get_type(f"kernel!{name}"), types.struct(name)
        assert theirs.size == ours.size
        members = {key: offset for key, (offset, _) in theirs.vol.members.items()}
        for key, member in ours.members.items():
            compared += 1
            assert members[key] == member.offset_bits // 8, f"{name}.{key}"
            size = types.size(member.type_id)
            if not member.bits and types.plain(member.type_id).kind in COMPOSITE:
                assert space.get_type(theirs.vol.members[key][1].vol.type_name).size == size
    assert compared > 500


def fits(value: Any, rule: dict[str, Any], rules: dict[str, Any]) -> bool:
    """As much of JSON Schema as Volatility's schema uses."""
    if "$ref" in rule:
        return fits(value, rules[rule["$ref"].removeprefix("#/definitions/")], rules)
    kinds = {"object": dict, "string": str, "integer": int, "number": int, "boolean": bool}
    if "type" in rule and not isinstance(value, kinds[rule["type"]]):
        return False
    if "pattern" in rule and not re.search(rule["pattern"], value):
        return False
    if "oneOf" in rule and sum(fits(value, one, rules) for one in rule["oneOf"]) != 1:
        return False
    if not {"properties", "required", "additionalProperties"} & set(rule):
        return True
    own, others = rule.get("properties", {}), rule.get("additionalProperties", True)
    return set(rule.get("required", ())) <= set(value) and all(
        fits(one, own[key], rules)
        if key in own
        else others is not False and (others is True or fits(one, others, rules))
        for key, one in value.items()
    )


def test_the_file_is_as_volatilitys_schema_says() -> None:
    schemas = pytest.importorskip("volatility3.schemas", reason="needs volatility3")
    schema = json.loads((Path(schemas.__file__).parent / f"schema-{isf.FORMAT}.json").read_text("utf-8"))
    found, _ = make(WHOLE)
    assert fits(found, schema, schema["definitions"])
    found["user_types"]["task_struct"]["fields"]["pid"]["type"]["kind"] = "what"
    assert not fits(found, schema, schema["definitions"])


def test_the_table_of_types_is_one(tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    path.write_bytes(b"".join(isf.make(isf_source.read(archive(WHOLE)), isf.Made(), version="0.0.0")))
    space = volatility(path).symbol_space
    assert space.get_symbol("kernel!init_task").type.vol.type_name == "kernel!task_struct"
    assert space.get_symbol("kernel!linux_banner").constant_data == BANNER
    for form in DECLARED.values():
        assert not form.startswith(" ")


# -- the command ------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", "export", "isf", *arguments], capture_output=True, text=True, check=False
    )


def opened(root: Path, members: dict[str, bytes]) -> Path:
    (root / "memory").mkdir(parents=True)
    (root / "memory/symbols.tar").write_bytes(archive(members).getvalue())
    return root


def test_the_command_writes_the_file_and_says_how_it_is_used(tmp_path: Path) -> None:
    source = opened(tmp_path / "run", WHOLE | {"[root]/proc/version": BANNER[:-1] + b"\x1b]0;evil\x07\n"})
    done = command(str(source), "--output", str(tmp_path / "out.json.xz"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(tmp_path / "out.json.xz")
    assert f"vol -s {tmp_path} -f memory/physical.lime linux.pslist.PsList" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert json.loads(lzma.decompress((tmp_path / "out.json.xz").read_bytes()))["metadata"]["format"] == "6.2.0"


def test_the_command_refuses_a_run_without_symbols_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "run/memory").mkdir(parents=True)
    (tmp_path / "run/memory/physical.lime").write_bytes(b"")
    done = command(str(tmp_path / "run"), "--output", str(tmp_path / "out.json"))
    assert done.returncode == 3
    assert "memory/symbols.tar is not in this run" in done.stderr
    broken = opened(tmp_path / "broken", WHOLE | {"[root]/sys/kernel/btf/vmlinux": b"\x9f\xeb\1" + bytes(40)})
    assert command(str(broken), "--output", str(tmp_path / "out.json")).returncode == 4
    assert command(str(broken), "--output", str(tmp_path / "out.txt")).returncode == 2
    assert not list(tmp_path.glob("out.*"))
