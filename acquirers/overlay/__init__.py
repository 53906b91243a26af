"""Overlay layers read without a mount: what a container sees, which layer each of it is from, and what lies hidden.

`Union` merges layers as the kernel's overlayfs does; `DirectoryLayer` is one of them as a real directory. Markers
(whiteouts, opaque directories, redirects, metadata-only copies) are read by `markers`.
"""

from __future__ import annotations

from acquirers.overlay.directory import DirectoryLayer, Handles
from acquirers.overlay.layer import Layer, Node, Place
from acquirers.overlay.markers import Dialect
from acquirers.overlay.union import Entry, Object, Union, Version

__all__ = ["Dialect", "DirectoryLayer", "Entry", "Handles", "Layer", "Node", "Object", "Place", "Union", "Version"]
