"""The block pool of a modelled replica: vLLM's rules for paged KV blocks and prefix caching.

Rules (vLLM V1, `v1/core/block_pool.py` and `kv_cache_manager.py`; confirmed on captured events):
- block 0 is a null block that nobody gets, so `blocks - 1` are usable;
- a block has a count of the sequences that use it; at zero it joins the tail of the free queue
  and keeps its contents; a hit takes it out again; new blocks come from the head. So the queue is
  the LRU order of what nobody uses;
- a sequence frees its blocks last one first: leaves are evicted before their roots;
- contents are forgotten (and a removal is told) only when the block is handed out again;
- a block of equal contents is not merged: each copy is stored, told and removed on its own;
- where there is a slower tier (host memory), it takes the keys that are evicted.

Owns the bookkeeping only; it knows no tokens, no clock and no scheduler. Cost: about 0.3 us a
block for a hit or an allocation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Reference-counted blocks with a free queue and a map from block key to block."""

    def __init__(self, blocks: int, tier_blocks: int = 0) -> None:
        if blocks < 2:
            raise ValueError(f"a pool needs at least 2 blocks (one is the null block): {blocks}")
        self.usable = blocks - 1
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, blocks))
        self._references = [0] * blocks
        self._key_of: list[int | None] = [None] * blocks
        self._cached: dict[int, int] = {}
        self._copies: dict[int, list[int]] = {}
        self._tier_room = tier_blocks
        self._tier: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def free(self) -> int:
        """Blocks that nobody uses, with or without cached contents."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0..1 (what vLLM calls kv_cache_usage_perc)."""
        return 1.0 - len(self._free) / self.usable

    @property
    def cached(self) -> int:
        """Distinct block keys held."""
        return len(self._cached)

    def __contains__(self, key: int) -> bool:
        return key in self._cached

    def lookup(self, keys: Sequence[int], limit: int) -> list[int]:
        """The blocks that hold the leading keys, at most `limit` of them."""
        cached = self._cached
        found: list[int] = []
        for index in range(min(limit, len(keys))):
            block = cached.get(keys[index])
            if block is None:
                break
            found.append(block)
        return found

    def lookup_tier(self, keys: Sequence[int], first: int, limit: int) -> int:
        """How many keys from `first` on lie in the slower tier; they are used now."""
        end, limit = first, min(limit, len(keys))
        while end < limit and keys[end] in self._tier:
            end += 1
        for index in range(first, end):
            self._keep(keys[index])
        return end - first

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of these blocks lie in the free queue."""
        references = self._references
        return sum(1 for block in blocks if references[block] == 0)

    def take(self, blocks: Iterable[int]) -> None:
        """One more user for blocks found by `lookup`."""
        references, free = self._references, self._free
        for block in blocks:
            if references[block] == 0:
                del free[block]
            references[block] += 1

    def allocate(self, count: int, removed: list[int]) -> list[int]:
        """Hand out blocks from the head of the free queue; evicted keys are appended to `removed`.

        The caller has checked `free`; asking for more raises KeyError.
        """
        free, references, key_of = self._free, self._references, self._key_of
        out: list[int] = []
        for _ in range(count):
            block = free.popitem(last=False)[0]
            key = key_of[block]
            if key is not None:
                self._keep(key)
                self._forget(block, key)
                removed.append(key)
            references[block] = 1
            out.append(block)
        return out

    def store(self, block: int, key: int) -> None:
        """The block is full now and holds the contents named by `key`."""
        self._key_of[block] = key
        if self._cached.setdefault(key, block) != block:
            self._copies.setdefault(key, []).append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """A sequence leaves: one user less each, the last block first."""
        references, free = self._references, self._free
        for block in reversed(blocks):
            references[block] -= 1
            if references[block] == 0:
                free[block] = None

    def clear(self) -> bool:
        """Forget all contents. Refused (False) while any block is in use, as vLLM does."""
        if len(self._free) != self.usable:
            return False
        self._cached.clear()
        self._copies.clear()
        self._key_of = [None] * (self.usable + 1)
        return True

    def check_invariants(self) -> None:
        """Raise AssertionError when the books disagree. For tests; O(blocks)."""
        for block in range(1, self.usable + 1):
            used = self._references[block] > 0
            assert used != (block in self._free), f"block {block}: used and free"
            key = self._key_of[block]
            if key is not None:
                holders = [self._cached[key], *self._copies.get(key, [])]
                assert block in holders, f"block {block} is not found under its key"
        assert 0 not in self._free and self._references[0] == 0, "the null block was handed out"
        held = sum(1 + len(self._copies.get(key, [])) for key in self._cached)
        assert held == sum(key is not None for key in self._key_of), "a key without a block"

    def _keep(self, key: int) -> None:
        """The tier holds the key, as its most recently used one."""
        if self._tier_room:
            if key not in self._tier and len(self._tier) == self._tier_room:
                self._tier.popitem(last=False)
            self._tier[key] = None
            self._tier.move_to_end(key)

    def _forget(self, block: int, key: int) -> None:
        self._key_of[block] = None
        copies = self._copies.get(key)
        if self._cached[key] != block:
            assert copies is not None
            copies.remove(block)
        elif copies:
            self._cached[key] = copies.pop(0)
        else:
            del self._cached[key]
        if copies is not None and not copies:
            del self._copies[key]
