"""How the agent and its authority get to a machine, and what the controller does there."""

from __future__ import annotations
