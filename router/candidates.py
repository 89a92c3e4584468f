"""The columns that one pool's scorers read, refilled for each decision and never copied. Floor 3.

One object per pool lives as long as the pool: a decision writes a few numbers and lets the ledger's
own columns be read in place. See `interfaces.Candidates` for what each column means.
"""

from __future__ import annotations

from array import array
from typing import Final

from warmlane.router.pool import Pool, Replica

# What one open request weighs in tokens of prefill: a decode step reads its KV cache and costs each
# neighbour about 90 us; over a typical answer of 200 steps that is 18 ms, or 300 to 800 tokens of
# prefill on the engines of policies.md, of which b = 0.3 counts. docs/decisions/default_mix.md.
REQUEST_TOKENS: Final = 128.0
# Cached tokens are worth their own recompute (1), what storing them twice pushes out of the cache
# (DUPLICATE_PRICE), and the delay of those who arrive meanwhile (the mean queue of prefills).
DUPLICATE_PRICE: Final = 1.0
MAX_QUEUE_PRICE: Final = 8.0


class CandidateColumns:
    """Implements `interfaces.Candidates` over a pool and its ledger."""

    __slots__ = (
        "_foreign_prefill",
        "_foreign_requests",
        "_pool",
        "adapter",
        "decode_tokens",
        "hit_price",
        "hit_tokens",
        "kv_usage",
        "mask",
        "model",
        "no_hits",
        "now",
        "out",
        "prefill_tokens",
        "prompt_tokens",
        "replicas",
        "request_tokens",
        "requests",
        "running",
        "scale_tokens",
        "zone",
    )

    def __init__(self, pool: Pool, zone: str = "") -> None:
        self._pool = pool
        ledger = pool.ledger
        self.replicas: list[Replica | None] = pool.replicas
        self.kv_usage = pool.kv_usage
        self.running = ledger.running
        self.decode_tokens = ledger.decode_tokens
        self.requests: array[int] | array[float] = ledger.requests
        self.prefill_tokens = ledger.prefill_tokens
        self._foreign_requests = array("d")
        self._foreign_prefill = array("d")
        self.no_hits = array("d")
        self.hit_tokens = self.no_hits
        self.mask = array("B")
        self.out = array("d")
        self.prompt_tokens = 0.0
        self.scale_tokens = 1.0
        self.hit_price = 1.0
        self.request_tokens = REQUEST_TOKENS
        self.model = self.adapter = ""
        self.now = 0.0
        self.zone = zone

    def __len__(self) -> int:
        return len(self.replicas)

    @property
    def version(self) -> int:
        return self._pool.version

    @property
    def waiting(self) -> array[float]:
        """Prefilling requests of this router and the waiting ones of others; made when asked."""
        foreign = self._pool.foreign_waiting
        return array(
            "d",
            [
                foreign[slot] + self.requests_own(slot) - self.running[slot]
                for slot in range(len(foreign))
            ],
        )

    def requests_own(self, slot: int) -> int:
        """Open requests of this router alone."""
        return self._pool.ledger.requests[slot]

    def resize(self) -> None:
        """After the pool changed: columns of its length."""
        size = len(self.replicas)
        self.no_hits = array("d", bytes(8 * size))
        self.hit_tokens = self.no_hits
        self._foreign_requests = array("d", bytes(8 * size))
        self._foreign_prefill = array("d", bytes(8 * size))

    def fill(self, prompt_tokens: float, now: float) -> None:
        """Everything but mask and hits, as of `now`."""
        pool = self._pool
        pool.freshen(now)
        self.now = now
        self.prompt_tokens = prompt_tokens
        ledger = pool.ledger
        if pool.has_foreign:
            requests, prefill = ledger.requests, ledger.prefill_tokens
            for slot in range(len(self.replicas)):
                self._foreign_requests[slot] = requests[slot] + pool.foreign_requests[slot]
                self._foreign_prefill[slot] = prefill[slot] + pool.foreign_tokens[slot]
            self.requests, self.prefill_tokens = self._foreign_requests, self._foreign_prefill
        else:
            self.requests, self.prefill_tokens = ledger.requests, ledger.prefill_tokens

    def price(self) -> None:
        """Set `hit_price` and `scale_tokens` for the eligible replicas of `mask`."""
        queued = most_tokens = most_requests = 0.0
        eligible = 0
        requests, prefill, running = self.requests, self.prefill_tokens, self.running
        for slot, kept in enumerate(self.mask):
            if kept:
                eligible += 1
                queued += requests[slot] - running[slot]
                most_tokens = max(most_tokens, prefill[slot])
                most_requests = max(most_requests, requests[slot])
        queue = queued / eligible if eligible else 0.0
        self.hit_price = 1.0 + DUPLICATE_PRICE + min(queue, MAX_QUEUE_PRICE)
        self.scale_tokens = (
            most_tokens
            + most_requests * self.request_tokens
            + self.hit_price * max(self.prompt_tokens, 1.0)
        )
