"""One decision: filters, hits, scores, order. Floor 4: no clock, no chance, no reservation.

Works over all slots of the pool with a mask, so that nothing is gathered or copied per decision.
The static part of the filters is kept per (model, adapter) until the pool changes. Advice that
fails loses no request: then the replica with the fewest open requests is taken, and the decision
says why.

The default mix over filters that ask nothing of the request is one compiled call (`quick`); any
other mix, and `explain`, run scorer by scorer (`decide`). Both give the same order.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from heapq import nsmallest
from typing import Any, Final

from warmlane._core import cost
from warmlane._core.mix import Mix
from warmlane._core.price import Price
from warmlane.router.candidates import (
    CONTEXT_SHARE,
    MIN_SCALE_TOKENS,
    REQUEST_TOKENS,
    CandidateColumns,
)
from warmlane.router.errors import NoReplica
from warmlane.router.interfaces import Filter, Picker
from warmlane.router.pickers import Best
from warmlane.router.pool import Pool, Replica
from warmlane.router.registry import Parts
from warmlane.router.types import Kind, Outcome, ReplicaState, Request, Rest
from warmlane.scorers import DEFAULT_MIX, WEIGHTED_MIX
from warmlane.scorers.price import PriceScorer
from warmlane.scorers.spread import Spread

log = logging.getLogger("warmlane.decide")

CHOICES: Final = 5  # one replica and four to fall back to
_MAX_STATIC_MASKS: Final = 1024  # (model, adapter) pairs kept; names come from clients
RETRY_AFTER_S: Final = 1.0
LAST_RESORT: Final = "nobody is ready"  # `Decision.fallback` of a choice among the others
# Who is asked when the choices of a decision are used up, in this order.
_RESTS: Final = (ReplicaState.READY, ReplicaState.EJECTED, ReplicaState.JOINING)
# In the order of `Mix`, which is that of WEIGHTED_MIX without `lora`.
_FUSED: Final = ("prefix_hit", "inflight_tokens", "running_requests", "spread", "kv_usage")


_ANYBODY: Final = Rest()


class StaticMask:
    """Answer of the static filters for one (model, adapter) at one version of the pool."""

    __slots__ = ("count", "mask", "removed")

    def __init__(self, mask: array[int], removed: dict[str, int]) -> None:
        self.mask = mask
        self.removed = removed
        self.count = sum(mask)


class Decider:
    """Chooses among the replicas of one pool. Leaves `candidates`, `totals` and `order` readable.

    order: the first `count` slots returned by `decide`, best first.
    fallback: "" or why the advice of this decision failed.
    """

    def __init__(self, pool: Pool, parts: Parts, zone: str = "") -> None:
        self.pool = pool
        self.parts = parts
        self.candidates = CandidateColumns(pool, zone)
        self.totals = array("d")
        self._picker = parts.picker
        self._last_failure = ""
        self.order = array("i", bytes(4 * CHOICES))
        self.fallback = ""
        self.needs_hits = parts.picker.needs_scores
        self._static: list[tuple[str, Filter]] = [f for f in parts.filters if f[1].static]
        self._dynamic: list[tuple[str, Filter]] = [f for f in parts.filters if not f[1].static]
        self._subset_only = all(name == "subset" for name, _ in self._dynamic)
        self._masks: dict[tuple[str, str], StaticMask] = {}
        self._rests: dict[tuple[str, str], array[int]] = {}
        self._work = array("B")
        self._version = 0
        self._at = 0  # the scorer that runs, for the blame
        self._scores: list[Sequence[float]] = []
        self._columns: list[array[float]] = []
        self._neutral = array("d")
        self._weights = array("d", [item.weight for item in parts.scorers])
        self._run = [(i, item.scorer.score) for i, item in enumerate(parts.scorers)]
        self.mix = default_mix(parts) if self._subset_only else None
        priced = [each.scorer for each in parts.scorers if isinstance(each.scorer, PriceScorer)]
        self.price = priced[0].price if priced else None
        self._far = priced[0].zone if priced and zone else 0.0  # tokens, another zone than ours
        self._paced: list[Replica | None] = []  # whose pace the price has learned, by slot

    def begin(self, model: str, adapter: str, prompt_tokens: float, now: float) -> CandidateColumns:
        """Candidates for a request, before filters; the caller fills in the hits."""
        candidates = self.candidates
        if self._version != self.pool.version:
            self._resize()
        candidates.model = model
        candidates.adapter = adapter
        candidates.fill(prompt_tokens, now)
        return candidates

    def quick(
        self,
        request: Request,
        model: str,
        blocks: array[int] | None,
        block_tokens: float,
        prompt_tokens: float,
        rand: int,
    ) -> tuple[tuple[int, ...], tuple[int, ...], float, float]:
        """`begin` and `decide` in one for the default `mix`, no adapter and no subset.

        blocks: what each slot holds, None for nothing. Returns as `Mix.choose` does. Raises
        NoReplica. The pool was freshened before.
        """
        pool, mix = self.pool, self.mix
        assert mix is not None, "the caller looks first"
        if self._version != pool.version:
            self._resize()
        static = self._masks.get((model, ""))
        if static is None:
            self.candidates.model, self.candidates.adapter = model, ""
            static = self._static_mask(request)
        if static.count == 0:
            raise self._none(static.removed)
        return mix.choose(blocks, block_tokens, prompt_tokens, static.mask, pool.foreign.some, rand)

    def placed(self, prompt_tokens: float, hit_tokens: float) -> None:
        """A decision that was not `quick` is booked."""
        if self.price is not None:
            self.price.placed(prompt_tokens, hit_tokens)

    def streamed(self, ticket: int, slot: int, outcome: Outcome, now: float) -> None:
        """A stream ends whose ticket is still open: what it says of decoding there."""
        if self.price is not None and outcome.status == "ok":
            told = outcome.output_tokens
            made = outcome.events if told is None else told
            self.price.ended(self.pool.ledger, ticket, slot, made, now)

    def tick(self, now: float, output_tokens: float) -> None:
        """What the price learns from the pool, now and then. output_tokens: of a mean answer."""
        price, pool = self.price, self.pool
        if price is None:
            return
        for replica in pool:
            capacity = pool.capacity_tokens(replica) if replica.load is not None else None
            price.holds(replica.slot, capacity or 0.0, pool.kv_usage[replica.slot])
        requests = sum(pool.ledger.requests[: len(pool)])
        price.tick(now, sum(pool.ready), output_tokens, requests)

    def mask_of(self, model: str) -> array[int] | None:
        """Who may serve a model, to be used until the pool changes; None: nobody."""
        if self._version != self.pool.version:
            self._resize()
        self.candidates.model, self.candidates.adapter = model, ""
        static = self._static_mask(Request(kind=Kind.OTHER, model=model))
        return static.mask if static.count else None

    def decide(self, request: Request, rand: int, picker: Picker | None = None) -> int:
        """Order the eligible replicas; how many choices (at least 1). Raises NoReplica.

        picker: a copy to look with, where the pool's own must not take its turn.
        """
        picker = picker or self._picker
        candidates = self.candidates
        static = self._static_mask(request)
        if static.count == 0:
            raise self._none(static.removed)
        if self._subset_only and request.subset is None:
            candidates.mask = static.mask
        else:
            self._filter(request, static)
        self.fallback = ""
        if not self.needs_hits:
            return picker.pick(candidates, self.totals, CHOICES, rand, self.order)
        try:
            self._score(request)
            count = picker.pick(candidates, self.totals, CHOICES, rand, self.order)
            if count < 1:
                raise ValueError("the picker chose nobody")
        except Exception as error:  # noqa: BLE001 - advice of any kind may fail, the request may not
            return self._fall_back(error, rand)
        return count

    def rest(self, request: Request, turn: int, wanted: Rest = _ANYBODY) -> tuple[int, ...]:
        """Whoever may serve a request that its choices failed: at most CHOICES, after `begin`.

        Ready ones first, then ejected, then joining; among those whose zone is not to be avoided,
        then the fewest open requests, ties in turn. All filters hold but `ready`; left out is who
        is drained or says itself that it does not serve (asleep, paused), because it would let the
        request hang. NoReplica: a filter failed.
        """
        pool, size = self.pool, len(self.pool)
        static, mask = self._rest_mask(request), self._work
        mask[:] = static
        self.candidates.mask = mask
        for name, each in self._dynamic:
            self._keep(name, each, request, mask)
        states, requests = _RESTS[:1] if wanted.ready_only else _RESTS, pool.ledger.requests
        ranks: list[tuple[int, bool, int, int, int]] = []
        for slot, replica in enumerate(pool.replicas):
            if not mask[slot] or replica is None or slot in wanted.tried:
                continue
            if replica.state in states:
                rank = states.index(replica.state)
                far = replica.spec.zone in wanted.avoid
                ranks.append((rank, far, requests[slot], (slot - turn) % size, slot))
        return tuple([rank[-1] for rank in nsmallest(CHOICES, ranks)])

    def last_resort(self, request: Request, rand: int, why: NoReplica) -> tuple[int, ...]:
        """Choices after `decide` raised `why`, which is raised again where nothing else helps:
        the fleet is full, or nobody is there who is only not ready."""
        if why.status != 503 or not why.removed.get("ready"):
            raise why
        choices = self.rest(request, rand)
        if not choices:
            raise why
        return choices

    def _rest_mask(self, request: Request) -> array[int]:
        """Answer of the static filters but `ready` for the model and adapter of `candidates`."""
        candidates = self.candidates
        key = (candidates.model, candidates.adapter)
        mask = self._rests.get(key)
        if mask is None:
            mask = array("B", [self._is_willing(slot) for slot in range(len(self.pool))])
            for name, each in self._static:
                if name != "ready":
                    self._keep(name, each, request, mask)
            if len(self._rests) >= _MAX_STATIC_MASKS:
                self._rests.clear()
            self._rests[key] = mask
        return mask

    def _blame(self, error: Exception) -> str:
        """Which part failed and how."""
        scorers = self.parts.scorers
        if isinstance(error, cost.ScoreError):
            return f"{scorers[error.scorer].name}: score {error.value} at slot {error.slot}"
        if self._at < len(scorers):
            return f"{scorers[self._at].name}: {_kind(error)}"
        return f"{self.parts.picker_name}: {_kind(error)}"

    def _score(self, request: Request) -> None:
        candidates, scores, columns = self.candidates, self._scores, self._columns
        candidates.scale()
        for i, score in self._run:
            self._at = i
            candidates.out = columns[i]
            found = score(request, candidates)
            if found is None:
                found = self._neutral
            elif len(found) < len(candidates):
                raise IndexError("fewer scores than slots")
            scores[i] = found
        self._at = len(scores)
        cost.combine(scores, self._weights, candidates.mask, self.totals)

    def _fall_back(self, error: Exception, rand: int) -> int:
        """Least in-flight by the ledger, which needs no advice."""
        self.fallback = self._blame(error)
        if self.fallback != self._last_failure:  # one line per change, not one per request
            self._last_failure = self.fallback
            log.warning("decide pool=%s fallback=%r", self.pool.name, self.fallback)
        requests, mask, size = self.pool.ledger.requests, self.candidates.mask, len(self.pool)
        turn = rand % size
        slots = [slot for slot in range(size) if mask[slot]]
        slots.sort(key=lambda slot: (requests[slot], (slot - turn) % size))
        for place, slot in enumerate(slots[:CHOICES]):
            self.order[place] = slot
        return min(len(slots), CHOICES)

    def _static_mask(self, request: Request) -> StaticMask:
        candidates = self.candidates
        key = (candidates.model, candidates.adapter)
        found = self._masks.get(key)
        if found is None:
            mask = array("B", [self._is_member(slot) for slot in range(len(self.pool))])
            removed: dict[str, int] = {}
            for name, each in self._static:
                removed[name] = self._keep(name, each, request, mask)
            if len(self._masks) >= _MAX_STATIC_MASKS:
                self._masks.clear()
            found = self._masks[key] = StaticMask(mask, removed)
        return found

    def _filter(self, request: Request, static: StaticMask) -> None:
        candidates, work = self.candidates, self._work
        work[:] = static.mask
        candidates.mask = work
        removed = dict(static.removed)
        for name, each in self._dynamic:
            removed[name] = self._keep(name, each, request, work)
        if 1 not in work:
            raise self._none(removed)

    def _keep(self, name: str, each: Filter, request: Request, mask: array[int]) -> int:
        """Run one filter. One that fails lets nobody through: it may guard a tenant's data."""
        try:
            return each.keep(request, self.candidates, mask)
        except Exception as error:
            log.error("decide pool=%s filter=%s error=%s", self.pool.name, name, _kind(error))
            raise NoReplica(
                f"filter {name!r} of pool {self.pool.name!r} failed ({_kind(error)})",
                retry_after_s=RETRY_AFTER_S,
            ) from error

    def _none(self, removed: dict[str, int]) -> NoReplica:
        """429 when only saturation stands in the way, else 503."""
        members = sum(1 for _ in self.pool)
        counts = ", ".join(f"{name} {count}" for name, count in removed.items() if count)
        text = f"no replica of pool {self.pool.name!r} may serve this request now"
        text += f" ({members} replicas; removed: {counts})" if counts else f" ({members} replicas)"
        status = 429 if removed.get("not_saturated") else 503
        return NoReplica(text, status=status, removed=removed, retry_after_s=RETRY_AFTER_S)

    def _is_member(self, slot: int) -> bool:
        replica = self.pool.replicas[slot]
        return replica is not None and replica.state is not ReplicaState.GONE

    def _is_willing(self, slot: int) -> bool:
        replica = self.pool.replicas[slot]
        if replica is None or replica.state not in _RESTS or replica.unwilling:
            return False
        return replica.load is None or not replica.load.asleep

    def _resize(self) -> None:
        size = len(self.pool)
        if self.price is not None:
            for slot, (old, new) in enumerate(zip(self._paced, self.pool.replicas, strict=False)):
                if old is not new:
                    self.price.forget(slot)
            self._paced = list(self.pool.replicas)
            for slot, replica in enumerate(self.pool.replicas):
                away = replica is not None and replica.spec.zone not in ("", self.candidates.zone)
                self.price.move(slot, self._far if away else 0.0)
        self._version = self.pool.version
        self._masks.clear()
        self._rests.clear()
        self.candidates.resize()
        self.totals = array("d", bytes(8 * size))
        self._work = array("B", bytes(size))
        self._neutral = array("d", bytes(8 * size))
        self._columns = [array("d", bytes(8 * size)) for _ in self._run]
        self._scores = list(self._columns)


