"""Files that only processes still hold: removed ones, and memfds. Shared by all that read processes.

find      finds them through the links of /proc, in a child that may be left behind
archive   writes them into an archive, each once in a run
"""

from __future__ import annotations

from acquirers.nameless.archive import PREFIX, Holder, Recovered, Recovery
from acquirers.nameless.find import DELETED, Nameless, look

__all__ = ["DELETED", "PREFIX", "Holder", "Nameless", "Recovered", "Recovery", "look"]
