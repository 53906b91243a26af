"""Memory: the physical image, what makes it analysable, and the memory of single processes.

iomem, ranges              which physical addresses are RAM
source, sources            what can read them: kcore, bpf, crash; devmem is only diagnosed
workers, block             parallel readers in processes of their own, and what they give: blocks with holes
physical, lime             the acquirer `memory.physical` and its format
pageflags, owners, smear   what the image cannot hold: `memory/pages.jsonl`
proof, tasks               whether the image can be analysed, proved on the bytes that passed
symbols, btf, kallsyms     the acquirer `memory.symbols`, and the kernel's description of itself
process/                   the acquirer `memory.process`: ELF cores, and files that have no name any more
"""

from __future__ import annotations
