"""Why would this request go there: the same parts as a decision, each step written down. Floor 4.

Reserves nothing, changes nothing that a later decision looks at, and holds no prompt text.
"""

from __future__ import annotations

from array import array
from copy import copy
from typing import Any

import msgspec

from warmlane._core import cost
from warmlane.router.admission_outlook import Outlook, outlook
from warmlane.router.decide import LAST_RESORT, Decider
from warmlane.router.errors import NoReplica
from warmlane.router.lane import Prepared
from warmlane.router.pool import Pool
from warmlane.router.registry import Weighted
from warmlane.scorers.price import PriceScorer, learned


class ScoreLine(msgspec.Struct, frozen=True, kw_only=True):
    """One scorer's say on one replica. score None: no opinion, or `error` says why."""

    scorer: str
    weight: float
    score: float | None = None
    product: float = 0.0


class ReplicaLine(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. order 0 is the choice; None: filtered out or beyond the choices.

    view: where its hits come from; view_note: why not from its events, or how they are spread.
    adapter, adapter_s: state of the request's adapter there, and the seconds that it costs.
    requests, decode_tokens: of this router. foreign_*: of others, as peers tell or scrapes show;
    prefill_tokens holds both.
    price: what the price is the sum of, in tokens of prefill by term (docs/policies.md).
    learned: what the price believes of its speed (`scorers.price.learned`), {} until it does.
    doubt: why its predicted hits lastingly do not come true (`watchdog`), "" while they do.
    """

    replica: str
    url: str
    state: str
    removed_by: str = ""
    view: str = ""
    view_note: str = ""
    doubt: str = ""
    hit_blocks: int = 0
    hit_tokens: int = 0
    trust: float = 1.0
    scores: list[ScoreLine] = []
    price: dict[str, float] = {}
    learned: dict[str, float] = {}
    total: float | None = None
    order: int | None = None
    requests: int = 0
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    foreign_requests: float = 0.0
    foreign_prefill_tokens: float = 0.0
    placed_tokens: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    adapter: str = ""
    adapter_s: float = 0.0
    load_age_s: float | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that led to one decision; `msgspec.json.encode` makes it the admin API's answer.

    error: why nobody could be chosen, "" otherwise. fallback: why the advice failed, "" otherwise.
    admission: whether it would go to one of them now; None: admission is off.
    """

    pool: str
    model: str
    adapter: str
    engine_name: str
    policy: str
    picker: str
    view: str
    unit: str
    prompt_tokens: int
    prompt_blocks: int
    scale_tokens: float
    replicas: list[ReplicaLine]
    fallback: str = ""
    error: str = ""
    removed: dict[str, int] = {}
    admission: Outlook | None = None


def explain(prepared: Prepared, now: float, rand: int) -> Explanation:
    """The explanation of the decision that `prepared` would get now."""
    lane = prepared.lane
    prompt_tokens, view = lane.look(prepared, now)
    decider, pool, target = lane.decider, lane.pool, prepared.target
    candidates = decider.candidates
    removed_by = _removed_by(decider, prepared)
    order, fallback, nobody = _order(decider, prepared, rand)
    if nobody is None:
        candidates.scale()
    lines = _score_lines(decider, prepared) if nobody is None and decider.needs_hits else {}
    terms = _terms(decider) if lines else []
    scored = bool(lines) and not fallback
    waiting = candidates.waiting
    said = [lane.view.said(slot, prepared.request, target.adapter) for slot in range(len(pool))]
    table = [
        ReplicaLine(
            replica=each.name,
            url=each.spec.url,
            state=each.state.name,
            removed_by=removed_by.get(slot, ""),
            view=said[slot][0] if view != "none" else "none",
            view_note=said[slot][1],
            doubt="" if each.doubt is None else f"{each.doubt.kind}: {each.doubt.cause}",
            hit_blocks=lane.view.hit_blocks(slot) if view != "none" else 0,
            hit_tokens=int(candidates.hit_tokens[slot]),
            trust=lane.view.belief(slot, prepared.request),
            scores=lines.get(slot, []),
            price=terms[slot] if terms and slot not in removed_by else {},
            learned=learned(decider.price, slot),
            total=decider.totals[slot] if scored and slot not in removed_by else None,
            order=order.index(slot) if slot in order else None,
            prefill_tokens=candidates.prefill_tokens[slot],
            waiting=waiting[slot],
            **_work(pool, slot),
            **_adapter(pool, slot, target.adapter, now),
            load_age_s=pool.load_age_s(slot, now),
        )
        for slot, each in enumerate(pool.replicas)
        if each is not None
    ]
    return Explanation(
        pool=pool.name,
        model=target.model,
        adapter=target.adapter,
        engine_name=target.engine_name,
        policy=pool.config.policy if not pool.config.scorers else "",
        picker=decider.parts.picker_name,
        view=view,
        unit=prepared.key.unit,
        prompt_tokens=int(prompt_tokens),
        prompt_blocks=len(prepared.key.keys),
        scale_tokens=candidates.scale_tokens,
        replicas=table,
        fallback=fallback,
        error=nobody.message if nobody is not None and not order else "",
        removed=nobody.removed if nobody is not None else {},
        admission=outlook(prepared, now),
    )


def _adapter(pool: Pool, slot: int, adapter: str, now: float) -> dict[str, Any]:
    if not adapter:
        return {}
    adapters = pool.adapters
    return {
        "adapter": adapters.state(slot, adapter),
        "adapter_s": adapters.cost(slot, adapter, now),
    }


def _work(pool: Pool, slot: int) -> dict[str, Any]:
    return {
        "requests": pool.ledger.requests[slot],
        "decode_tokens": pool.ledger.decode_tokens[slot],
        "foreign_requests": pool.foreign.requests[slot],
        "foreign_prefill_tokens": pool.foreign.tokens[slot],
        "placed_tokens": pool.placed_tokens[slot],
        "kv_usage": pool.kv_usage[slot],
    }


def _order(
    decider: Decider, prepared: Prepared, rand: int
) -> tuple[list[int], str, NoReplica | None]:
    """The slots that a decision would choose, its `fallback`, and why nobody ready was found."""
    try:
        count = decider.decide(prepared.request, rand, copy(decider.parts.picker))
    except NoReplica as nobody:
        try:
            return list(decider.last_resort(prepared.request, rand, nobody)), LAST_RESORT, nobody
        except NoReplica:
            return [], "", nobody
    return list(decider.order[:count]), decider.fallback, None


def _removed_by(decider: Decider, prepared: Prepared) -> dict[int, str]:
    """Slot -> the first filter that took it away."""
    mask = array("B", [1] * len(decider.pool))
    found: dict[int, str] = {}
    for name, each in decider.parts.filters:
        before = bytes(mask)
        each.keep(prepared.request, decider.candidates, mask)
        found.update({slot: name for slot in range(len(mask)) if before[slot] and not mask[slot]})
    return found


def _score_lines(decider: Decider, prepared: Prepared) -> dict[int, list[ScoreLine]]:
    """Slot -> one line per scorer, each run alone so that one failure hides no other."""
    size = len(decider.pool)
    lines: dict[int, list[ScoreLine]] = {slot: [] for slot in range(size)}
    mask, alone, total = decider.candidates.mask, array("d", [1.0]), array("d", bytes(8 * size))
    for item in decider.parts.scorers:
        column = _column(item, decider, prepared)
        if column is not None:
            try:
                cost.combine([column], alone, mask, total)
            except ValueError:
                column = None
        for slot in range(size):
            score = None if column is None else column[slot]
            lines[slot].append(
                ScoreLine(
                    scorer=item.name,
                    weight=item.weight,
                    score=score,
                    product=0.0 if score is None else score * item.weight,
                )
            )
    return lines


def _terms(decider: Decider) -> list[dict[str, float]]:
    """By slot, the terms of the price that are not 0; [] for a policy without one."""
    for item in decider.parts.scorers:
        if isinstance(item.scorer, PriceScorer):
            found = item.scorer.terms(decider.candidates)
            return [{name: value for name, value in each.items() if value} for each in found]
    return []


def _column(item: Weighted, decider: Decider, prepared: Prepared) -> array[float] | None:
    candidates = decider.candidates
    candidates.out = array("d", bytes(8 * len(decider.pool)))
    try:
        found = item.scorer.score(prepared.request, candidates)
        return None if found is None else array("d", found)
    except Exception:  # noqa: BLE001 - the decision's own `fallback` names the failure
        return None
