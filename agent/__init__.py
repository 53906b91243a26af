"""What becomes of what was read, and how the agent gets to the machine."""

from __future__ import annotations

import sys

__version__ = "0.1.0"

# An examined machine is not written to, and byte code beside the sources would be a write.
sys.dont_write_bytecode = True
