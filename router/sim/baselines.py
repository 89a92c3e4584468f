"""Routing policies of others, rebuilt from their descriptions, as parts of the real decision core.

They exist to be compared with (`warmlane replay --policy`), and run in production as well
(`policy: lmetric`). Each says where its rule and its parameters come from; none is the original
program, and all see what our own router knows: its ledger, its view of the caches, its scrapes.
Where the rule is a cost, the score is 1 - cost / greatest cost, which keeps order and ties; where
it is a choice in steps, the set that is eliminated scores 0. Ties are broken by chance. Columns of
the ledger may be longer than the pool.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import ClassVar, Final

import msgspec

from warmlane._core.hashing import digest
from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request

BLOCK_TOKENS: Final = 16.0


def _eligible(candidates: Candidates) -> list[int]:
    return [slot for slot, kept in enumerate(candidates.mask) if kept]


def _least(candidates: Candidates, costs: Sequence[float], slots: Sequence[int]) -> array[float]:
    """Scores that order `slots` by their costs (>= 0), least first; 0 for all other slots."""
    out = candidates.out
    for slot in range(len(out)):
        out[slot] = 0.0
    top = max((costs[slot] for slot in slots), default=0.0)
    for slot in slots:
        # 0.5 and up, so that the worst one in the set still beats those outside.
        out[slot] = 1.0 - 0.5 * costs[slot] / top if top > 0.0 else 1.0
    return out


def _uncached(candidates: Candidates) -> list[float]:
    prompt = candidates.prompt_tokens
    return [max(0.0, prompt - hit) for hit in candidates.hit_tokens]


class LlmdWeighted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """llm-d's default profile of 2025: weighted sum of prefix share, queue and KV use.

    3 x cached share of the prompt + 2 x queue (least waiting 1, most waiting 0, all equal 1)
    + 2 x free share of the KV cache. Weights of its precise-prefix guide. Queue and KV use are
    what the engines tell, as there (its queue scorer reads vllm:num_requests_waiting, every
    `scrape_s`): a prompt that is being computed, and one sent since, do not wait. live: the queue
    of our own ledger instead, which the original does not have.
    """

    scrape_s: ClassVar[float] = 0.05  # its refresh interval; the lab scrapes as often for it

    live: bool = False

    prefix: float = 3.0
    queue: float = 2.0
    kv: float = 2.0

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        slots, out = _eligible(candidates), candidates.out
        waiting: Sequence[float] = candidates.waiting if self.live else _scraped(candidates)
        low = min((waiting[slot] for slot in slots), default=0.0)
        high = max((waiting[slot] for slot in slots), default=0.0)
        prompt, whole = max(1.0, candidates.prompt_tokens), self.prefix + self.queue + self.kv
        for slot in slots:
            queue = (high - waiting[slot]) / (high - low) if high > low else 1.0
            total = self.prefix * min(1.0, candidates.hit_tokens[slot] / prompt)
            total += self.queue * queue
            total += self.kv * (1.0 - min(1.0, candidates.kv_usage[slot]))
            out[slot] = total / whole if whole else 0.0
        return out


def _scraped(candidates: Candidates) -> list[float]:
    """Waiting requests as the last scrape of each replica told."""
    return [
        float(each.load.waiting) if each is not None and each.load is not None else 0.0
        for each in candidates.replicas
    ]


class LlmdAffinity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """llm-d's default of 2026, "sticky until saturated": an affinity filter, then token load.

    Candidates are the replicas that hold `share` of the prompt, unless their prefill in flight is
    more than `tau_tokens` above the least; without any, all. Then least prefill in flight + own
    uncached tokens (its form for prefill-bound fleets). tau = peak prefill rate x 14 to 18 s
    (docs/replay.md says what the lab sets).
    """

    share: float = 0.8
    tau_tokens: float = 300_000.0

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        slots, queued = _eligible(candidates), candidates.prefill_tokens
        own, need = _uncached(candidates), self.share * candidates.prompt_tokens
        limit = min((queued[slot] for slot in slots), default=0.0) + self.tau_tokens
        warm = [s for s in slots if candidates.hit_tokens[s] >= need and queued[s] <= limit]
        costs = [queued[slot] + each for slot, each in enumerate(own)]
        return _least(candidates, costs, warm or slots)


class Dynamo:
    """NVIDIA Dynamo's KV router at temperature 0: least prefill blocks + decode blocks.

    Prefill blocks are those in flight and the uncached ones of this prompt, times
    `overlap_weight` (its default 1). Decode blocks are the distinct ones of all requests open
    there and of this one: equal blocks count once. Who knows the keys of requests tells them
    (`asks`, `began`, `ended`, as the lab does), and then the choices are those of the released
    selection service (`benchmarks/bench_select.py`); else the KV tokens of our ledger stand in.
    """

    def __init__(self, *, overlap_weight: float = 1.0) -> None:
        if not 0.0 <= overlap_weight < 1e6:
            raise ValueError("overlap_weight must be a number from 0 to 1000000")
        self.overlap_weight = overlap_weight
        self.stride = 8  # one key stands for so many blocks: long prompts have thousands
        self._active: dict[int, Counter[int]] = {}
        self._keys: Sequence[int] = ()
        self._blocks = -1

    def asks(self, keys: Sequence[int]) -> None:
        """The block keys of the request that is decided next."""
        self._keys, self._blocks = keys[self.stride - 1 :: self.stride], len(keys)

    def began(self, slot: int, keys: Sequence[int]) -> None:
        """A request was sent there."""
        self._active.setdefault(slot, Counter()).update(keys[self.stride - 1 :: self.stride])

    def ended(self, slot: int, keys: Sequence[int]) -> None:
        """It is over."""
        active = self._active[slot]
        for key in keys[self.stride - 1 :: self.stride]:
            left = active[key] - 1
            if left:
                active[key] = left
            else:
                del active[key]

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        queued, slots = candidates.prefill_tokens, _eligible(candidates)
        if self._blocks >= 0:
            decode = [0.0] * len(candidates)
            for slot in slots:
                decode[slot] = BLOCK_TOKENS * self._distinct(slot)
        else:
            decode = list(candidates.decode_tokens)
        costs = [
            (self.overlap_weight * (queued[slot] + own) + decode[slot]) / BLOCK_TOKENS
            for slot, own in enumerate(_uncached(candidates))
        ]
        return _least(candidates, costs, slots)

    def _distinct(self, slot: int) -> int:
        """Blocks in use there with this request. A request uses a block with all before it."""
        keys, active = self._keys, self._active.get(slot)
        if active is None:
            return self._blocks
        shared = bisect_left(keys, True, key=lambda key: key not in active)
        return self._blocks + self.stride * (len(active) - shared)


class LMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """LMetric (arXiv 2603.15202): least (new prefill tokens if sent there) x (batch size).

    Both factors count this request. queued: the first factor also holds the prefill in flight
    (the abstract leaves it open; both readings are offered).
    """

    queued: bool = False

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        own, requests = _uncached(candidates), candidates.requests
        ahead = candidates.prefill_tokens
        costs = [
            ((ahead[slot] if self.queued else 0.0) + each + 1.0) * (requests[slot] + 1.0)
            for slot, each in enumerate(own)
        ]
        return _least(candidates, costs, _eligible(candidates))


class Sglang(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SGLang's model gateway, cache_aware; defaults of its documentation.

    When the most open requests exceed the least by `balance_abs` and by the factor `balance_rel`:
    fewest requests. Else the best match if it covers more than `threshold` of the prompt, else
    the smallest tree, for which the tokens placed of late stand in here.
    """

    threshold: float = 0.3
    balance_abs: float = 64.0
    balance_rel: float = 1.5

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        slots, requests = _eligible(candidates), candidates.requests
        low = min((requests[slot] for slot in slots), default=0.0)
        high = max((requests[slot] for slot in slots), default=0.0)
        if high - low > self.balance_abs and high > self.balance_rel * low:
            return _least(candidates, requests, slots)
        best = max((candidates.hit_tokens[slot] for slot in slots), default=0.0)
        if best > self.threshold * candidates.prompt_tokens:
            return _least(candidates, _uncached(candidates), slots)
        return _least(candidates, candidates.placed_tokens, slots)


