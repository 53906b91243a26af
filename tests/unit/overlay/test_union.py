"""The union of layers that are made of words: what the kernel test cannot reach, or does not look at."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers.overlay import Dialect, Entry, Node, Union
from acquirers.overlay import union as union_module
from tests.unit.overlay.layers import WordLayer, directory, file, layers, whiteout

if TYPE_CHECKING:
    import pytest


def walk(union: Union, **how: Any) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for entry in union.walk(**how):
        path = entry.path.decode()
        assert path not in found
        found[path] = entry
    return found


def seen(union: Union) -> set[str]:
    return {path for path, entry in walk(union).items() if entry.object is not None}


def history(entry: Entry) -> list[str]:
    """`number` of the layer of every version, the newest first; `-number` of a whiteout."""
    now = [str(entry.object.place.layer)] if entry.object is not None else ["-"]
    return now + [("" if one.object is not None else "!") + str(one.place.layer) for one in entry.older]


class TestHistory:
    def test_versions_and_whiteouts(self) -> None:
        union = Union(layers({"a": file(3)}, {"a": whiteout()}, {"a": file(2)}, {"a": file(1)}))
        assert history(walk(union)["/a"]) == ["0", "!1", "2", "3"]

    def test_a_deleted_directory_with_all_that_was_in_it(self) -> None:
        union = Union(layers({"d": whiteout()}, {"d/x": file(), "d/sub/y": file()}, {"d/x": file(), "d/z": whiteout()}))
        found = walk(union)
        assert seen(union) == {"/"}
        assert {path: history(entry) for path, entry in found.items() if path != "/"} == {
            "/d": ["-", "!0", "1"], "/d/x": ["-", "1", "2"], "/d/sub": ["-", "1"], "/d/sub/y": ["-", "1"],
            "/d/z": ["-", "!2"],
        }  # fmt: skip
        assert all(entry.hidden_by == (0, b"d") for path, entry in found.items() if path not in {"/", "/d/z"})

    def test_an_opaque_directory_hides_what_was_there(self) -> None:
        union = Union(layers({"d": directory(opaque=b"y"), "d/new": file()}, {"d/new": file(), "d/old": file()}))
        found = walk(union)
        assert history(found["/d/new"]) == ["0", "1"]
        assert history(found["/d/old"]) == ["-", "1"]
        assert found["/d/old"].hidden_by == (0, b"d")

    def test_a_file_in_the_place_of_a_directory(self) -> None:
        union = Union(layers({"d": file()}, {"d/old": file()}))
        found = walk(union)
        assert seen(union) == {"/", "/d"}
        assert history(found["/d"]) == ["0", "1"]
        assert found["/d/old"].hidden_by == (0, b"d")

    def test_a_directory_in_the_place_of_a_file(self) -> None:
        union = Union(layers({"d/new": file()}, {"d": file()}, {"d/older": file()}))
        assert history(walk(union)["/d"]) == ["0", "1", "2"]
        assert history(walk(union)["/d/older"]) == ["-", "2"]

    def test_only_metadata_was_changed(self) -> None:
        union = Union(layers({"a": file(metacopy=b"")}, {"a": file()}))
        entry = walk(union)["/a"]
        assert entry.object is not None
        assert (entry.object.place.layer, entry.object.data) == (0, (1, b"a"))
        assert history(entry) == ["0", "1"]

    def test_a_renamed_directory(self) -> None:
        top = {"new": directory(redirect=b"old"), "old": whiteout()}
        union = Union(layers(top, {"old/x": file(), "new/y": file()}))
        found = walk(union)
        assert seen(union) == {"/", "/new", "/new/x"}
        assert found["/new/x"].object is not None
        assert found["/new/x"].object.place == (1, b"old/x")
        assert history(found["/new/y"]) == ["-", "1"], "what had the name before"
        assert history(found["/old/x"]) == ["-", "1"]


NODES: dict[str, Node] = {"file": file(), "dir": directory(), "opaque": directory(opaque=b"y"), "gone": whiteout()}
PATHS = ["a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/b/a"]


@st.composite
def some_layers(draw: st.DrawFn) -> list[WordLayer]:
    made = []
    for number in range(draw(st.integers(1, 4))):
        kinds = draw(st.dictionaries(st.sampled_from(PATHS), st.sampled_from(sorted(NODES)), max_size=6))
        good = {
            path: NODES[kind]
            for path, kind in kinds.items()
            if all(kinds.get(path[:end], "dir") in {"dir", "opaque"} for end in range(1, len(path), 2))
        }
        made.append(WordLayer(str(number), {path.encode(): one for path, one in good.items()}))
    return made


@settings(max_examples=400, deadline=None)
@given(some_layers())
def test_nothing_that_any_layer_has_is_left_out(made: list[WordLayer]) -> None:
    """Where nothing is redirected, the history of a path names every layer that has it, from the top down."""
    found = {}
    for path, entry in walk(Union(made)).items():
        now = [place.layer for place in entry.object.places] if entry.object is not None else []
        before = [
            layer
            for one in entry.older
            for layer in ([one.place.layer] if one.object is None else [place.layer for place in one.object.places])
        ]
        found[path] = now + before
        assert entry.object is not None or entry.hidden_by is not None
    paths = {path for layer in made for path in layer.nodes}
    assert found == {
        "/" + path.decode(): [number for number, layer in enumerate(made) if path in layer.nodes] for path in paths
    }


@settings(max_examples=200, deadline=None)
@given(some_layers())
def test_history_changes_nothing_of_what_is_seen(made: list[WordLayer]) -> None:
    with_history = {path: entry.object for path, entry in walk(Union(made)).items() if entry.object is not None}
    assert with_history == {path: entry.object for path, entry in walk(Union(made), history=False).items()}


class TestRedirects:
    def test_a_path_in_the_middle_of_a_redirected_path(self) -> None:
        """`/x` leads to `/p/q`, and in the layer below `/p` itself leads to `/o`."""
        union = Union(
            layers(
                {"x": directory(redirect=b"/p/q")},
                {"p": directory(redirect=b"/o"), "p/q/one": file()},
                {"o/q/two": file(), "p/q/never": file()},
            )
        )
        assert {path for path in seen(union) if path.startswith("/x")} == {"/x", "/x/one", "/x/two"}

    def test_a_redirect_never_leads_upwards(self) -> None:
        """So that there is no way round in circles."""
        union = Union(
            layers({"a": directory(redirect=b"/b"), "b": directory(redirect=b"/a")}, {"a/x": file(), "b/y": file()})
        )
        assert seen(union) == {"/", "/a", "/a/y", "/b", "/b/x"}

    def test_to_nowhere(self) -> None:
        union = Union(layers({"a": directory(redirect=b"/no/such")}, {"a/x": file()}))
        assert seen(union) == {"/", "/a"}

    def test_what_no_kernel_follows_is_told(self) -> None:
        union = Union(layers({"a": directory(redirect=b"../../etc")}, {"a/x": file()}))
        entry = walk(union)["/a"]
        assert entry.object is not None
        assert "not followed" in entry.object.problems[0]
        assert "/a/x" in walk(union), "as what was there before"

    def test_of_growing_length(self) -> None:
        long = b"/" + b"/".join([b"n" * 200] * 20)
        stack = [{"a": directory(redirect=long)}] + [{long.decode()[1:]: directory(redirect=long)} for _ in range(30)]
        assert "/a" in seen(Union(layers(*stack)))

    def test_multiplying_names_has_an_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten names in each of twelve layers, each of them all that is below: 10 ** 12 paths."""
        monkeypatch.setattr(union_module, "MAX_REDIRECTED", 5000)
        problems: list[str] = []
        bomb = {f"d/{name}": directory(redirect=b"/d") for name in "0123456789"}
        union = Union(layers(*[bomb] * 12), on_problem=lambda _, problem: problems.append(problem))
        count = sum(1 for _ in union.walk(history=False))
        assert count < 20_000
        assert any("redirects" in one for one in problems)

    def test_data_only_layers(self) -> None:
        top, data = layers(
            {"a": file(metacopy=b"", redirect=b"/obj/1"), "b": file(metacopy=b"", redirect=b"/obj/2")},
            {"obj/1": file()},
        )
        found = walk(Union([top], data=[data]))
        assert set(found) == {"/", "/a", "/b"}
        assert found["/a"].object is not None
        assert found["/a"].object.data == (1, b"obj/1")
        assert found["/b"].object is not None
        assert found["/b"].object.data is None
        assert found["/b"].object.problems


