"""The price of each replica for everybody: the policy "default" (docs/policies.md).

One sum in tokens of prefill replaces a mix of ratios: what is in line, what is new, what that
delays in those who run there and in those who come later, the copy of a prefix that another
replica holds, and the load of an adapter with what it displaces. 1.0 stands for free, 0.0 for the
dearest eligible replica.
"""

from __future__ import annotations

from array import array
from math import inf
from typing import Final

from warmlane._core import cost
from warmlane._core.price import Price
from warmlane.router.interfaces import Candidates
from warmlane.router.types import Request

ZONE_TOKENS: Final = 4000.0  # 160 ms of prefill; decision 12 says what less and more bring


BELIEVED: Final = 30  # samples, as in src_ext/pace.h and tempo.h


def learned(price: Price | None, slot: int) -> dict[str, float]:
    """What is believed of a replica: prefill_s, prefill_factor, decode_s, decode_factor.

    Seconds a token of prefill and of an answer alone there, factors over the middle replica; those
    of a half are absent until enough was heard.
    """
    if price is None:
        return {}
    factor, _, seconds, count = price.pace(slot)
    found = {"prefill_s": seconds, "prefill_factor": factor} if count >= BELIEVED else {}
    factor, seconds, _, _, count = price.tempo(slot)
    if count >= BELIEVED:  # of one that never runs alone, that much is a guess, also below 0
        found |= {"decode_s": max(0.0, seconds), "decode_factor": factor}
    return found


class PriceScorer:
    """Parameters are those of `_core.price.Price`; the defaults are meant for every fleet.

    zone: tokens that a replica of another zone than the router's costs more, beside `distance`; 0:
    it costs nothing more, whatever `distance` is.
    """

    def __init__(
        self, *, learn: bool = True, zone: float = ZONE_TOKENS, **constants: float
    ) -> None:
        if not 0.0 <= zone < inf:
            raise ValueError("zone must be finite and not negative")
        self.zone = float(zone)
        self.price = Price(learn=bool(learn), **constants)

    def terms(self, candidates: Candidates) -> list[dict[str, float]]:
        """Tokens that each part of the price of each slot is, for `explain`."""
        size = len(candidates)
        found = self.price.terms(
            candidates.prompt_tokens,
            candidates.hit_tokens,
            candidates.prefill_tokens,
            array("d", candidates.requests[:size]),
            candidates.placed_tokens,
            candidates.mask,
        )
        if candidates.adapter_s is not None:
            for each, seconds in zip(found, candidates.adapter_s, strict=True):
                each["adapter"] = seconds / self.price.seconds
        return found

    def score(self, request: Request, candidates: Candidates) -> array[float]:
        out = candidates.out
        greatest = self.price.prices(
            candidates.prompt_tokens,
            candidates.hit_tokens,
            candidates.prefill_tokens,
            array("d", candidates.requests[: len(candidates)]),  # the ledger's is longer
            candidates.placed_tokens,
            candidates.mask,
            out,
        )
        adapter_s = candidates.adapter_s
        if adapter_s is not None:
            cost.blend(out, 1.0, adapter_s, 1.0 / self.price.seconds, out)
            greatest = cost.greatest(out, candidates.mask)
        cost.saturate(out, greatest, out)
        return out
