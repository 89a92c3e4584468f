"""What the engines themselves say they hold, by replica. Floor 3: no clock, no I/O.

Owns the tree that engine events fill (`_core.kv_events`), which replicas are trusted, and what is
being computed but not yet reported. A replica that is not trusted is not looked at: its hits come
from the approximate view (`view.CacheView` mixes both, in tokens). Never promises a block that no
event and no request under way stands for.

Engines cut blocks of their own size, so a request has one chain of keys for each distinct size
among the trusted replicas. A replica serves one base model under whatever names, and the filters
keep others away: the model is no part of these keys, adapter and salt are.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Container
from typing import Final

import msgspec

from warmlane._core import cost
from warmlane._core.hashing import KeyArray, root_key, token_keys
from warmlane._core.kv_events import CLEARED, Intake
from warmlane._core.radix import RadixTree
from warmlane._core.trust import Trust
from warmlane.router.pool import Pool, Replica
from warmlane.router.types import LoadSnapshot, Request

log = logging.getLogger("warmlane.view")

# A prompt's blocks are reported about 4 ms after the step that computed them (9 ms at p95 on a
# loaded machine, measured on vLLM 0.32); until then, and no longer than this, they count as there.
# A small cache may have lost them again soon after.
SETTLE_S: Final = 0.1
# Whoever waits longer for a first token no longer promises anything.
EXPECT_S: Final = 60.0
# Below this share of promises kept a view is wrong rather than unlucky, as for the watchdog.
DISBELIEF: Final = 0.25
_PRIOR_TOKENS: Final = 16_384.0
_EXPECT_BYTES: Final = 64 * 1024 * 1024
_LEAST_BYTES: Final = 4 * 1024 * 1024
_FEATURE_SETS: Final = 64  # a handful of features has few combinations
# Where `sizes` holds this the replica is trusted and holds nothing.
_EMPTY: Final = -1


class _Soon(msgspec.Struct, eq=False, gc=False):
    """Blocks that one ticket brings to a slot."""

    chains: dict[int, KeyArray]
    slot: int = -1
    keys: KeyArray | None = None
    epoch: int = 0


class ExactView:
    """The exact view of one pool.

    max_bytes: for the tree, and half of it again for what the engines' hashes mean; 0: no cap.
    cpu_worth, disk_worth: what a token cached in a slower tier is worth beside one in the gpu's.
    """

    def __init__(
        self,
        pool: Pool,
        max_replicas: int,
        max_bytes: int = 0,
        *,
        cpu_worth: float = 0.8,
        disk_worth: float = 0.4,
    ) -> None:
        self.pool = pool
        cap = max(max_bytes, _LEAST_BYTES) if max_bytes else 0
        self.tree = RadixTree(cap, max_replicas)
        self.intake = Intake(self.tree, cap // 2)
        # What a calm stream may be applied to without `apply`; it looks at the flags itself.
        self.straight: Intake | None = self.intake
        # How far promises come true. An event is a fact, so a share of misses (blocks evicted
        # while a request waits) takes nothing off: only what is wrong for the most part does.
        self._kept = Trust(max_replicas, prior_tokens=_PRIOR_TOKENS)
        self._doubted: set[int] = set()  # slots with a belief below 1
        self.on_cleared: Callable[[int, bool], None] = _ignore  # slot, engine restarted
        self.trusted = 0  # how many replicas are
        self._worth = (cpu_worth, disk_worth)
        self._why: dict[int, str] = {}  # by slot with a source: why not trusted, "" when trusted
        self._sizes: dict[int, tuple[array[int], tuple[int, ...]]] = {}  # by token features
        self._columns: list[array[int]] = []
        self._ahead = RadixTree(_EXPECT_BYTES, max_replicas)
        self._soon: dict[int, _Soon] = {}  # by ticket
        self._epochs: dict[int, int] = {}  # by slot: what was ahead before is void
        self._due: deque[tuple[float, _Soon]] = deque()
        self._overdue: deque[tuple[float, _Soon]] = deque()
        pool.on_change(self._on_change)
        pool.on_load(self._on_load)

    # What the feed tells

    def open(self, slot: int, why: str = "joining") -> None:
        """A source will fill this slot. Not trusted until `trust`."""
        if self.intake.is_open(slot):
            self.intake.reset(slot)
            self._void(slot)
        else:
            self.intake.open(slot)
        self._why[slot] = why
        self._changed()

    def close(self, slot: int) -> None:
        """No source any more; its blocks are forgotten."""
        self.intake.close(slot)
        self._why.pop(slot, None)
        self._void(slot)
        self._changed()

    def apply(self, slot: int, payload: bytes, budget: int = 0) -> int:
        """One batch of events; flags of `_core.kv_events`."""
        before = self.intake.block_size(slot)
        flags = self.intake.apply(slot, payload, budget)
        if flags & CLEARED:
            self.was_cleared(slot)
        if before != self.intake.block_size(slot):
            self._sizes.clear()
        return flags

    def clear(self, slot: int) -> None:
        """The engine lost its blocks and goes on."""
        self.intake.clear(slot)
        self.was_cleared(slot)

    def was_cleared(self, slot: int) -> None:
        """Its events said so: what was sent there is gone as well."""
        self._void(slot)
        self.on_cleared(slot, False)

    def clear_view(self, slot: int) -> None:
        """Only this view has lost its blocks, not the engine."""
        self.intake.clear(slot)
        self._void(slot)

    def reset(self, slot: int, *, restarted: bool) -> None:
        """Begin from nothing: another life of the engine, or one that has to be heard again."""
        self.intake.reset(slot)
        self._void(slot)
        self._sizes.clear()
        if restarted:
            self.on_cleared(slot, True)

    def trust(self, slot: int) -> bool:
        """Its events are complete from here on. True: they were not before."""
        return self._set_why(slot, "")

    def distrust(self, slot: int, why: str) -> bool:
        """Something was or may be missed. True: this is news."""
        return self._set_why(slot, why)

    def why(self, slot: int) -> str | None:
        """ "" while the exact view decides for this replica, else why not; None: no source."""
        return self._why.get(slot)

    def _set_why(self, slot: int, why: str) -> bool:
        if self._why.get(slot) in (None, why):
            return False
        self._why[slot] = why
        self._changed()
        replica = self.pool.replicas[slot]
        log.log(
            logging.WARNING if why else logging.INFO,
            'event=view pool=%s replica=%s view=%s why="%s"',
            self.pool.name,
            "" if replica is None else replica.name,
            "approximate" if why else "exact",
            why,
        )
        return True

    # Per decision

    def decides(self, slot: int, features: int = 0) -> bool:
        """This replica's hits come from here, for a request whose ids need these features."""
        sizes, _ = self._sizes_for(features)
        return slot < len(sizes) and sizes[slot] != 0

    def hits(
        self,
        request: Request,
        adapter: str,
        booked: array[int] | None,
        block_tokens: float,
        factors: array[float],
    ) -> tuple[array[int], dict[int, KeyArray]]:
        """Hit tokens by slot, 'i', and the request's chains by block size.

        booked: what the approximate view found, blocks of `block_tokens`; it stays, times
        `factors`, where a replica is not trusted.
        """
        tokens = request.tokens
        assert tokens is not None, "the caller looks first"
        sizes, distinct = self._sizes_for(request.token_features)
        gpu, cpu, far, soon, out = self._columns
        if booked is None:
            cost.whole_tokens(gpu, 0.0, factors, out)
        else:
            cost.whole_tokens(booked, block_tokens, factors, out)
        root = root_key("", adapter, request.salt)
        chains: dict[int, KeyArray] = {}
        for size in distinct:
            if size == _EMPTY:
                cost.tier_tokens(gpu, cpu, far, soon, sizes, size, 0, 0.0, 0.0, out)
                continue
            keys = chains[size] = token_keys(root, tokens, size)
            self.tree.match(keys, gpu, cpu, far)
            self._ahead.match_one_tier(keys, soon)
            # The last token of a prompt is computed in any case: a hit is (n - 1) // size blocks.
            limit = max(0, (len(tokens) // 4 - 1) // size)
            cost.tier_tokens(gpu, cpu, far, soon, sizes, size, limit, *self._worth, out)
        for slot in self._doubted:
            if slot < len(sizes) and sizes[slot]:
                out[slot] = int(out[slot] * self.belief(slot))
        return out, chains

    def belief(self, slot: int) -> float:
        """What its promises are multiplied by: 1 unless most of them lastingly do not come true."""
        factor = self._kept.factors[slot]
        return factor if factor < DISBELIEF else 1.0

    def answered(
        self, slot: int, predicted: float, cached: int, prompt_tokens: float, now: float
    ) -> None:
        """An answer to a request whose hit was predicted here."""
        self._kept.answered(slot, predicted, cached, prompt_tokens, now)
        if self.belief(slot) < 1.0:
            self._doubted.add(slot)
        else:
            self._doubted.discard(slot)

    def tiers(self, request: Request, adapter: str, slot: int) -> tuple[int, int, int]:
        """Tokens that one replica holds in gpu; gpu or cpu; any tier. For `explain`."""
        size = self._sizes_for(request.token_features)[0][slot]
        if size <= 0 or request.tokens is None:
            return 0, 0, 0
        gpu, cpu, far, _, _ = self._columns
        keys = token_keys(root_key("", adapter, request.salt), request.tokens, size)
        self.tree.match(keys, gpu, cpu, far)
        return gpu[slot] * size, cpu[slot] * size, far[slot] * size

    def _sizes_for(self, features: int) -> tuple[array[int], tuple[int, ...]]:
        """Block size by slot where the exact view decides, _EMPTY where it holds nothing, else 0;
        and the distinct ones but 0.

        features: what must be proven of a replica's tokenizer before these ids mean anything.
        """
        found = self._sizes.get(features)
        if found is not None and len(found[0]) == len(self.pool):
            return found
        sizes = array("i", bytes(4 * len(self.pool)))
        for slot, why in self._why.items():
            replica = self.pool.replicas[slot] if slot < len(sizes) else None
            if not why and replica is not None and not features & ~replica.token_features:
                sizes[slot] = self._size_of(slot) or _EMPTY
        if len(self._sizes) >= _FEATURE_SETS:
            self._sizes.clear()
        made = self._sizes[features] = (sizes, tuple(set(sizes) - {0}))
        if not self._columns or len(self._columns[0]) != len(sizes):
            self._columns = [array("i", bytes(4 * len(sizes))) for _ in range(5)]
        return made

    # Blocks that requests under way will bring

    def opened(self, ticket: int, chains: dict[int, KeyArray]) -> None:
        """A decision was made for a prompt with these chains."""
        self._soon[ticket] = _Soon(chains)

    def sent(self, ticket: int, slot: int, now: float) -> None:
        """The request went there: its blocks will be there."""
        soon = self._soon.get(ticket)
        if soon is None or soon.slot == slot:
            return
        self._take_back(soon)
        keys = soon.chains.get(self._size_of(slot)) if slot in self._why else None
        soon.slot, soon.epoch = slot, self._epochs.get(slot, 0)
        if keys is not None and len(keys):
            self._ahead.insert(slot, keys)
            soon.keys = keys
            self._overdue.append((now + EXPECT_S, soon))

    def settled(self, ticket: int, now: float) -> None:
        """First token or end: the engine has told, or will at once."""
        soon = self._soon.pop(ticket, None)
        if soon is None or soon.keys is None:
            return
        if self._told(soon):
            self._take_back(soon)
        else:
            self._due.append((now + SETTLE_S, soon))

    def expire(self, now: float) -> None:
        """Promises end that are over, or that events have made facts since: a fact can be gone."""
        while self._due and (self._due[0][0] <= now or self._told(self._due[0][1])):
            self._take_back(self._due.popleft()[1])
        while self._overdue and self._overdue[0][0] <= now:
            self._take_back(self._overdue.popleft()[1])

    def _told(self, soon: _Soon) -> bool:
        """Events have reported every block that the ticket brings."""
        keys, slot = soon.keys, soon.slot
        if keys is None:
            return True
        gpu, cpu, far = self._columns[:3]
        self.tree.match(keys, gpu, cpu, far)
        return slot >= len(gpu) or gpu[slot] == len(keys)

    def keep_only(self, tickets: Container[int], now: float) -> None:
        """Tickets that went by age bring nothing: nobody tells their end."""
        if len(self._soon) > self.pool.ledger.open_tickets:
            for ticket in [each for each in self._soon if each not in tickets]:
                self.settled(ticket, now)

    def _size_of(self, slot: int) -> int:
        """Block size: as its events say, before the first one as its metrics say; 0: unknown."""
        size = self.intake.block_size(slot)
        replica = self.pool.replicas[slot]
        load = None if replica is None else replica.load
        return size or (0 if load is None else load.block_size or 0)

    def _take_back(self, soon: _Soon) -> None:
        keys, soon.keys = soon.keys, None
        if keys is not None and soon.epoch == self._epochs.get(soon.slot, 0):
            self._ahead.remove(soon.slot, keys)

    def epoch(self, slot: int) -> int:
        """Changes whenever all that was known of a slot is void."""
        return self._epochs.get(slot, 0)

    def _void(self, slot: int) -> None:
        """Whatever is under way there brings nothing: it was promised of another cache."""
        self._epochs[slot] = self._epochs.get(slot, 0) + 1
        self._kept.reset(slot)
        self._doubted.discard(slot)
        self._ahead.clear(slot)

    # Between decisions

    def maintain(self, now: float, budget_us: int) -> bool:
        """Sweeps, and promises that are over; True while work remains."""
        self.expire(now)
        remains = self.tree.maintain(budget_us)
        return self._ahead.maintain(budget_us) or remains

    def is_free(self, slot: int) -> bool:
        """Nothing of the replica is left."""
        return self.tree.is_free(slot) and self._ahead.is_free(slot)

    @property
    def bytes_used(self) -> int:
        """Memory of the tree, the hashes and what is under way."""
        return self.tree.bytes_used + self.intake.map_bytes + self._ahead.bytes_used

    def _changed(self) -> None:
        self._sizes.clear()
        self.trusted = sum(1 for why in self._why.values() if not why)
        for replica in self.pool:
            why = self._why.get(replica.slot)
            replica.exact = None if why is None else not why

    def _on_change(self, event: str, replica: Replica) -> None:
        if event == "removed":
            slot = replica.slot
            if slot in self._why:
                self.close(slot)
            self._ahead.clear(slot)
        self._sizes.clear()

    def _on_load(self, replica: Replica, previous: LoadSnapshot | None) -> None:
        load = replica.load
        assert load is not None, "told about a snapshot"
        if previous is None or previous.block_size != load.block_size:
            self._sizes.clear()
        fell_asleep = load.asleep and not (previous is not None and previous.asleep)
        # Sleep empties the cache; its event comes with the first step after waking.
        if fell_asleep and self.intake.is_open(replica.slot):
            self.clear(replica.slot)


def _ignore(slot: int, restarted: bool) -> None:
    del slot, restarted
