"""A private Docker 29: images and writable layers are kept by containerd.

No distribution that the tests run on has it. They look for `dockerd`, `containerd` and `containerd-shim-runc-v2` in the
directory that IMPOUND_DOCKER29 names; in a Go module of its own that requires `github.com/moby/moby/v2`,

    CGO_ENABLED=0 go build -tags exclude_graphdriver_btrfs -o DIR/dockerd github.com/moby/moby/v2/cmd/dockerd
    CGO_ENABLED=0 go build -o DIR/NAME github.com/containerd/containerd/v2/cmd/NAME

make all three. Standard library only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.rigs.docker import PrivateDocker
from tests.rigs.docker import why_not as why_no_docker

VARIABLE = "IMPOUND_DOCKER29"
_NEEDED = ("dockerd", "containerd", "containerd-shim-runc-v2")

# An older runc has no time namespaces, and does not know the version of the configuration.
_RUNC = """#!{python}
import json, os, sys
if "--bundle" in sys.argv:
    path = os.path.join(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
    with open(path) as file:
        config = json.load(file)
    config["ociVersion"] = "1.0.2"
    config["linux"]["namespaces"] = [one for one in config["linux"]["namespaces"] if one["type"] != "time"]
    with open(path, "w") as file:
        json.dump(config, file)
os.execvp("runc", ["runc", *sys.argv[1:]])
"""


def why_not() -> str:
    """Why no Docker 29 can run here; empty when it can."""
    if reason := why_no_docker():
        return reason
    programs = os.environ.get(VARIABLE, "")
    if not programs:
        return f"no Docker 29: {VARIABLE} names no directory with its programs"
    missing = [name for name in _NEEDED if not os.access(Path(programs) / name, os.X_OK)]
    return f"{VARIABLE} has no {', '.join(missing)}" if missing else ""


def docker29(directory: Path, *, as_default: bool = False) -> PrivateDocker:
    """Not started yet. `directory` is there."""
    runc = directory / "runc"
    runc.write_text(_RUNC.format(python=sys.executable))
    runc.chmod(0o755)
    options = ("--add-runtime", f"older={runc}", "--default-runtime", "older")
    programs = Path(os.environ[VARIABLE])
    return PrivateDocker(directory / "rig", as_default=as_default, driver="", options=options, programs=programs)
