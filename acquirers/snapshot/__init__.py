"""The sub-second first look: what a machine is doing before anything slow is read."""

from __future__ import annotations
