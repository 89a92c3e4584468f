"""What the use of a LoRA adapter costs on each replica of a pool, and which one has to go.

The cost of a pair is the time until a request's first step could run there, plus what a load takes
from others: half a load of the adapter that has to give way, as likely as that is asked for again.
`adapters_books` has the states. `feeds.adapters` makes the calls, a lab does so on a virtual clock.

Floor 3: sans-I/O. What an adapter costs that is nowhere near is kept by slot and corrected where
something changed, so that a decision costs 5 us and 20 ns a replica.
"""

from __future__ import annotations

from array import array
from math import exp
from typing import Final

from warmlane.router.adapters_books import AdapterBooks, Members
from warmlane.router.adapters_seat import Seat

SWAP_S: Final = 0.005  # 84 MB (rank 16 of an 8B) from host memory at 20 GB/s
_BELIEF_S: Final = 0.5  # how long the weighing of who gives way counts
# A displaced adapter is somebody else's wait, later, perhaps where there is room by then. All of
# its load in place of half makes the mean TTFT 4 to 8 % longer (benchmarks/bench_adapters.py).
_DISPLACED: Final = 0.5


class AdapterTable(AdapterBooks):
    """The adapters of one pool. Owned by it."""

    def __init__(self, pool: Members) -> None:
        super().__init__(pool)
        self._where: dict[str, list[int]] = {}  # slots that list an adapter, as of `_version`
        self._version = -1
        self._strangers = array("d")  # by slot, what an adapter costs that is not there
        self._until = 0.0

    def costs(self, adapter: str, now: float, out: array[float]) -> None:
        """Seconds by slot, where it can run or be loaded."""
        self._freshen(now)
        out[: len(self._strangers)] = self._strangers
        for slot in self._where.get(adapter, ()):
            out[slot] = self.cost(slot, adapter, now)
        for slot in self._booked.get(adapter, ()):
            out[slot] = self.cost(slot, adapter, now)

    def _freshen(self, now: float) -> None:
        """Make `_strangers` and `_where` believable; no work while nothing changed."""
        pool, dirty, costs = self._pool, self._dirty, self._strangers
        if self._version != pool.version:
            self._look()
        elif now < self._until:
            while dirty:
                slot = dirty.pop()
                costs[slot] = self._stranger(slot, self.seat(slot), now)
            return
        self._until = now + _BELIEF_S
        dirty.clear()
        del costs[len(pool) :]
        costs.extend([0.0] * (len(pool) - len(costs)))
        for slot in range(len(pool)):
            costs[slot] = self._stranger(slot, self.seat(slot), now)

    def cost(self, slot: int, adapter: str, now: float) -> float:
        """Seconds for one slot; 0 where it can neither run nor be loaded."""
        seat = self.seat(slot)
        begun = seat.loading.get(adapter)
        if begun is not None:
            return max(0.0, self.load_s(seat) - (now - begun))
        if self.has(slot, adapter):
            if adapter in seat.busy or adapter in self._told(slot):
                return 0.0
            return SWAP_S + self._wait_s(slot, seat)
        if not self.can_load(slot, adapter):
            return 0.0
        if adapter not in seat.busy:
            return self._stranger(slot, seat, now)
        wished, used = self._wished(slot, seat)
        over = max(0, used - self.slots(slot))
        return SWAP_S + self.load_s(seat) * wished + self.hold_s * over

    def _stranger(self, slot: int, seat: Seat, now: float) -> float:
        """Seconds for an adapter that is neither there nor on its way."""
        wished, used = self._wished(slot, seat)
        seconds = SWAP_S + self.load_s(seat) * (wished + 1)
        over = used + 1 - self.slots(slot)
        if over > 0:  # all slots are in use, or about to be
            return seconds + self.hold_s * over
        if not self.full(slot):
            return seconds + self._wait_s(slot, seat)
        victim = self.victim(slot, now)
        if victim is None:
            return seconds + self.hold_s
        worth = _DISPLACED * self._worth(victim, now)
        return seconds + self.load_s(seat) * worth + self._wait_s(slot, seat)

    def _wished(self, slot: int, seat: Seat) -> tuple[int, int]:
        """Loads that are to come, and adapters in use with these."""
        listed, busy = self._listed(slot), seat.busy
        coming = 0  # for requests that left, or after a restart
        if seat.loading:
            coming = sum(name not in busy for name in seat.loading)
        return sum(name not in listed for name in busy) + coming, len(busy) + coming

    def _wait_s(self, slot: int, seat: Seat) -> float:
        """Until a GPU slot is free: the engine runs at most max_loras adapters in one batch."""
        most = self._max_loras(slot)
        if not most or len(seat.busy) < most:
            return 0.0
        return 0.5 * self.hold_s

    def victim(self, slot: int, now: float) -> str | None:
        """The adapter that is missed least: no open request, and one that could be loaded again.

        None: every one is in use, or not ours to unload.
        """
        replica = self._pool.replicas[slot]
        if replica is None or replica.models is None:
            return None
        told, best = self._told(slot), None
        twins = [self.seat(each) for each in self.twins(slot)]
        for name in replica.models.adapters:
            if name in told or any(name in seat.busy for seat in twins) or not self.source(name):
                continue
            rank = (self._worth(name, now), self.seat(slot).seen.get(name, 0.0), name)
            best = rank if best is None or rank < best else best
        return None if best is None else best[2]

    def _worth(self, adapter: str, now: float) -> float:
        """How likely it is asked for again soon, 0 to 1, shared by the replicas that have it."""
        if self._version != self._pool.version:
            self._look()
        return (1.0 - exp(-self._demand(adapter, now))) / max(1, len(self._where.get(adapter, ())))

    def _look(self) -> None:
        """Which slots list which adapter; holds until the pool changes."""
        self._version, self._until = self._pool.version, 0.0
        where: dict[str, list[int]] = {}
        for replica in self._pool:
            for name in () if replica.models is None else replica.models.adapters:
                where.setdefault(name, []).append(replica.slot)
        self._where = where
