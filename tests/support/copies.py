"""A copy-on-write copy of this very system, for what changes it: all that was written is seen, and goes with it."""

from __future__ import annotations

COPY = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work none /mnt/root
mount -t proc proc /mnt/root/proc
mount --bind /dev /mnt/root/dev
"""
"""The beginning of a script for sh: the copy is /mnt/root, and what it has that the system has not /mnt/upper."""
IN_ITS_OWN = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh")
"""How to run such a script: what it mounts and starts ends with it."""
