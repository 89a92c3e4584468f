"""Decisions beside those of somebody else: what warmlane would have chosen, and what it would gain.

Floor 4, used by the Envoy face and by the proxy. Owns the switch (`mode`, `share`) and the sums;
never changes a request. The other side's choice is either told afterwards (a gateway) or made here
by least in-flight (`serve`). Both are judged by the same view and ledger, at the same moment:

    hit difference   = hit tokens of ours - hit tokens of theirs
    TTFT difference  = (prefill booked + uncached) of theirs - of ours, over the prefill speed

Estimates by this router's own view: whoever sent the traffic, the view learns from where it really
went, so that in shadow the caches that it predicts are those of the other side's decisions.
Cost: 1 us a decision.
"""

from __future__ import annotations

from array import array
from typing import Final, Literal

import msgspec

from warmlane.router.config_envoy import ShadowConfig
from warmlane.router.core import Router
from warmlane.router.decide import Decider
from warmlane.router.lane import Prepared
from warmlane.router.pool import Pool, Replica
from warmlane.router.registry import build_parts
from warmlane.router.types import Decision, Request

Mode = Literal["active", "shadow", "least-requests"]
MODES: Final = ("active", "shadow", "least-requests")
OTHER: Final = "other"  # models that nobody lists, and those beyond the cap
_MOST_MODELS: Final = 1000
_RAND_BITS: Final = 16


class Sums(msgspec.Struct):
    """What was compared for one model. Of ours and of theirs, where both are known."""

    decisions: int = 0
    unknown: int = 0  # the other side's choice was never told
    same: int = 0
    prompt_tokens: int = 0
    our_hit_tokens: int = 0
    their_hit_tokens: int = 0
    our_ttft_s: float = 0.0
    their_ttft_s: float = 0.0


class Beside:
    """One decision that waits for the other side's choice."""

    __slots__ = ("_hits", "_model", "_prefill", "_shadow", "slot", "tokens")

    def __init__(
        self,
        shadow: Shadow,
        model: str,
        slot: int,
        tokens: float,
        hits: array[float],
        prefill: list[float],
    ) -> None:
        self._shadow = shadow
        self._model = model
        self.slot = slot  # ours
        self.tokens = tokens
        self._hits = hits
        self._prefill = prefill

    def told(self, slot: int) -> None:
        """The other side chose this slot; -1: nobody knows. To be called once."""
        sums, count = self._shadow.sums_of(self._model), self._shadow.count
        sums.decisions += 1
        if not 0 <= slot < len(self._hits):
            sums.unknown += 1
            count("warmlane_shadow_decisions_total", self._model, "unknown")
            return
        sums.same += slot == self.slot
        count("warmlane_shadow_decisions_total", self._model, "yes" if slot == self.slot else "no")
        sums.prompt_tokens += int(self.tokens)
        count("warmlane_shadow_prompt_tokens_total", self._model, n=int(self.tokens))
        our_hit, our_ttft_s = self._judged(self.slot, "ours")
        their_hit, their_ttft_s = self._judged(slot, "theirs")
        sums.our_hit_tokens += our_hit
        sums.their_hit_tokens += their_hit
        sums.our_ttft_s += our_ttft_s
        sums.their_ttft_s += their_ttft_s

    def hit_tokens(self, slot: int) -> int:
        """Predicted hit tokens on any slot, at the decision."""
        return int(self._hits[slot])

    def _judged(self, slot: int, whose: str) -> tuple[int, float]:
        """(hit tokens, predicted seconds to the first token) on a slot, at the decision."""
        hit, count = self._hits[slot], self._shadow.count
        seconds = (self._prefill[slot] + self.tokens - hit) / self._shadow.rate
        count("warmlane_shadow_hit_tokens_total", self._model, whose, n=int(hit))
        count("warmlane_shadow_ttft_milliseconds_total", self._model, whose, n=round(1e3 * seconds))
        return int(hit), seconds


def _known(prepared: Prepared, replica: Replica | None) -> str:
    """The model's name where the config or the replica lists it: clients may write any word."""
    name = prepared.target.model
    if name in prepared.lane.pool.config.models:
        return name
    listed = None if replica is None else replica.models
    return name if listed is not None and name in listed.models else OTHER


