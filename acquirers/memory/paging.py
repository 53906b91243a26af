"""The kernel's own page tables, and the two fixed windows through which it sees RAM: the direct map and its image.

x86-64 (Intel SDM 3A, 4.5): 4 or 5 levels of 512 entries; bit 0 present, bit 7 a large page, address in bits 12 to 51,
less the bit by which SEV marks encrypted memory. arm64 (Arm ARM, D8.3): bit 0 valid, bit 1 a table, or at the last
level a page; the granule is the kernel's page size. Every entry is hostile: a walk has as many steps as levels, and
each step must stay in RAM. The arm64 half is written from the manual and tested on made-up tables only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from acquirers.memory.ranges import Ranges
    from acquirers.memory.vmcoreinfo import Vmcoreinfo

WORD = 1 << 64
X86_IMAGE = 0xFFFF_FFFF_8000_0000
"""`__START_KERNEL_map`, arch/x86/include/asm/page_64_types.h: where the x86-64 kernel maps its image."""
X86_IMAGE_SIZE = 1 << 30

X86, ARM64 = "x86_64", "aarch64"


class WalkError(ValueError):
    """The tables do not lead anywhere: one line for a person."""


class Layout(msgspec.Struct, frozen=True):
    """How the kernel's virtual addresses become physical without page tables."""

    machine: str
    ram: Ranges
    image: Ranges
    """Physical addresses of the kernel image, from /proc/iomem."""
    image_shift: int | None
    """Virtual less physical address of the image, modulo 2**64; None if nobody says."""
    direct_map: int | None
    """Where physical 0 is mapped, modulo 2**64."""

    def direct(self, address: int, size: int = 1) -> int | None:
        """The physical address of `size` bytes at a virtual address of the direct map; None if that is no RAM."""
        if self.direct_map is None:
            return None
        found = (address - self.direct_map) % WORD
        return found if self.ram.covers(found, found + size) else None

    def of_image(self, address: int, size: int = 1) -> int | None:
        """The same for an address in the kernel image, e.g. of a symbol."""
        if self.image_shift is None or (self.machine == X86 and not 0 <= address - X86_IMAGE < X86_IMAGE_SIZE):
            return None
        found = (address - self.image_shift) % WORD
        return found if self.ram.covers(found, found + size) else None

    def physical(self, address: int, size: int = 1) -> int | None:
        """The same for a pointer that may lead to either."""
        found = self.of_image(address, size)
        if found is not None and (self.machine == X86 or self.image.covers(found, found + size)):
            return found
        return self.direct(address, size)

    def image_address(self, physical: int) -> int | None:
        """The virtual address at which the kernel image has what lies at `physical`."""
        return None if self.image_shift is None else (physical + self.image_shift) % WORD


def image_shift(
    machine: str, info: Vmcoreinfo | None, symbols: Mapping[str, int], image: Ranges
) -> tuple[int | None, str]:
    """Virtual less physical address of the kernel image, and where that is known from.

    Without VMCOREINFO: the symbol `_text` lies at the start of "Kernel code" in /proc/iomem.
    """
    if info is not None:
        if machine == X86 and "phys_base" in info.numbers:
            return (X86_IMAGE - info.numbers["phys_base"]) % WORD, "VMCOREINFO phys_base"
        if machine == ARM64 and "kimage_voffset" in info.numbers:
            return info.numbers["kimage_voffset"] % WORD, "VMCOREINFO kimage_voffset"
    known = {**(info.symbols if info else {}), **symbols}
    text = known.get("_text") or known.get("_stext")
    spans = list(image)
    if text and spans:
        return (text - spans[0].start) % WORD, "the start of the kernel's code in /proc/iomem"
    return None, "neither VMCOREINFO nor /proc/kallsyms says where the kernel image was put"


