"""Runs in a guest: reads all RAM through one source, argv[1], and writes the digest of every page into argv[2].

Records of 16 bytes, little-endian: address u64, blake2b of 8 bytes; of what cannot be read the address and then zeros.
The last page of a range may be a part of one. Prints JSON lines: the survey's candidates, then `{"own": [[frame,
count], …]}`: what it reads into lies in the memory that it reads, and is never what it was.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys

from acquirers.host import Host, Mode
from acquirers.memory import footprint, sources
from acquirers.memory.block import PAGE

_STEP = 1 << 20
FAILED = bytes(8)


def main(name: str, output: str) -> None:
    """All of it."""
    survey = sources.survey(Host(Mode.HOST))
    for one in survey.candidates:
        said = {"name": one.name, "usable": one.source is not None, "reason": one.reason}
        sys.stdout.write(json.dumps(said) + "\n")
    (source,) = [one for one in survey.sources if one.name == name]
    reader = source.open()
    data = bytearray(_STEP)
    with open(output, "wb") as file:
        for start, end in survey.ram:
            at = start
            while at < end:
                size = min(_STEP - at % _STEP, end - at)
                try:
                    reader.read(at, memoryview(data)[:size])
                    whole = True
                except OSError:
                    whole = False
                for page in range(at, at + size, PAGE):
                    piece = memoryview(data)[page - at : min(size, page - at + PAGE)]
                    if not whole:
                        try:
                            reader.read(page, piece)
                        except OSError:
                            file.write(struct.pack("<Q", page) + FAILED)
                            continue
                    file.write(struct.pack("<Q", page) + hashlib.blake2b(piece, digest_size=8).digest())
                at += size
    sys.stdout.write(json.dumps({"own": [[span.start, span.size] for span in footprint.frames([])]}) + "\n")
    reader.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
