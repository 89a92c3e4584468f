"""Plain-Python twin of `_core.mix`: scorer by scorer, with the twin of `cost`, over lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.core import twin_cost

Values = Sequence[float]


class Pool(NamedTuple):
    """The columns that `Mix.bind` takes, in its order."""

    requests: Values
    prefill: Values
    decode: Values
    placed: Values
    usage: Values
    foreign_requests: Values
    foreign_tokens: Values
    foreign_kv_tokens: Values
    trust: Values


class Settings(NamedTuple):
    """The parameters of a `Mix`."""

    weights: Values
    rate: float
    limit_tokens: float
    least_scale: float
    request_tokens: float
    context_share: float
    limit: int


class Found(NamedTuple):
    """Totals and hits by slot, the order, and what `choose` returns for it."""

    totals: list[float]
    hits: list[float]
    order: tuple[int, ...]
    tokens: tuple[int, ...]
    hit: float
    raw: float


def choose(
    settings: Settings,
    pool: Pool,
    blocks: Sequence[int] | None,
    block_tokens: float,
    prompt: float,
    mask: Sequence[int],
    foreign: bool,
    rand: int,
) -> Found:
    size = len(mask)
    requests, prefill, decode = pool.requests, pool.prefill, pool.decode
    if foreign:
        requests = twin_cost.blend(requests, 1.0, pool.foreign_requests, 1.0)
        prefill = twin_cost.blend(prefill, 1.0, pool.foreign_tokens, 1.0)
        decode = twin_cost.blend(decode, 1.0, pool.foreign_kv_tokens, 1.0)
    hits = twin_cost.hit_tokens(blocks or [0] * size, block_tokens, prompt, pool.trust)
    hits = [hit if kept else 0.0 for hit, kept in zip(hits, mask, strict=False)]
    scale = (
        max(prompt, settings.least_scale)
        + twin_cost.greatest(prefill, mask)
        + twin_cost.greatest(requests, mask) * settings.request_tokens
        + twin_cost.greatest(decode, mask) * settings.context_share
    )
    opened = twin_cost.blend(requests, settings.request_tokens, decode, settings.context_share)
    placed = twin_cost.excess(pool.placed, mask, settings.rate, settings.limit_tokens)
    scores = [
        twin_cost.fraction(hits, scale),
        twin_cost.saturate(prefill, scale),
        twin_cost.saturate(opened, scale),
        twin_cost.saturate(placed, scale),
        twin_cost.saturate(pool.usage, 1.0),
    ]
    totals = twin_cost.combine(scores, settings.weights, mask)
    order = twin_cost.top_k(totals, mask, settings.limit, rand, None)
    hit = hits[order[0]] if order else 0.0
    raw = hit / pool.trust[order[0]] if hit else 0.0
    return Found(totals, hits, tuple(order), tuple(int(hits[slot]) for slot in order), hit, raw)
