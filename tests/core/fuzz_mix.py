"""Seeded, bounded random pools for `_core.mix` and `_core.trust` against their twins.

python -m tests.core.fuzz_mix --seconds 20 --seed 1
"""

from __future__ import annotations

import random
from array import array
from typing import Any

from tests.core import twin_mix, twin_trust
from tests.core.fuzzing import fuzz
from warmlane._core.mix import Mix
from warmlane._core.trust import Trust

TYPES = "iddddddd"  # of the bound columns; trust is the ninth


def believe(rnd: random.Random, size: int) -> Trust:
    """The same history told to both."""
    real, twin, now = Trust(size), twin_trust.Trust(size), 0.0
    for _ in range(rnd.randrange(200)):
        slot, now = rnd.randrange(size), now + rnd.random() * 3
        tokens, cached, prompt = (rnd.random() * 1e5 for _ in range(3))
        for each in (real, twin):
            if cached < 2e4:
                each.sent(slot, tokens, prompt)
            elif cached < 8e4:
                each.answered(slot, tokens, cached, prompt, now)
            elif cached < 9.8e4:
                each.scraped(slot, 10 * tokens, prompt, now)
            else:
                each.reset(slot)
    for ours, theirs in zip(real.factors, twin.factors, strict=True):
        assert abs(ours - theirs) < 1e-12
    return real


def choose(rnd: random.Random) -> None:
    size = rnd.choice([1, 2, 8, 65])
    trust = believe(rnd, size)
    weights = [rnd.random() for _ in range(5)]
    settings = twin_mix.Settings(weights, 0.02, 4096.0, 1024.0, 64.0, 0.1, rnd.randint(1, 16))
    mix = Mix(
        settings.weights,
        settings.rate,
        settings.limit_tokens,
        least_scale=settings.least_scale,
        request_tokens=settings.request_tokens,
        context_share=settings.context_share,
        limit=settings.limit,
    )
    columns: list[Any] = [
        array(code, [rnd.choice([0, 1, rnd.randrange(10**5)]) for _ in range(size)])
        for code in TYPES
    ]
    mix.bind(*columns, trust.factors)
    for _ in range(20):
        seen = rnd.randint(0, size)  # the pool grows and shrinks
        mask = array("B", [rnd.random() < 0.8 for _ in range(seen)])
        blocks = (
            array("i", [rnd.randrange(500) for _ in range(seen)]) if rnd.random() < 0.8 else None
        )
        args = (blocks, 32.5, rnd.random() * 2e4, mask, rnd.random() < 0.5, rnd.getrandbits(64))
        want = twin_mix.choose(settings, twin_mix.Pool(*columns, trust.factors), *args)
        slots, tokens, hit, raw = mix.choose(*args)
        assert twin_mix.Found(list(mix.totals), list(mix.hits), slots, tokens, hit, raw) == want


if __name__ == "__main__":
    fuzz(__file__, choose)
