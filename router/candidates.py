"""The columns that one pool's scorers read, refilled for each decision and never copied. Floor 3.

One object per pool lives as long as the pool: a decision writes a few numbers and lets the ledger's
own columns be read in place. See `interfaces.Candidates` for what each column means.
"""

from __future__ import annotations

from array import array
from typing import Final

from warmlane._core import cost
from warmlane.router.pool import Pool, Replica

# What open requests weigh in tokens of prefill. A decode step costs each neighbour about 8 us a
# request and 43 ns a KV token (policies.md, C.2); over an answer of 200 steps, at 17,000 to 43,000
# prefill tokens a second, that is 27 to 68 tokens a request and 0.15 to 0.37 a KV token, of which
# TTFT-minded mixes count about a third. docs/decisions/0005-default-mix.md has the comparison.
REQUEST_TOKENS: Final = 64.0
CONTEXT_SHARE: Final = 0.1
# Below this a whole score would stand for less work than anybody feels (1,024 tokens: 24 to 60 ms).
MIN_SCALE_TOKENS: Final = 1024.0


class CandidateColumns:
    """Implements `interfaces.Candidates` over a pool and its ledger."""

    __slots__ = (
        "_adapter_s",
        "_foreign_decode",
        "_foreign_prefill",
        "_foreign_requests",
        "_pool",
        "_waiting",
        "adapter",
        "context_share",
        "decode_tokens",
        "hit_tokens",
        "homes",
        "kv_usage",
        "mask",
        "model",
        "no_hits",
        "now",
        "out",
        "placed_tokens",
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
        self.placed_tokens = pool.placed_tokens
        self.running = ledger.running
        self.decode_tokens: array[float] = ledger.decode_tokens
        self.requests: array[int] | array[float] = ledger.requests
        self.prefill_tokens = ledger.prefill_tokens
        self._foreign_requests = array("d")
        self._foreign_prefill = array("d")
        self._foreign_decode = array("d")
        self._waiting = array("d")
        self._adapter_s = array("d")
        self.homes: array[int] | None = None  # for ties, as in `Mix.homes`
        self.no_hits = array("d")
        self.hit_tokens = self.no_hits
        self.mask = array("B")
        self.out = array("d")
        self.prompt_tokens = 0.0
        self.scale_tokens = 1.0
        self.request_tokens = REQUEST_TOKENS
        self.context_share = CONTEXT_SHARE
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
        pool, waiting = self._pool, self._waiting
        cost.blend(pool.ledger.requests, 1.0, self.running, -1.0, waiting)
        if pool.foreign.some:
            cost.blend(waiting, 1.0, pool.foreign.waiting, 1.0, waiting)
        return waiting

    @property
    def adapter_s(self) -> array[float] | None:
        """Seconds that the request's adapter costs, by slot; made when asked. None without one."""
        if not self.adapter:
            return None
        self._pool.adapters.costs(self.adapter, self.now, self._adapter_s)
        return self._adapter_s

    def can_load(self, slot: int) -> bool:
        """Whether the router may load the request's adapter there."""
        return self._pool.adapters.can_load(slot, self.adapter)

    def resize(self) -> None:
        """After the pool changed: columns of its length."""
        size = len(self.replicas)
        self._adapter_s = array("d", bytes(8 * size))
        self.no_hits = array("d", bytes(8 * size))
        self.hit_tokens = self.no_hits
        self._waiting = array("d", bytes(8 * size))
        self._foreign_requests = array("d", bytes(8 * size))
        self._foreign_prefill = array("d", bytes(8 * size))
        self._foreign_decode = array("d", bytes(8 * size))

    def fill(self, prompt_tokens: float, now: float) -> None:
        """Everything but mask and hits, as of `now`."""
        pool = self._pool
        pool.freshen(now)
        self.now = now
        self.prompt_tokens = prompt_tokens
        ledger = pool.ledger
        foreign = pool.foreign
        if foreign.some:
            requests, prefill = self._foreign_requests, self._foreign_prefill
            cost.blend(ledger.requests, 1.0, foreign.requests, 1.0, requests)
            cost.blend(ledger.prefill_tokens, 1.0, foreign.tokens, 1.0, prefill)
            cost.blend(ledger.decode_tokens, 1.0, foreign.kv_tokens, 1.0, self._foreign_decode)
            self.requests, self.prefill_tokens = requests, prefill
            self.decode_tokens = self._foreign_decode
        else:
            self.requests, self.prefill_tokens = ledger.requests, ledger.prefill_tokens
            self.decode_tokens = ledger.decode_tokens

    def scale(self) -> None:
        """Set `scale_tokens`: no cost of an eligible replica is above it."""
        mask, prompt_tokens = self.mask, self.prompt_tokens
        self.scale_tokens = (
            (prompt_tokens if prompt_tokens > MIN_SCALE_TOKENS else MIN_SCALE_TOKENS)
            + cost.greatest(self.prefill_tokens, mask)
            + cost.greatest(self.requests, mask) * REQUEST_TOKENS
            + cost.greatest(self.decode_tokens, mask) * CONTEXT_SHARE
        )