class Aibrix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AIBrix prefix-cache routing; defaults of its gateway plug-in.

    When most - least requests > `imbalance`: fewest requests. Else the longest match, among
    equals the fewest requests, of the replicas with at most mean + `sigmas` standard deviations
    of requests; without any match there, fewest requests.
    """

    imbalance: float = 8.0
    sigmas: float = 1.0

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        slots, requests = _eligible(candidates), candidates.requests
        counts = [float(requests[slot]) for slot in slots]
        if not counts or max(counts) - min(counts) > self.imbalance:
            return _least(candidates, requests, slots)
        mean = sum(counts) / len(counts)
        sigma = (sum((count - mean) ** 2 for count in counts) / len(counts)) ** 0.5
        limit, hits = mean + self.sigmas * sigma, candidates.hit_tokens
        fit = [slot for slot in slots if hits[slot] > 0 and requests[slot] <= limit]
        if not fit:
            return _least(candidates, requests, slots)
        longest = max(hits[slot] for slot in fit)
        return _least(candidates, requests, [slot for slot in fit if hits[slot] == longest])


class LeastTtft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Least predicted TTFT, after Mooncake's Conductor (FAST 2025), without KV transfers.

    Prefill in flight + own prefill, u + pair_share x u x (cached + u / 2) for u uncached tokens.
    pair_share: attention over GEMM time of a token pair, 3.5e-5 to 4.6e-5 for 8B to 32B on H100.
    """

    pair_share: float = 4e-5

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        queued, prompt = candidates.prefill_tokens, candidates.prompt_tokens
        costs = [
            queued[slot] + own * (1.0 + self.pair_share * (prompt - 0.5 * own))
            for slot, own in enumerate(_uncached(candidates))
        ]
        return _least(candidates, costs, _eligible(candidates))


