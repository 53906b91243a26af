"""The files of one process, as the kernel writes them and as nobody should."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from acquirers.snapshot.process_files import classify, parse_fdinfo, parse_stat, parse_status
from tests.unit.snapshot.helpers import stat_line


@given(st.binary(min_size=1, max_size=15), st.integers(1, 1 << 22), st.sampled_from("RSDZTtXI"))
def test_stat_survives_any_name(comm: bytes, pid: int, state: str) -> None:
    found = parse_stat(stat_line(pid, comm, state=state, start=987654))
    assert found is not None
    assert (found.pid, found.comm, found.state, found.start_ticks) == (pid, comm, state, 987654)


def test_stat_of_this_process() -> None:
    found = parse_stat(Path("/proc/self/stat").read_bytes())
    assert found is not None
    assert not found.kernel_thread
    assert not found.dead


def test_a_kernel_thread_is_known_by_its_flag_and_not_by_its_name() -> None:
    real, fake = parse_stat(stat_line(2, b"kthreadd", flags=0x208040)), parse_stat(stat_line(9, b"[kworker/0:0]"))
    assert real is not None
    assert fake is not None
    assert real.kernel_thread
    assert not fake.kernel_thread


@given(st.binary(max_size=400))
def test_parsers_take_anything(data: bytes) -> None:
    parse_stat(data)
    parse_status(data)
    parse_fdinfo(data)
    classify(data)


@given(st.data())
def test_a_stat_that_was_cut_or_changed_is_refused_or_read(data: st.DataObject) -> None:
    line = stat_line(1, b"a) R 1 (b")
    at = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.binary(max_size=3))
    for changed in (line[:at], line[:at] + byte + line[at + 1 :]):
        found = parse_stat(changed)
        assert found is None or found.state.isalpha()


def test_status() -> None:
    data = (
        b"Name:\ta\\nUid:\t9\nUmask:\t0077\nTracerPid:\t31\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t4 24 27 \n"
        b"NSpid:\t4711\t1\nCapEff:\t000001ffffffffff\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    )
    assert parse_status(data) == {
        "umask": "0077",
        "tracer": 31,
        "uids": [1, 2, 3, 4],
        "gids": [5, 6, 7, 8],
        "groups": [4, 24, 27],
        "nspid": [4711, 1],
        "cap_eff": "000001ffffffffff",
        "no_new_privs": 1,
        "seccomp": 2,
    }


def test_status_leaves_out_what_is_no_number() -> None:
    assert (
        parse_status(b"Uid:\t1\tx\nTracerPid:\t99999999999999999999999\nCapEff:\txyz\nUmask:\t99\nSeccomp:\t\n") == {}
    )


def test_fdinfo() -> None:
    assert parse_fdinfo(b"pos:\t512\nflags:\t0100002\nmnt_id:\t29\n") == {"pos": 512, "flags": "0100002"}


def test_kinds_of_open_files() -> None:
    assert classify(b"socket:[4026531]") == ("socket", 4026531)
    assert classify(b"pipe:[7]") == ("pipe", 7)
    assert classify(b"net:[4026531840]") == ("namespace", 4026531840)
    assert classify(b"anon_inode:[eventpoll]") == ("anon", None)
    assert classify(b"/memfd:x (deleted)") == ("memfd", None)
    assert classify(b"/tmp/x (deleted)") == ("deleted", None)
    assert classify(b"/tmp/socket:[12]") == ("file", None)
    assert classify(b"/dev/null\n") == ("file", None)
