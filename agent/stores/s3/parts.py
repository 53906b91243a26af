"""How large the parts of an object are.

S3 takes 10,000 parts of 5 MiB to 5 GiB, the last one of any size (Amazon S3 User Guide, "Multipart upload limits").
Nothing goes beyond part 9,900, so that nothing that is added later meets that limit. Where the size of a stream is not
known its parts grow, up to 64 MiB:

    parts     1 - 400     8 MiB      3.1 GiB
            401 - 800    16 MiB      9.4 GiB together
            801 - 1500   32 MiB     31.3 GiB
           1501 - 9900   64 MiB    556   GiB
"""

from __future__ import annotations

from itertools import accumulate

import msgspec

MIB = 1 << 20
MAX_PARTS = 9_900
SMALLEST = 5 * MIB
"""What S3 wants of every part but the last."""
LARGEST = 64 * MIB
"""Of what grows by itself. An estimate may ask for more."""

_GROWING = ((400, 8 * MIB), (400, 16 * MIB), (700, 32 * MIB), (8_400, 64 * MIB))
_EXPECTED_PARTS = 9_500
_MARGIN_PERCENT = 105


class Schedule(msgspec.Struct, frozen=True):
    """Sizes of the parts of one object."""

    steps: tuple[tuple[int, int], ...]
    """(so many parts, of so many bytes each), in order."""

    @property
    def capacity(self) -> int:
        """Bytes that fit."""
        return sum(count * size for count, size in self.steps)

    @property
    def largest(self) -> int:
        """Bytes of the largest part."""
        return max(size for _, size in self.steps)

    def size(self, number: int) -> int:
        """Bytes of part `number` (from 1); 0 for one that there is not."""
        ends = accumulate(count for count, _ in self.steps)
        return next((size for end, (_, size) in zip(ends, self.steps, strict=True) if number <= end), 0)


def is_small(estimate: int | None) -> bool:
    """Whether a stream is expected to be about one part: a manifest, a log."""
    return estimate is not None and estimate <= SMALLEST


def schedule(estimate: int | None, most: int) -> Schedule:
    """Parts for a stream of about `estimate` bytes, None where that is not known. No part is larger than `most` bytes.

    Raises `ValueError` for a `most` below 5 MiB.
    """
    most = most // MIB * MIB
    if most < SMALLEST:
        raise ValueError(f"parts of at most {most} bytes are smaller than S3 takes")
    if is_small(estimate):
        return Schedule(((MAX_PARTS, SMALLEST),))
    if estimate is None:
        return Schedule(tuple((count, min(size, most)) for count, size in _GROWING))
    wanted = -(-estimate * _MARGIN_PERCENT // (100 * _EXPECTED_PARTS))
    size = max(_GROWING[0][1], -(-wanted // MIB) * MIB)
    return Schedule(((MAX_PARTS, min(size, most)),))