class Shadow:
    """The switch of a face, and what was compared so far by model.

    always: warmlane's choice counts for every request; the one thing a face asks on its fast path.
    The baseline is the other side where this router makes its choice: by config, and after a switch
    to "least-requests" that.
    """

    def __init__(self, router: Router, config: ShadowConfig) -> None:
        self.mode: Mode = config.mode
        self.share = config.share
        self.rate = config.prefill_tokens_per_s
        self.sums: dict[str, Sums] = {}
        self.always = False
        self.count = router.metrics.count
        self._router = router
        self._baseline = config.baseline
        self._others: dict[str, tuple[Pool, str, Decider]] = {}
        self.switch()

    def acts(self, rand: int) -> bool:
        """Does warmlane's choice count for this request? rand: uniform, at least 16 bits."""
        if self.mode != "active":
            return False
        return (rand & 0xFFFF) < self.share * (1 << _RAND_BITS)

    def other(self, prepared: Prepared, now: float, rand: int) -> int:
        """The baseline's choice: to be asked before our own decision books its work."""
        target, decider = prepared.target, self._decider(prepared.lane.pool)
        prompt_tokens, _ = prepared.lane.view.lengths(prepared.key)
        candidates = decider.begin(target.model, target.adapter, prompt_tokens, now)
        candidates.hit_tokens = candidates.no_hits
        decider.decide(prepared.request, rand)
        return decider.order[0]

    def route(self, request: Request, now: float, rand: int) -> Decision:
        """`Router.decide` for a face that sends the request itself, while not `always`.

        Where warmlane's choice does not count, the baseline's comes first in the decision, the work
        is booked there, and both are compared. Raises NoReplica, RequestError.
        """
        prepared = self._router.prepare(request, rand)
        if self.acts(rand >> 32):
            return prepared.lane.decide(prepared, now, rand)
        other = self.other(prepared, now, rand)
        decision = prepared.lane.decide(prepared, now, rand)
        beside = self.beside(prepared, decision)
        beside.told(other)
        return self.instead(decision, beside, other, now)

    def instead(self, decision: Decision, beside: Beside, slot: int, now: float) -> Decision:
        """The decision with this slot first, and its work booked there."""
        self._router.moved(decision.ticket, slot, now)
        hits = dict(zip(decision.choices, decision.hit_tokens, strict=True))
        hits.setdefault(slot, beside.hit_tokens(slot))
        choices = (slot, *[each for each in decision.choices if each != slot])
        return msgspec.structs.replace(
            decision, choices=choices, hit_tokens=tuple([hits[each] for each in choices])
        )

    def _decider(self, pool: Pool) -> Decider:
        """The baseline's; made when the pool, its policy or the mode is new."""
        policy = "least-requests" if self.mode == "least-requests" else self._baseline
        found = self._others.get(pool.name)
        if found is None or found[0] is not pool or found[1] != policy:
            plain = msgspec.structs.replace(pool.config, policy=policy, scorers=[], picker="")
            parts = build_parts(plain, f"pool {pool.name!r}")
            found = (pool, policy, Decider(pool, parts, self._router.config.zone))
            self._others[pool.name] = found
        return found[2]

    def switch(self, mode: Mode | None = None, share: float | None = None) -> None:
        """Change what is given, at once for the next request. ValueError: out of range."""
        if mode is not None:
            if mode not in MODES:
                raise ValueError(f"mode: {mode!r}: one of {', '.join(MODES)}")
            self.mode = mode
        if share is not None:
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"share: {share!r}: must be 0 to 1")
            self.share = share
        self.always = self.mode == "active" and self.share >= 1.0

    def beside(self, prepared: Prepared, decision: Decision) -> Beside:
        """Keep what both choices are judged by. To be called right after the decision."""
        lane = prepared.lane
        pool, view, key = lane.pool, lane.view, prepared.key
        count = len(pool.replicas)
        hits = array("d", bytes(8 * count))
        tokens, each = view.lengths(key)
        blocks = view.blocks_of(key) if decision.view != "none" else None
        if blocks is not None:
            factors, most = view.factors, max(0.0, tokens - 1.0)
            for slot, held in enumerate(blocks):
                if held:
                    hits[slot] = min(held * each, most) * factors[slot]
        ours = decision.choices[0]
        prefill = list(pool.ledger.prefill_tokens[:count])
        prefill[ours] -= tokens - hits[ours]  # our own booking does not wait for itself
        name = _known(prepared, pool.replicas[ours])
        if name not in self.sums and len(self.sums) >= _MOST_MODELS:
            name = OTHER
        return Beside(self, name, ours, tokens, hits, prefill)

    def sums_of(self, model: str) -> Sums:
        """The sums of one model, made when it is new."""
        return self.sums.setdefault(model, Sums())

    def report(self) -> dict[str, dict[str, float]]:
        """For the admin interface: sums by model, with the means that people ask for."""
        found = {}
        for name, sums in sorted(self.sums.items()):
            row = msgspec.to_builtins(sums)
            known = sums.decisions - sums.unknown
            if known:
                row["same_share"] = sums.same / known
                row["ttft_gain_ms_mean"] = 1e3 * (sums.their_ttft_s - sums.our_ttft_s) / known
            if sums.prompt_tokens:
                row["our_hit_share"] = sums.our_hit_tokens / sums.prompt_tokens
                row["their_hit_share"] = sums.their_hit_tokens / sums.prompt_tokens
            found[name] = row
        return found

    def log_lines(self) -> list[str]:
        """One line a model for the periodic log; empty while nothing was compared."""
        return [
            f"event=shadow model={name!r} decisions={int(row['decisions'])}"
            f" same_share={row.get('same_share', 0.0):.3f}"
            f" our_hit_share={row.get('our_hit_share', 0.0):.3f}"
            f" their_hit_share={row.get('their_hit_share', 0.0):.3f}"
            f" ttft_gain_ms_mean={row.get('ttft_gain_ms_mean', 0.0):.2f}"
            for name, row in self.report().items()
            if row["decisions"]
        ]
