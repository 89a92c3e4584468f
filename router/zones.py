"""Requests and prompt tokens by pair of zones, router's -> replica's. Floor 3.

Kept apart from what a request counts: at a scrape the growth of each replica's own counters since
the last look is booked on its pair, so a request costs nothing here and a router without zones
never looks. A replica that leaves, or another zone of the router, is booked when it happens. A zone
of a replica that becomes known speaks for what was not yet booked.

Cost: about 0.3 us per series of `warmlane_requests_total`, at a scrape, with zones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from warmlane.router.pool import Pool

MAX_PAIRS: Final = 256  # then replicas of further zones count as OTHER
UNKNOWN: Final = "unknown"
OTHER: Final = "other"

Pair = tuple[str, str, str, str]  # the labels: pool, router's zone, replica's zone, in_zone


class ZonePairs:
    """Sums over all replicas since the start, those that left included.

    sums: labels -> [requests, prompt tokens]. requests, hits: `Metrics.requests` and `.hits`, read
    and never changed. pools: by name, live. zone: the router's, "" unknown.
    """

    __slots__ = ("_booked", "_hits", "_pools", "_requests", "sums", "zone")

    def __init__(
        self,
        requests: Mapping[tuple[str, str, str, int], int],
        hits: Mapping[tuple[str, str], list[int]],
        pools: Mapping[str, Pool],
        zone: str,
    ) -> None:
        self._requests = requests
        self._hits = hits
        self._pools = pools
        self.zone = zone
        self.sums: dict[Pair, list[int]] = {}
        self._booked: dict[tuple[str, str], tuple[int, int]] = {}  # by pool and replica

    @property
    def known(self) -> bool:
        """Whether anything here has a zone, or had one."""
        if self.zone or self.sums:
            return True
        return any(replica.spec.zone for pool in self._pools.values() for replica in pool)

    def look(self) -> dict[Pair, list[int]]:
        """Book what has grown since the last look; the sums, none while no zone is known."""
        if self.known:
            self._book()
        return self.sums

    def follow(self, zone: str) -> None:
        """The router is in another zone from now on; what it did before counts for the old one."""
        if zone != self.zone:
            self._book()
            self.zone = zone

    def leaves(self, pool: str, replica: str, zone: str) -> None:
        """The replica's own counters are about to go."""
        if self.known or zone:
            keys = [key for key in self._requests if key[:2] == (pool, replica)]
            self._grown(pool, replica, zone, sum(self._requests[key] for key in keys))
        self._booked.pop((pool, replica), None)

    def _book(self) -> None:
        totals: dict[tuple[str, str], int] = {}
        for (pool, replica, _, _), count in self._requests.items():
            if replica:  # else nobody answered
                totals[pool, replica] = totals.get((pool, replica), 0) + count
        for (pool, replica), count in totals.items():
            members = self._pools.get(pool)
            member = None if members is None else members.by_name(replica)
            self._grown(pool, replica, "" if member is None else member.spec.zone, count)

    def _grown(self, pool: str, replica: str, zone: str, requests: int) -> None:
        cell = self._hits.get((pool, replica))
        tokens = cell[0] if cell else 0
        old_requests, old_tokens = self._booked.get((pool, replica), (0, 0))
        if requests == old_requests and tokens == old_tokens:
            return
        self._booked[pool, replica] = requests, tokens
        here = self.zone
        same = ("yes" if zone == here else "no") if zone and here else UNKNOWN
        pair = pool, here or UNKNOWN, zone or UNKNOWN, same
        if pair not in self.sums and len(self.sums) >= MAX_PAIRS:
            pair = pool, here or UNKNOWN, OTHER, same
        sums = self.sums.setdefault(pair, [0, 0])
        sums[0] += requests - old_requests
        sums[1] += tokens - old_tokens
