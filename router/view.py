"""What one pool's replicas are believed to hold, in tokens. Floor 3.

Joins the index (blocks by slot), the capacity of each replica, and what answers teach: bytes per
token, and how far real hits fall short of predicted ones. Text prompts and token-id prompts have
chains of different block sizes and an index each; the second is made by the first token-id prompt.
"""

from __future__ import annotations

import logging
from array import array
from typing import Final

from warmlane._core import cost
from warmlane._core.hashing import KeyArray, text_keys
from warmlane._core.journal import Journal
from warmlane._core.runs import RunTree
from warmlane.router.candidates import CandidateColumns
from warmlane.router.config import Index
from warmlane.router.index import BLOCK_BYTES, ApproximateIndex, Keys
from warmlane.router.pool import Pool, Replica
from warmlane.router.prefix import PrefixKey
from warmlane.router.trust import BytesPerToken, Trust
from warmlane.router.types import LoadSnapshot, Request
from warmlane.router.watchdog import Facts

log = logging.getLogger("warmlane.view")

UNITS: Final = ("text", "tokens")
# A share of the index below this part of a replica's cache is worth a warning.
_CLEARLY_SMALL: Final = 0.8
# The learned bytes per token moves the capacity in blocks; below this change a resize is noise.
_RESIZE_SHARE: Final = 0.05
_MAX_FILLER_BLOCKS: Final = 4096  # half a megabyte of generated text in one answer


