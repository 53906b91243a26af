"""Container logs out of a run's archives: decoded as streams, joined, and merged by time.

`names` tells which member is a log of which container, `inflate` unpacks rotated ones, `jsonfile`, `local` and `cri`
decode the three formats into records and what is damaged between them, `joining` makes whole lines of partial records,
`spool` sorts and merges on disk, `timeline` does all of it for a run. Nothing grows with the logs but files on disk.
"""

from __future__ import annotations
