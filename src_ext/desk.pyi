"""Types of the compiled module; the contract is in desk.pxd, the meaning in desk.pyx."""

from array import array
from collections.abc import Callable
from typing import Any

from warmlane._core.journal import Journal
from warmlane._core.ledger import Ledger
from warmlane._core.mix import Mix
from warmlane._core.runs import RunTree
from warmlane._core.trust import Trust
from warmlane._core.upkeep import Placements

def set_bounds(
    ttft: tuple[float, ...],
    duration: tuple[float, ...],
    decision: tuple[float, ...],
    kinds: tuple[str, ...],
) -> None:
    """The histograms' bounds in seconds (time to first token, duration, decision), kinds' names."""

class Lead:
    """Where a model name leads, until its pool changes.

    mask: the replicas that may serve it. root: parent of first blocks. link_of, names: slot ->
    link, slot -> replica name.
    """

    desk: Any
    side: Any
    target: Any
    def __init__(
        self,
        desk: Desk,
        side: object,
        target: object,
        mask: array[int],
        root: int,
        metrics: object,
        link_of: Callable[[int], object],
        names: Callable[[int], str],
    ) -> None: ...

class Desk:
    """The compiled half of a lane."""

    ratio: float
    output_tokens: float
    learned_bytes: int
    learned_tokens: int
    apart: bool
    """Ties are broken by the prompt's head and not by `rand`, as `router.apart` wants it."""
    journal: Journal | None
    """Where chains are noted that are booked in the view, for other routers; None: nobody reads."""
    def furnish(
        self, ledger: Ledger, trust: Trust, pool: Placements, block: int, mix: Mix | None
    ) -> None:
        """What it decides with. block: bytes of a text block; mix: None for no default mix."""
    def set_tree(self, tree: RunTree | None) -> None:
        """Who holds which text blocks; None: nobody holds any yet."""
    def take_evidence(self) -> list[tuple[int, bool, bool, float, float, float, float]]:
        """Sums since the last call: (slot, told, chat, requests, prompt, predicted, cached)."""
    def _learn_length(self) -> None:
        """Pass on what was learned; the owner's."""
    def _charge(self, slot: int, tokens: int) -> None:
        """Generated tokens whose text nobody kept; the owner's."""

def _fail_allocation_after(count: int) -> None:
    """Tests only: the allocation after `count` more of this module fails once."""
