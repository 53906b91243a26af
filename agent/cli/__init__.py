"""The command line: one file per verb, imported only when it is called."""

from __future__ import annotations

from agent.cli.main import main

__all__ = ["main"]
