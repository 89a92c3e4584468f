"""Predicted against cached, request by request, with the exceptions named and counted.

The truth of a request is what its engine told of it: the prompt tokens that it found in its cache
when it first scheduled the request. The prediction was made before that, when the router chose.
What lies in between is outside of any prediction, and it counts as an exception only where the
witness saw it happen to the very block at which truth and prediction part:

    evicted      that block was promised, and left the engine while the request waited
    arrived      that block was not there yet, and another request's was stored meanwhile
    late clear   the engine had lost everything before, and told it with this request's own step
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .engines import BLOCK_TOKENS
from .talks import Asked
from .witness import Witness, chain

# An event is heard about 4 ms after the step that it tells of (9 ms at p95 on a loaded machine,
# more where engines, clients and router share two cores): what happened less than this before a
# request was sent may not have been known.
LAG_S = 0.1

EXCEPTIONS = ("evicted", "arrived", "late clear")


def verdict(row: Asked, witness: Witness) -> str:
    """equal, within (a block), an exception, over or under; or why nothing can be said."""
    if row.cached is None:
        return "no truth"
    if row.error == 0:
        return "equal"
    if abs(row.error) <= BLOCK_TOKENS:
        return "within"
    since, until = row.sent - LAG_S, row.done + LAG_S
    blocks = chain(row.ids, row.adapter, row.salt)
    if row.error > 0:
        if witness.cleared(row.replica, since, until):
            return "late clear"
        gone = blocks[row.cached // BLOCK_TOKENS]
        return "evicted" if witness.removed(row.replica, gone, since, until) else "over"
    new = blocks[row.predicted // BLOCK_TOKENS]
    return "arrived" if witness.stored(row.replica, new, since, until) else "under"


def evidence(row: Asked, witness: Witness) -> str:
    """One line on a wrong prediction: the block at which truth and prediction part, and when it
    came (+) and left (-), in seconds after the request was sent."""
    assert row.cached is not None
    block = chain(row.ids, row.adapter, row.salt)[min(row.cached, row.predicted) // BLOCK_TOKENS]
    when = " ".join(
        f"{'+' if each.stored else '-'}{each.ts - row.sent:.3f}"
        for each in witness.history(row.replica, block)
    )
    return (
        f"{row.phase}, {row.talk} ({row.adapter or 'base'}, salt {row.salt or 'none'}): predicted "
        f"{row.predicted}, cached {row.cached}, took {row.done - row.sent:.3f} s, block: {when}"
    )


@dataclass
class Tally:
    """One phase's requests. exact: those decided by the exact view, which alone are judged;
    other: verdicts of the rest, which the exact view made no promise about."""

    phase: str
    requests: int = 0
    told: int = 0
    exact: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    wrong: list[Asked] = field(default_factory=list)

    @property
    def judged(self) -> int:
        """Requests outside the exceptions."""
        return sum(self.exact.values()) - sum(self.exact[name] for name in EXCEPTIONS)

    @property
    def right(self) -> int:
        return self.exact["equal"] + self.exact["within"]

    def row(self) -> str:
        kinds = (*("equal", "within", "over", "under"), *EXCEPTIONS)
        counts = " ".join(f"{self.exact[kind]:>10}" for kind in kinds)
        share = f"{self.right / self.judged:.1%}" if self.judged else "-"
        beside = sum(self.other.values())
        return f"{self.phase:<22} {self.requests:>8} {self.told:>6} {beside:>6} {counts} {share:>7}"


HEAD = (
    f"{'':<22} {'requests':>8} {'truth':>6} {'approx':>6} {'equal':>10} {'<= 1 block':>10} "
    f"{'over':>10} {'under':>10} {'evicted':>10} {'arrived':>10} {'late clear':>10} {'right':>7}"
)


def tally(phase: str, rows: Sequence[Asked], witness: Witness) -> Tally:
    """Judge every request of one phase."""
    made = Tally(phase, len(rows))
    for row in rows:
        found = verdict(row, witness)
        made.told += found != "no truth"
        (made.exact if row.view == "exact" else made.other)[found] += found != "no truth"
        if row.view == "exact" and found in ("over", "under"):
            made.wrong.append(row)
    return made