class CacheView:
    """The approximate view of one pool: what this router itself sent where."""

    def __init__(self, pool: Pool, config: Index, max_replicas: int) -> None:
        self.pool = pool
        self.trust = Trust(max_replicas)
        self.bytes_per_token = BytesPerToken(config.bytes_per_token)
        self._config = config
        self._max_replicas = max_replicas
        self._indexes: dict[str, ApproximateIndex] = {}
        self._hits = array("i")
        self._tokens = array("d")
        self._sized_for = self.bytes_per_token.value
        self._fillers = 0
        self._check_room = False
        self._is_small = False
        self.journal: Journal | None = None  # of what is booked, for other routers
        pool.on_change(self._on_change)
        pool.on_load(self._on_load)

    # Per decision

    def lengths(self, key: PrefixKey) -> tuple[float, float]:
        """Tokens of the prompt, and of one block: estimated where the key counts bytes."""
        if key.unit == "text":
            ratio = self.bytes_per_token.value
            return key.size / ratio, self._config.block_bytes / ratio
        return float(key.size), float(self._config.block_tokens)

    def blocks_of(self, key: PrefixKey) -> array[int] | None:
        """Leading blocks of the chain that each slot holds, 'i'; None when nobody holds any."""
        index = self._indexes.get(key.unit)
        if index is None:
            return None
        hits, size = self._hits, len(self.pool.replicas)
        if len(hits) != size:
            hits = self._hits = array("i", bytes(4 * size))
        return hits if index.match(key.keys, hits) else None

    @property
    def factors(self) -> array[float]:
        """By slot: what a decision multiplies the hits of `blocks_of` by."""
        return self.trust.factors

    def belief(self, slot: int, request: Request) -> float:
        """What a hit told for this slot was multiplied by, in this view or by the decision."""
        del request
        return self.trust.factors[slot]

    def match(self, key: PrefixKey, candidates: CandidateColumns) -> None:
        """Fill `candidates.hit_tokens`."""
        blocks = self.blocks_of(key)
        if blocks is None:
            candidates.hit_tokens = candidates.no_hits
            return
        if len(self._tokens) != len(blocks):
            self._tokens = array("d", bytes(8 * len(blocks)))
        cost.hit_tokens(
            blocks,
            self.block_tokens(key.unit),
            candidates.prompt_tokens,
            self.trust.factors,
            self._tokens,
        )
        candidates.hit_tokens = self._tokens

    def hit_blocks(self, slot: int) -> int:
        """Blocks that the last `match` found there."""
        return self._hits[slot] if slot < len(self._hits) else 0

    def said(self, slot: int, request: Request, adapter: str) -> tuple[str, str]:
        """Which view speaks for this replica, and for `explain` what there is to say about it."""
        del slot, request, adapter
        return "approximate", ""

    def facts(self, replica: Replica) -> Facts:
        """For the watchdog."""
        return Facts(capacity_known=self.capacity_tokens(replica) is not None)

    def text_tree(self) -> RunTree:
        """Who holds which blocks of text."""
        return self._index("text").tree

    @property
    def text_block_bytes(self) -> int:
        """Bytes of a block of text."""
        return self._config.block_bytes

    @property
    def token_block_tokens(self) -> int:
        """Tokens of a block of token ids."""
        return self._config.block_tokens

    # What was sent and answered

    def record(self, slot: int, unit: str, keys: KeyArray) -> None:
        """This prompt was sent there."""
        self.book(slot, unit, keys)
        if self.journal is not None:
            self.journal.chain(slot, unit == "tokens", keys)

    def charge(self, slot: int, unit: str, tokens: float) -> None:
        """Generated tokens whose text nobody kept: they fill the cache and match nothing."""
        self.book_charge(slot, unit, tokens)
        if self.journal is not None and tokens >= 1:
            self.journal.charge(slot, unit == "tokens", int(tokens))

    def book(self, slot: int, unit: str, keys: Keys) -> None:
        """`record` for a prompt that another router sent."""
        index = self._indexes.get(unit)
        (self._index(unit) if index is None else index).record(slot, keys)

    def book_charge(self, slot: int, unit: str, tokens: float) -> None:
        """`charge` for what another router's answer told."""
        blocks = min(int(tokens / self.block_tokens(unit)), _MAX_FILLER_BLOCKS)
        if blocks > 0:
            self._fillers += 1
            filler = text_keys(self._fillers, bytes(16 * blocks), 16)
            self._index(unit).record(slot, filler)

    def learn_length(self, prompt_bytes: int, prompt_tokens: int) -> None:
        """An answer told its prompt's tokens: bytes per token, and with it the capacities."""
        self.bytes_per_token.observe(prompt_bytes, prompt_tokens)
        value = self.bytes_per_token.value
        if abs(value - self._sized_for) > _RESIZE_SHARE * self._sized_for:
            self._sized_for = value
            self.resize()

    # Sizes

    def block_tokens(self, unit: str) -> float:
        """Tokens of one block."""
        if unit == "text":
            return self._config.block_bytes / self.bytes_per_token.value
        return float(self._config.block_tokens)

    def capacity_tokens(self, replica: Replica) -> int | None:
        """KV cache of a replica; None: nobody tells."""
        return self.pool.capacity_tokens(replica)

    @property
    def bytes_used(self) -> int:
        """Memory of the indexes."""
        return sum(index.bytes_used for index in self._indexes.values())

    @property
    def blocks(self) -> int:
        """Distinct blocks in the indexes."""
        return sum(index.blocks for index in self._indexes.values())

    def resize(self) -> None:
        """Capacities anew: the config or bytes per token changed."""
        for replica in self.pool:
            self._resize(replica)

    def room_tokens(self) -> int | None:
        """Cached tokens that the index can follow for each replica of the pool; None: no bound."""
        cap = self._config.max_bytes // len(UNITS)
        if not cap:
            return None
        blocks = cap // BLOCK_BYTES // max(1, sum(1 for _ in self.pool))
        return int(blocks * self.block_tokens("text"))

    # Between decisions

    def is_free(self, slot: int) -> bool:
        """No index still sweeps this slot."""
        return all(index.free(slot) for index in self._indexes.values())

    def maintain(self, budget_us: int) -> bool:
        """Sweep dropped replicas; True while work remains."""
        if self._check_room:
            self._check_room = False
            self._say_room()
        remains = False
        for index in self._indexes.values():
            remains = index.maintain(budget_us) or remains
        return remains

    def _index(self, unit: str) -> ApproximateIndex:
        index = self._indexes.get(unit)
        if index is None:
            text = unit == "text"
            index = ApproximateIndex(
                self._config.max_bytes // len(UNITS),
                self._config.block_bytes if text else 4 * self._config.block_tokens,
                max_replicas=self._max_replicas,
            )
            self._indexes[unit] = index
            for replica in self.pool:
                index.add(replica.slot, self._capacity_blocks(replica, unit))
        return index

    def _say_room(self) -> None:
        """One line when the replicas' caches outgrow the index: it then forgets what they hold."""
        most = max((self.capacity_tokens(replica) or 0 for replica in self.pool), default=0)
        most += self.pool.config.tier_tokens
        room = self.room_tokens()
        small = room is not None and room < _CLEARLY_SMALL * most
        if small and not self._is_small:
            assert room is not None
            log.warning(
                "index pool=%s small=true room_tokens=%d replica_tokens=%d max_bytes=%d needed=%d",
                self.pool.name,
                room,
                most,
                self._config.max_bytes,
                self._config.max_bytes * most // max(1, room),
            )
        self._is_small = small

    def _capacity_blocks(self, replica: Replica, unit: str) -> int:
        tokens = self.capacity_tokens(replica) or self._config.capacity_tokens
        tokens += self.pool.config.tier_tokens  # what is evicted is still worth most of a hit
        return max(1, round(tokens / self.block_tokens(unit)))

    def _resize(self, replica: Replica) -> None:
        for unit, index in self._indexes.items():
            index.set_capacity(replica.slot, self._capacity_blocks(replica, unit))

    def _on_change(self, event: str, replica: Replica) -> None:
        slot = replica.slot
        self._check_room = self._check_room or event in ("added", "removed")
        if event == "added":
            self.trust.reset(slot)
            for unit, index in self._indexes.items():
                index.add(slot, self._capacity_blocks(replica, unit))
        elif event == "removed":
            for index in self._indexes.values():
                index.drop(slot)

    def _on_load(self, replica: Replica, previous: LoadSnapshot | None) -> None:
        load = replica.load
        assert load is not None, "told about a snapshot"
        queries, hits = load.prefix_queries, load.prefix_hits
        if self.trust.scraped(replica.slot, queries, hits, load.taken_at):
            log.info("restart pool=%s replica=%s cache=empty", self.pool.name, replica.name)
            self.trust.reset(replica.slot)
            for index in self._indexes.values():
                index.clear(replica.slot)
        if previous is None and self.capacity_tokens(replica) is None:
            log.warning(
                "capacity pool=%s replica=%s unknown=true assumed_tokens=%d",
                self.pool.name,
                replica.name,
                self._config.capacity_tokens,
            )
        told = (load.num_blocks, load.block_size)
        if previous is None or told != (previous.num_blocks, previous.block_size):
            self._check_room = True
            self._resize(replica)
