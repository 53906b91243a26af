"""The acquirer `memory.process`: an ELF core of each process, and the files that only processes still hold.

acquirer, chosen         which processes a job means, and the items of each
core                     one core as a stream: who is asked for what, and what is accounted for
examine, maps, pagemap   what is mapped and which of it is present: the plan; nothing is brought back by it
backing                  which files are behind it: devices, shared memory
told                     what comes of that, gathered
threads, notes           registers, and what else the kernel would write of a process that dies
windows, around          `--freeze`: when it stands still, and what is looked at then besides its memory
reading                  the pages, as far as they are still present
elf                      what stands where in the file
files                    removed files and memfds, whole (`acquirers.nameless`)

A core is complete in itself: its section `.impound.pages` (`readelf -p .impound.pages FILE`) says of every area what
was present, swapped out, never touched or lost, as JSON lines, and ends with {"type":"end"}.
"""

from __future__ import annotations

from acquirers.memory.process.acquirer import ProcessMemory

__all__ = ["ProcessMemory"]
