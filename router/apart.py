"""Several routers that cannot hear each other: how each decides. Floor 4.

Such a router does not know which replica holds what the others sent, and how long the lines really
are. So its price is damped: replicas whose prices differ by less than twice the work of the whole
prompt count as equal, for that is what a hit unknown here may be worth. Ties are broken by a
rendezvous hash of the prompt's head and the replica's address, the same in all routers: what begins
alike goes to the same replica whichever router it comes through. The price of backlog counts the
arrivals of all. docs/share.md has the comparison; with `share.url` none of this is needed.
"""

from __future__ import annotations

from array import array
from typing import Final

from warmlane._core.hashing import digest
from warmlane.router.core import Router
from warmlane.router.lane import Lane
from warmlane.router.share import address

# Of the work of the whole prompt. From 0 to 4 in the lab: half of the loss is made good at 1, most
# at 2; beyond it what has no reuse suffers.
TIE_SHARE: Final = 2.0


class Apart:
    """Keeps a router's pools in or out of this way to decide."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._known: dict[int, tuple[Lane, int]] = {}  # pool versions by number of the lane

    def tick(self, routers: int) -> None:
        """To be called every second or so. routers: how many there are; 1: alone, or it hears."""
        if routers == 1 and not self._known:
            return
        for lane in self._router.lanes.values():
            if routers > 1:
                self._damp(lane, routers)
            elif lane.apart:
                _release(lane)
        if routers == 1:
            self._known.clear()

    def _damp(self, lane: Lane, routers: int) -> None:
        pool, decider = lane.pool, lane.decider
        if self._known.get(lane.number) != (lane, pool.version) or decider.candidates.homes is None:
            self._known[lane.number] = lane, pool.version
            homes = array("Q", [digest(address(each).encode()) for each in pool.replicas])
            decider.candidates.homes = homes
            if decider.mix is not None:
                decider.mix.homes = homes
        lane.apart = True
        if decider.price is not None:
            price, others = decider.price, routers - 1
            price.damp(TIE_SHARE * min(1.0, 2.0 * price.reuse))
            price.others(others * price.own_rate, others * price.own_work)


def _release(lane: Lane) -> None:
    lane.apart = False
    lane.decider.candidates.homes = None
    if lane.decider.mix is not None:
        lane.decider.mix.homes = None
    if lane.decider.price is not None:
        lane.decider.price.damp(0.0)
        lane.decider.price.others(0.0, 0.0)
