"""Where the program starts: what needs nothing is answered before anything is imported."""

from __future__ import annotations

import sys

from agent import __version__


def main() -> int:
    """The command line of this process; its exit code (DESIGN 4.1)."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"impound {__version__}\n")
        return 0
    try:
        from agent.cli import main as run
    except (ImportError, OSError) as error:
        # Too few descriptors, too little memory, a file that changes beneath: nothing has begun.
        sys.stderr.write(f"impound: cannot start here: {' '.join(str(error).split())[:400]}\n")
        return 3
    return run()