class TestFuse:
    def test_names_that_are_whiteouts(self) -> None:
        made = layers({".wh.a": file(0), "d/.wh..wh..opq": file(0), "d/new": file()}, {"a": file(), "d/old": file()})
        assert seen(Union(made, dialect=Dialect(fuse=True))) == {"/", "/d", "/d/new"}
        found = walk(Union(made, dialect=Dialect(fuse=True)))
        assert found["/a"].hidden_by == (0, b".wh.a")
        assert history(found["/d/old"]) == ["-", "1"]

    def test_are_names_like_others_to_a_kernel(self) -> None:
        made = layers({".wh.a": file(0), "d/.wh..wh..opq": file(0)}, {"a": file(), "d/old": file()})
        assert seen(Union(made)) == {"/", "/.wh.a", "/a", "/d", "/d/.wh..wh..opq", "/d/old"}


class TestBounds:
    def test_a_large_directory_is_taken_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = layers(
            {f"d/{number}": file() for number in range(0, 900, 3)} | {"d/7": whiteout(), "d/5/x": file()},
            {f"d/{number}": file() for number in range(900)},
        )
        whole = walk(Union(made))
        monkeypatch.setattr(union_module, "MAX_NAMES", 100)
        parts = walk(Union(made))
        assert parts == whole
        assert list(parts) != list(whole), "it was taken in parts"

    def test_names_beyond_a_part_are_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Endless(WordLayer):
            def names(self, path: bytes) -> Any:
                return (b"%d" % number for number in range(20_000)) if not path else iter(())

            def look(self, path: bytes) -> Node | None:
                return file() if path else directory()

        monkeypatch.setattr(union_module, "MAX_NAMES", 1000)
        tracemalloc.start()
        try:
            count = sum(1 for _ in Union([Endless("endless")]).walk())
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert count == 20_001

    def test_depth(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(union_module, "MAX_DEPTH", 50)
        problems: list[bytes] = []
        deep = {"/".join(["d"] * 200): file()}
        union = Union(layers(deep), on_problem=lambda path, _: problems.append(path))
        assert len(walk(union)) == 51
        assert problems == [b"/d" * 50]

    def test_what_cannot_be_read_is_told_and_costs_no_more_than_itself(self) -> None:
        made = layers({"d/x": file(), "e/y": file()}, {"d/z": file(), "e/y": file()})
        made[0].broken[b"d"] = OSError(5, "Input/output error")
        made[0].broken[b"e/y"] = OSError(13, "Permission denied")
        problems: list[tuple[bytes, str]] = []
        found = walk(Union(made, on_problem=lambda path, problem: problems.append((path, problem))))
        entry = found["/d"].object
        assert entry is not None
        assert entry.problems == ("layer layer0: Input/output error",)
        lower = found["/e/y"].object
        assert lower is not None
        assert lower.place.layer == 1
        assert lower.problems == ("layer layer0: Permission denied",)

    def test_layers_are_asked_only_for_what_they_listed(self) -> None:
        made = layers(*[{f"d/{number}-{name}": file() for name in range(100)} for number in range(20)])
        walk(Union(made))
        assert sum(one.asked for one in made) < 20 * 100 + 20 * 10


def test_layers_without_a_root_show_nothing() -> None:
    made = layers({})
    made[0].nodes.clear()
    assert list(Union(made).walk()) == []