class Paging(msgspec.Struct, frozen=True):
    """The shape of the tables."""

    machine: str
    levels: int
    page_shift: int
    top_bits: int
    """Bits of an address that select the entry of the first table."""
    mask: int
    """Bits of an entry that hold a physical address."""
    wide: int = 0
    """arm64: bits of an address above 47 (52-bit physical addresses), or 0."""

    @property
    def page(self) -> int:
        return 1 << self.page_shift

    @property
    def bits(self) -> int:
        """Bits of an address that each further table resolves: entries have 8 bytes."""
        return self.page_shift - 3

    @property
    def root_size(self) -> int:
        return 8 << self.top_bits

    def index(self, level: int, address: int) -> int:
        """Which entry of the table at `level`, 0 being the root's."""
        width = self.top_bits if level == 0 else self.bits
        return address >> self.shift(level) & ((1 << width) - 1)

    def shift(self, level: int) -> int:
        """An entry at `level` stands for `1 << shift` bytes."""
        return self.page_shift + self.bits * (self.levels - 1 - level)

    def present(self, entry: int) -> bool:
        return bool(entry & 1)

    def is_leaf(self, level: int, entry: int) -> bool:
        """The entry names memory, not a further table. Raises `WalkError` for what may not stand there."""
        last = level == self.levels - 1
        if self.machine == ARM64:
            if last and not entry & 2:
                raise WalkError(f"entry {entry:#x} of the last table is reserved")
            return last or not entry & 2
        large = bool(entry & 0x80)
        if large and not last and self.shift(level) > 30:
            raise WalkError(f"entry {entry:#x} says that a page has {1 << self.shift(level):#x} bytes")
        return last or large

    def frame(self, entry: int) -> int:
        """The physical address that an entry names: of a table or of a page, whose low bits may hold other things."""
        found = entry & self.mask
        if self.wide and self.page_shift == 16:
            found |= (entry >> 12 & 0xF) << 48
        elif self.wide:
            found |= (entry >> 8 & 0x3) << 50
        return found


def paging(machine: str, info: Vmcoreinfo, page_size: int) -> Paging:
    """The shape of the tables of the kernel that wrote `info`. Raises `WalkError` where it does not say."""
    if machine == X86:
        levels = 5 if info.numbers.get("pgtable_l5_enabled") == 1 else 4
        encrypted = info.numbers.get("sme_mask", 0) % WORD
        return Paging(X86, levels, 12, 9, 0x000F_FFFF_FFFF_F000 & ~encrypted)
    if machine != ARM64:
        raise WalkError(f"page tables of {machine} are not known here")
    built = info.numbers.get("VA_BITS", 0)
    slots = info.numbers.get("TCR_EL1_T1SZ")  # since 5.11: how many bits this processor really has
    used = built if slots is None else 64 - slots
    shift = page_size.bit_length() - 1
    if page_size not in {4096, 16384, 65536} or not 36 <= built <= 52 or not 36 <= used <= built:
        raise WalkError(f"VMCOREINFO says {built} and {used} bits of address with pages of {page_size} bytes")
    bits = shift - 3
    levels = -(-(used - shift) // bits)
    # A kernel built for 52 bits on a processor with 48 keeps the larger first table if that has as many levels: the
    # kernel's half lies at its end, where the bits above 47 select it (arch/arm64/include/asm/pgtable-hwdef.h).
    span = built if -(-(built - shift) // bits) == levels else used
    wide = built == 52 and (shift == 16 or used == 52)
    top = 49 if wide and shift != 16 else 47
    return Paging(ARM64, levels, shift, span - shift - bits * (levels - 1), (2 << top) - (1 << shift), int(wide))


class Step(msgspec.Struct, frozen=True):
    """One entry that a walk used: its physical address, its value, and the level of the table it stands in."""

    address: int
    entry: int
    level: int


class Walk(msgspec.Struct, frozen=True):
    physical: int
    steps: tuple[Step, ...]


def walk(shape: Paging, root: int, address: int, entry_at: Callable[[int], int], ram: Ranges) -> Walk:
    """Translates a virtual address. `entry_at` gives the 8 bytes at a physical address as a number, or raises.

    Raises `WalkError` where an entry is absent or leads out of RAM, and whatever `entry_at` raises.
    """
    table, steps = root, []
    for level in range(shape.levels):
        place = table + 8 * shape.index(level, address)
        if not ram.covers(place, place + 8):
            raise WalkError(f"the table of level {level + 1} at {table:#x} is not in RAM")
        entry = entry_at(place)
        steps.append(Step(place, entry, level))
        if not shape.present(entry):
            raise WalkError(f"no entry for {address:#x} at level {level + 1}, {place:#x}")
        if shape.is_leaf(level, entry):
            low = (1 << shape.shift(level)) - 1
            found = shape.frame(entry) & ~low | address & low
            if found not in ram:
                raise WalkError(f"{address:#x} is mapped to {found:#x}, which is not in RAM")
            return Walk(found, tuple(steps))
        table = shape.frame(entry)
    raise WalkError(f"no page at the end of the tables for {address:#x}")


def census(shape: Paging, root: bytes, ram: Ranges) -> tuple[int, int]:
    """Entries of the first table's kernel half that are present, and those of them that lead out of RAM.

    On arm64 all of swapper_pg_dir is the kernel's.
    """
    entries = [int.from_bytes(root[at : at + 8], "little") for at in range(0, len(root) // 8 * 8, 8)]
    if shape.machine == X86:
        entries = entries[256:]
    present = [entry for entry in entries if shape.present(entry)]
    return len(present), sum(shape.frame(entry) not in ram for entry in present)
