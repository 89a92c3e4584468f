"""The requests that wait for one pool: their order and their bounds. Floor 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Protocol

from warmlane.router.admission_queue import FairQueue, Fits, Item
from warmlane.router.admission_sessions import Session
from warmlane.router.config_admission import Admission
from warmlane.router.errors import RouterError
from warmlane.router.types import Decision

if TYPE_CHECKING:
    from warmlane.router.lane import Prepared

Told = Callable[[Decision | RouterError], None]


class Keeper(Protocol):
    """Who keeps a request (`admission.Gate`)."""

    def cancel(self, item: Waiting) -> None: ...


class Waiting(Item):
    """A request that waits. `cancel` it when its client is gone; then `told` hears nothing.

    size: bytes that it keeps in memory. until: when it has waited long enough. session: the one
    that it continues.
    """

    __slots__ = ("_keeper", "prepared", "rand", "session", "size", "told", "until")

    prepared: Prepared
    rand: int
    session: Session | None
    size: int
    told: Told
    until: float

    def __init__(
        self, keeper: Keeper, tenant: str, level: int, fresh: bool, at: float, work: float
    ) -> None:
        super().__init__(tenant, level, fresh, at, work)
        self._keeper = keeper

    def cancel(self) -> None:
        """Its client is gone."""
        self._keeper.cancel(self)


class WaitingLine(FairQueue):
    """A fair queue that is bounded. bytes: of all that wait."""

    def __init__(self, config: Admission) -> None:
        super().__init__(config.weights, config.tenants, config.age_s)
        self.bytes = 0
        self._bound(config)
        self._until: list[tuple[float, int, Waiting]] = []
        self._order = count()

    def _bound(self, config: Admission) -> None:
        self._most = config.queue_requests
        self._most_bytes = config.queue_bytes

    def take_over(self, config: Admission, wait_s: float) -> None:
        """Another config: nobody who waits is sent away or has less time than was promised.

        wait_s: how long requests without a deadline of their own may wait from now on.
        """
        self.follow(config.weights, config.tenants, config.age_s)
        self._bound(config)
        for item in self:
            assert isinstance(item, Waiting)
            own = item.prepared.request.wait_s
            item.until = max(item.until, item.at + (wait_s if own is None else min(wait_s, own)))
        self._until = [
            (item.until, next(self._order), item) for item in self if isinstance(item, Waiting)
        ]
        heapify(self._until)

    def limit(self, item: Waiting) -> str:
        """The bound that one more would break, "" for none."""
        if len(self) >= self._most:
            return "queue_requests"
        return "queue_bytes" if self.bytes + item.size > self._most_bytes else ""

    def keep(self, item: Waiting) -> None:
        """One more waits."""
        self.push(item)
        self.bytes += item.size
        heappush(self._until, (item.until, next(self._order), item))
        if len(self._until) > 2 * len(self) + 64:  # most of it is of those who went
            self._until = [each for each in self._until if each[2].size >= 0]
            heapify(self._until)

    def next(self, fits: Fits, now: float) -> Waiting | None:
        """Who goes now, taken out; None: nobody may."""
        item = self.pop(fits, now)
        assert item is None or isinstance(item, Waiting)
        return item

    def due(self, now: float) -> Iterator[Waiting]:
        """Those whose time is over, taken out one by one."""
        until = self._until
        while until and (until[0][0] <= now or until[0][2].size < 0):
            item = heappop(until)[2]
            if self.remove(item):
                yield item
            until = self._until

    def remove(self, item: Item) -> bool:
        if not super().remove(item):
            return False
        assert isinstance(item, Waiting)
        self.bytes -= item.size
        item.size = -1  # what the heap still holds of it is small
        return True
