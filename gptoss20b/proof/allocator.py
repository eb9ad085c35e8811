"""PyTorch's CUDA caching allocator, simulated on recorded allocations: the bytes that it reserves on one GPU.

Rules from PyTorch's source (c10/cuda/CUDACachingAllocator.cpp): sizes are rounded up to 512 bytes. Up to 1 MiB
come from segments of 2 MiB, below 10 MiB from segments of 20 MiB, others from segments of their size rounded up to
2 MiB. The smallest free block that fits is taken, and split where the rest is worth it. With expandable segments, each
of the two pools is one range of addresses that grows by pages of 2 or 20 MiB.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 1 << 20
_SMALL_LIMIT, _MEDIUM_LIMIT = MIB, 10 * MIB
_SMALL_SEGMENT, _MEDIUM_SEGMENT, _LARGE_MULTIPLE = 2 * MIB, 20 * MIB, 2 * MIB
_SMALLEST_REST = {True: 512, False: MIB}


@dataclass
class _Block:
    address: int
    size: int
    small: bool
    free: bool = True
    before: _Block | None = None
    after: _Block | None = None


class _Pool:
    """Free blocks of one pool, in order of size, then of address."""

    def __init__(self) -> None:
        self.order: list[tuple[int, int]] = []
        self.blocks: dict[int, _Block] = {}

    def add(self, block: _Block) -> None:
        block.free = True
        bisect.insort(self.order, (block.size, block.address))
        self.blocks[block.address] = block

    def remove(self, block: _Block) -> None:
        block.free = False
        del self.order[bisect.bisect_left(self.order, (block.size, block.address))]
        del self.blocks[block.address]

    def best_fit(self, size: int) -> _Block | None:
        index = bisect.bisect_left(self.order, (size, -1))
        return self.blocks[self.order[index][1]] if index < len(self.order) else None


class CachingAllocator:
    """The state of the allocator.

    Attributes:
        live_bytes: allocated now.
        reserved_bytes: taken from the GPU now; the simulation never gives any back.
        peak_live_bytes: the highest live_bytes.
    """

    def __init__(self, expandable_segments: bool) -> None:
        self.expandable = expandable_segments
        self.live_bytes = self.reserved_bytes = self.peak_live_bytes = 0
        self._pools = {True: _Pool(), False: _Pool()}
        self._last: dict[bool, _Block | None] = {True: None, False: None}
        # Pools far apart, so that their blocks are never neighbours.
        self._next_address = {True: 0, False: 1 << 60}
        self._allocated: dict[int, _Block] = {}

    def allocate(self, key: int, size: int) -> None:
        """Allocate ``size`` bytes, a multiple of 512, under a key."""
        small = size <= _SMALL_LIMIT
        pool = self._pools[small]
        block = pool.best_fit(size) or self._grow(size, small)
        pool.remove(block)
        rest = block.size - size
        if rest >= _SMALLEST_REST[small or self.expandable] and rest > 0:
            tail = _Block(block.address + size, rest, small, before=block, after=block.after)
            if block.after is not None:
                block.after.before = tail
            if self._last[small] is block:
                self._last[small] = tail
            block.size, block.after = size, tail
            pool.add(tail)
        self._allocated[key] = block
        self.live_bytes += block.size
        self.peak_live_bytes = max(self.peak_live_bytes, self.live_bytes)

    def release(self, key: int) -> None:
        """Free an allocation, and merge its block with free neighbours."""
        block = self._allocated.pop(key)
        self.live_bytes -= block.size
        pool = self._pools[block.small]
        if block.after is not None and block.after.free:
            pool.remove(block.after)
            self._merge(block, block.after)
        if block.before is not None and block.before.free:
            before = block.before
            pool.remove(before)
            self._merge(before, block)
            block = before
        pool.add(block)

    def _merge(self, first: _Block, second: _Block) -> None:
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        if self._last[first.small] is second:
            self._last[first.small] = first

    def _grow(self, size: int, small: bool) -> _Block:
        """Reserve more memory, and return a free block of at least ``size`` bytes."""
        pool, last = self._pools[small], self._last[small]
        if self.expandable:
            page = _SMALL_SEGMENT if small else _MEDIUM_SEGMENT
            # A free block at the end of the range needs only the difference.
            missing = size - (last.size if last is not None and last.free else 0)
            segment = -(-missing // page) * page
        elif small:
            segment = _SMALL_SEGMENT
        else:
            segment = _MEDIUM_SEGMENT if size < _MEDIUM_LIMIT else -(-size // _LARGE_MULTIPLE) * _LARGE_MULTIPLE
        self.reserved_bytes += segment
        block = _Block(self._next_address[small], segment, small)
        self._next_address[small] += segment
        if self.expandable and last is not None:
            last.after, block.before = block, last
            self._last[small] = block
            pool.add(block)
            if last.free:
                pool.remove(last)
                pool.remove(block)
                self._merge(last, block)
                pool.add(last)
                return last
            return block
        self._last[small] = block
        pool.add(block)
        return block


def peak_reserved_bytes(events: Iterable[tuple[int, int]], expandable_segments: bool) -> int:
    """Replay allocations (key, bytes) and releases (key, negative bytes), and return the bytes reserved at the end."""
    allocator = CachingAllocator(expandable_segments)
    for key, size in events:
        if size > 0:
            allocator.allocate(key, size)
        else:
            allocator.release(key)
    return allocator.reserved_bytes
