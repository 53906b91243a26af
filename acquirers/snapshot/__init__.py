"""The sub-second first look: what a machine is doing before anything slow is read.

`processes` is the acquirer of processes and sockets, `executables` its second half, which waits until memory is taken.
Behind them: `proc` opens /proc, `stream` puts the lines together, `reader` (one process) and `netns` (one namespace)
read in a child that `watch` can leave behind, `notes` is what they tell besides the text. `process_files`,
`socket_tables` and `container_id` are the parsers, `holdings` keeps executables open, `encode` makes JSON out of
hostile bytes, `gaps` counts what was refused.
"""

from __future__ import annotations

from acquirers.snapshot.executables import Executables
from acquirers.snapshot.processes import Processes

__all__ = ["Executables", "Processes"]
