"""Reading a machine faithfully. The ground floor of the house: nothing here imports `agent`."""

from __future__ import annotations
