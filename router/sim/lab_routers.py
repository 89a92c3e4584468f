"""The routers of a lab: one, or several that do or do not hear each other. Floor 6.

Each is a `core.Router` of its own with its own view, ledger and scrapes. A request goes to one of
them by chance, as behind a load balancer that knows nothing of sessions; where there are zones, to
one of those in its session's zone. Messages between them are the bytes of production
(`router.share`), late by an interval and the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from warmlane.router.apart import Apart
from warmlane.router.config import Config
from warmlane.router.config_share import Sharing
from warmlane.router.core import Router
from warmlane.router.pool import Pool
from warmlane.router.share import Sharer
from warmlane.router.sim.chance import Chance
from warmlane.router.sim.lab_world import Watcher
from warmlane.router.types import Kind, Request


class Seat:
    """One router of the lab, and what it exchanges with the others (None: nothing)."""

    def __init__(self, config: Config, number: int, sharing: Sharing | None) -> None:
        self.number = number
        self.zone = config.zone
        self.router = Router(config)
        (self.lane,) = self.router.lanes.values()
        self.pool: Pool = self.lane.pool
        self.sharer: Sharer | None = None
        self._apart = Apart(self.router)
        if sharing is not None:
            self.sharer = Sharer(self.router, sharing, f"router-{number}")
            self.sharer.tell(0.0)  # its journal begins
        scorers = [each.scorer for each in self.lane.decider.parts.scorers]
        self.watchers = [each for each in scorers if isinstance(each, Watcher)]
        # A policy that scrapes for itself says how often (`baselines.LlmdWeighted`).
        self.fresh_s = max((getattr(each, "scrape_s", 0.0) for each in scorers), default=0.0)
        self.fresh_at = 0.0
        model = self.pool.config.models[0]
        probe = Request(kind=Kind.COMPLETIONS, model=model, prompt=b"")
        self.prepared = self.router.prepare(probe)

    def maintain(self, now: float, unheard: int) -> None:
        """What a running router does now and then. unheard: routers it cannot hear, and itself."""
        self.router.maintain(now)
        self._apart.tick(unheard)


def seats(
    config: Config, count: int, share_s: float, prefixes: bool, zones: Sequence[str] = ()
) -> list[Seat]:
    """So many routers of one config; share_s 0: they know nothing of each other. zones: in turn."""
    sharing = None
    if count > 1 and share_s > 0:
        sharing = Sharing(interval_s=share_s, expire_s=max(2.0, 4 * share_s), prefixes=prefixes)
    made: list[Seat] = []
    for number in range(count):
        zone = zones[number % len(zones)] if zones else ""
        made.append(Seat(msgspec.structs.replace(config, zone=zone), number, sharing))
    return made


class Doors:
    """Which router a request meets: any by chance, or any in its session's zone."""

    def __init__(self, made: Sequence[Seat], chance: Chance) -> None:
        self._seats = made
        self._chance = chance
        self._zones: dict[str, list[Seat]] = {}
        for seat in made:
            self._zones.setdefault(seat.zone, []).append(seat)
        self._homes: dict[str, list[Seat]] = {}  # by session

    def seat(self, session: str) -> Seat:
        """The router of the session's next request."""
        seats: Sequence[Seat] = self._seats
        if len(self._zones) > 1:
            home = self._homes.get(session)
            if home is None:
                zones = list(self._zones.values())
                home = self._homes[session] = zones[self._chance.below(len(zones))]
            seats = home
        many = len(seats)
        return seats[0] if many == 1 else seats[self._chance.bits() % many]
