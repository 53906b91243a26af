"""Containers from disk, without asking a daemon: one package per runtime."""

from __future__ import annotations