def default_mix(parts: Parts) -> Mix | None:
    """The scorers of policy "default" or "weighted" (any weights) as one call; None for others.

    `lora` is among them and has no opinion on a request without an adapter.
    """
    names = [item.name for item in parts.scorers]
    if type(parts.picker) is not Best or names not in (_names(DEFAULT_MIX), _names(WEIGHTED_MIX)):
        return None
    scorers = {item.name: item for item in parts.scorers}
    price, spread = scorers.get("price"), scorers.get("spread")
    priced: Price | None = None
    if price is not None:
        assert isinstance(price.scorer, PriceScorer), "a built-in name cannot be taken"
        priced = price.scorer.price
        weights, rate, limit = [price.weight, 0.0, 0.0, 0.0, 0.0], 0.0, 0.0
    else:
        assert spread is not None and isinstance(spread.scorer, Spread), "as above"
        weights = [scorers[name].weight for name in _FUSED]
        rate, limit = spread.scorer.rate, spread.scorer.limit_tokens
    return Mix(
        weights,
        rate,
        limit,
        least_scale=MIN_SCALE_TOKENS,
        request_tokens=REQUEST_TOKENS,
        context_share=CONTEXT_SHARE,
        limit=CHOICES,
        price=priced,
    )


def _names(mix: Sequence[str | dict[str, Any]]) -> list[str]:
    return [part if isinstance(part, str) else part["name"] for part in mix]


def _kind(error: Exception) -> str:
    """The type alone: the text of a part's error may hold what a client wrote."""
    return type(error).__name__