class Preble(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Preble's E2 rule (ICLR 2025) without its eviction term, migration and local scheduler.

    More cached than new tokens at the best match: exploit, the least loaded of those that hold
    it. Else explore: least load + own miss. Load is prefill in flight + `decode_share` of the KV
    tokens of open requests; the paper takes a window of 3 minutes.
    """

    decode_share: float = 0.1

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        slots, hits, own = _eligible(candidates), candidates.hit_tokens, _uncached(candidates)
        queued, decode = candidates.prefill_tokens, candidates.decode_tokens
        load = [queued[slot] + self.decode_share * decode[slot] for slot in range(len(own))]
        best = max((hits[slot] for slot in slots), default=0.0)
        if best > candidates.prompt_tokens - best:
            return _least(candidates, load, [slot for slot in slots if hits[slot] == best])
        return _least(candidates, [a + b for a, b in zip(load, own, strict=True)], slots)


def _head(request: Request, head_bytes: int) -> bytes:
    """What a hash sees of a request: the prompt's beginning, else its session."""
    text = request.prompt if request.prompt is not None else request.tokens
    return (text or b"")[:head_bytes] or request.session.encode()


def _ranked(candidates: Candidates, head: bytes) -> list[int]:
    """Eligible slots in the order of this head's rendezvous hash."""
    found: list[tuple[int, int]] = []
    for slot, replica in enumerate(candidates.replicas):
        if candidates.mask[slot] and replica is not None:
            found.append((digest(head + replica.name.encode()), slot))
    found.sort()
    return [slot for _, slot in found]


class BoundedHash(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Consistent hash of the prompt's head with bounded load (Mirrokni et al., 2018).

    The first replica in the head's order with at most `factor` x the mean number of requests
    (1.25: KubeAI's default). head_bytes: 4096 bytes are about 1,024 tokens of text and exactly
    1,024 token ids; KubeAI's default of 100 characters cannot tell prompts with one system prompt.
    """

    factor: float = 1.25
    head_bytes: int = 4096

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        order = _ranked(candidates, _head(request, self.head_bytes))
        requests = candidates.requests
        mean = (sum(requests[slot] for slot in order) + 1) / max(1, len(order))
        limit = ceil(self.factor * mean)
        places = [0.0] * len(candidates)
        for place, slot in enumerate(order):
            # With this request: a replica may be filled up to the limit, not beyond.
            places[slot] = place + (0.0 if requests[slot] + 1 <= limit else float(len(order)))
        return _least(candidates, places, order)


class DualMap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """DualMap (ICLR 2026 submission) without batch migration: two hashes give two candidates.

    The one that holds more of the prompt, unless its predicted TTFT exceeds `slo_s`; then the
    one with less prefill in flight. rate: prefill tokens a second, for that prediction. The head
    has a fixed length here; the original adapts it.
    """

    slo_s: float = 2.0
    rate: float = 20_000.0
    head_bytes: int = 4096

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        pair = _ranked(candidates, _head(request, self.head_bytes))[:2]
        hits, queued, own = candidates.hit_tokens, candidates.prefill_tokens, _uncached(candidates)
        if not pair:
            return _least(candidates, own, pair)
        warm = max(pair, key=lambda slot: (hits[slot], -queued[slot]))
        if (queued[warm] + own[warm]) / self.rate <= self.slo_s:
            return _least(candidates, own, [warm])
        return _least(candidates, queued, pair)


class PowerOfTwo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two replicas by chance, of them the one with fewer requests (Mitzenmacher, 2001)."""

    needs_scores: ClassVar[bool] = False

    def pick(
        self, candidates: Candidates, totals: array[float], limit: int, rand: int, order: array[int]
    ) -> int:
        slots, count = _eligible(candidates), 0
        for place in range(min(limit, len(slots))):
            rand, step = divmod(rand, len(slots) - place)
            other = place + step
            slots[place], slots[other] = slots[other], slots[place]
            order[place] = slots[place]
            count += 1
        requests = candidates.requests
        if count > 1 and requests[order[1]] < requests[order[0]]:
            order[0], order[1] = order[1], order[0]
        return count
