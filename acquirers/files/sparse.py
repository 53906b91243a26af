"""Files with holes: the map of a GNU sparse member, format 1.0.

GNU tar manual, "Storing Sparse Files", "PAX Format, Version 1.0": the content begins with a map of decimal numbers, one
to a line: how many extents there are, then offset and length of each. The map is filled with zeros up to a whole block
and is followed by the bytes of the extents without anything between them. A file that ends in a hole has a last extent
of no length at its end; a file that is one hole has nothing else. `GNU.sparse.*` records before it say so (`pax`).
"""

from __future__ import annotations

from collections.abc import Sequence

from acquirers.files import pax


def stored_size(extents: Sequence[tuple[int, int]], size: int) -> int:
    """The sum of the extents. Raises `ValueError` when they are not ascending and apart inside `size`."""
    end = stored = 0
    for offset, length in extents:
        if offset < end or length < 0:
            raise ValueError(f"the extent at {offset}, of {length} bytes, comes after {end}")
        end = offset + length
        stored += length
    if end > size:
        raise ValueError(f"the extents end at {end}, the file at {size}")
    return stored


def sparse_map(extents: Sequence[tuple[int, int]], size: int) -> bytes:
    """The map of a file with holes, padded to a whole block."""
    pieces = [extent for extent in extents if extent[1]]
    if not pieces or sum(pieces[-1]) < size:
        pieces.append((size, 0))
    text = b"%d\n" % len(pieces) + b"".join(b"%d\n%d\n" % piece for piece in pieces)
    return text + pax.padding(len(text))
