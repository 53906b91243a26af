"""Records of any content whatever: nothing is raised, and what is there is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acquirers.base import Reason
from tests.unit.containers.disk import SECRET, Disk, all_gaps, has_logs, has_upper, hex_id, take

if TYPE_CHECKING:
    import pytest

_NAMES = st.sampled_from(
    ["config.v2.json", "hostconfig.json", "mount-id", "init-id", "parent", "lower", "link", "cache-id", "chain-parent"]
)
_CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(str.encode),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["ID", "Name", "Driver", "State", "Config", "MountPoints", "Running", "Pid", "Labels", "x"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(_NAMES, _CONTENTS, max_size=4))
def test_whatever_the_records_say(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, bytes]) -> None:
    disk = Disk(tmp_path_factory.mktemp("disk"))
    (disk.root / "etc/shadow").write_bytes(SECRET)
    disk.container("web")
    places: dict[str, Callable[[], Path]] = {
        "config.v2.json": lambda: disk.docker / "containers" / hex_id("container web") / "config.v2.json",
        "hostconfig.json": lambda: disk.docker / "containers" / hex_id("container web") / "hostconfig.json",
        "lower": lambda: disk.writable("web") / "lower",
        "link": lambda: disk.writable("web") / "link",
        "cache-id": lambda: disk.layerdb / "sha256" / hex_id("chain top") / "cache-id",
        "chain-parent": lambda: disk.layerdb / "sha256" / hex_id("chain top") / "parent",
    }
    for name, content in changes.items():
        places.get(name, lambda name=name: disk.mount_record("web") / name)().write_bytes(content)
    taken = take(disk.host())
    assert any(has_upper(one) for one in taken.values())
    assert any(has_logs(one) for one in taken.values())
    assert Reason.INTERNAL not in {gap.reason for gap in all_gaps(taken)}
