"""The books of one pool's LoRA adapters: which replica has which, who uses it, what was refused.

Floor 3: sans-I/O, time comes in. A pair of replica and adapter is in one of these states:

    absent      the engine does not list it: a load call is needed, tens of milliseconds to seconds
    loading     that call is under way
    registered  listed in /v1/models, no request uses it: a swap into a GPU slot, milliseconds
    active      requests use it (this router's own, or any in the engine's metrics): nothing

`router.adapters` says on top what a pair costs and who gives way; `feeds.adapters` makes the calls.
Nothing here is touched by requests without an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from math import exp, log
from typing import Final, Protocol

import msgspec

from warmlane.router.adapters_seat import FIRST_LOAD_S, Residency, Seat
from warmlane.router.config import PoolConfig
from warmlane.router.config_adapters import Adapters, source_of
from warmlane.router.types import LoadSnapshot, ModelList, ReplicaSpec

FIRST_HOLD_S: Final = 2.0  # an answer with an adapter, until some have been seen
UNTOLD_SLOTS: Final = 4  # an engine tells max_loras with its first step
REFUSED_S: Final = 30.0  # how long a refusal of the engine is remembered
EVERYTHING: Final = ""  # refused: all loads, not one adapter
_STEP: Final = 0.2  # exponential mean over about the last five loads or answers
_OWN_LOADS: Final = 8  # as many count at most against those of all
_MOST_NAMES: Final = 4096  # adapters whose demand is remembered
_LN2: Final = log(2.0)


class Member(Protocol):
    """What the books read of a replica."""

    slot: int
    spec: ReplicaSpec
    models: ModelList | None
    load: LoadSnapshot | None


class Members(Protocol):
    """What the books need of their pool, which owns them."""

    config: PoolConfig
    version: int

    @property
    def replicas(self) -> Sequence[Member | None]: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Member]: ...

    def set_models(self, slot: int, models: ModelList) -> bool: ...

    def adapters_changed(self, slot: int) -> None: ...


class AdapterBooks:
    """What is known and what happens. Base of `AdapterTable`; slots are the pool's."""

    def __init__(self, pool: Members) -> None:
        self._pool = pool
        self._seats: list[Seat] = []
        self._heat: dict[str, tuple[float, float]] = {}  # demand and when it was that
        self._sources: dict[str, str] = {}  # of `_read`
        self._read: Adapters | None = None
        self._booked: dict[str, set[int]] = {}  # slots where it is in use or on its way
        self._dirty: set[int] = set()  # slots for which that changed
        self.mean_load_s = FIRST_LOAD_S  # of all replicas
        self._loads = 0
        self.hold_s = FIRST_HOLD_S  # mean length of an answer with an adapter
        self.on_idle: Callable[[int], None] | None = None  # an adapter of a slot has no request

    @property
    def config(self) -> Adapters:
        return self._pool.config.adapters

    def seat(self, slot: int) -> Seat:
        """Of a slot, made when it is new."""
        while len(self._seats) <= slot:
            self._seats.append(Seat())
        return self._seats[slot]

    def load_s(self, seat: Seat) -> float:
        """What a load takes there: its own loads of late, and those of all as if it had two more.

        So a first load from a cold disk does not shut a replica out for good.
        """
        own = min(seat.loads, _OWN_LOADS)
        return (own * seat.load_s + 2.0 * self.mean_load_s) / (own + 2.0)

    def reset(self, slot: int) -> None:
        """Another replica has the slot."""
        old = self.seat(slot)
        self._seats[slot] = Seat()
        for name in old.busy.keys() | old.loading.keys():
            self._mark(slot, name)

    # What may be

    def source(self, adapter: str) -> str:
        """Path or URL that engines load it from; "" when the router may not load it."""
        config, known = self.config, self._sources
        if config is not self._read or len(known) >= _MOST_NAMES:
            self._read = config
            known.clear()
        found = known.get(adapter)
        if found is None:
            found = known[adapter] = source_of(config, adapter)
        return found

    def base(self) -> str:
        """Model that the loadable adapters belong to; "" when that is not clear."""
        config = self._pool.config
        if config.adapters.base:
            return config.adapters.base
        found = set(config.models)
        if not found:
            for replica in self._pool:
                found |= frozenset() if replica.models is None else replica.models.models
        return next(iter(found)) if len(found) == 1 else ""

    def can_load(self, slot: int, adapter: str) -> bool:
        """Whether a load of it on this replica may be tried now."""
        replica = self._pool.replicas[slot]
        if replica is None or replica.models is None or not self.source(adapter):
            return False
        refused = self.seat(slot).refused
        if EVERYTHING in refused or adapter in refused:
            return False
        base = self.base()
        return not base or base in replica.models.models

    def nowhere(self, adapter: str) -> bool:
        """No replica has it, an engine said there is no such adapter, and none is left to ask."""
        slots = [each.slot for each in self._pool]
        if any(self.has(slot, adapter) or self.can_load(slot, adapter) for slot in slots):
            return False
        return any(self.seat(slot).refused.get(adapter, (0.0, False))[1] for slot in slots)

    # What is

    def has(self, slot: int, adapter: str) -> bool:
        """The engine lists it. One whose list nobody has read yet is believed to."""
        replica = self._pool.replicas[slot]
        if replica is None:
            return False
        return replica.models is None or adapter in replica.models.adapters

    def state(self, slot: int, adapter: str) -> Residency:
        seat = self.seat(slot)
        if adapter in seat.loading:
            return Residency.LOADING
        if not self.has(slot, adapter):
            return Residency.ABSENT
        active = adapter in seat.busy or adapter in self._told(slot)
        return Residency.ACTIVE if active else Residency.REGISTERED

    def _told(self, slot: int) -> frozenset[str]:
        """Adapters with requests by the engine's last metrics."""
        replica = self._pool.replicas[slot]
        load = None if replica is None else replica.load
        if load is None:
            return frozenset()
        if not load.waiting_adapters:
            return load.running_adapters
        return load.running_adapters | load.waiting_adapters

    def slots(self, slot: int) -> int:
        """How many adapters the replica may have registered."""
        if self.config.slots is not None:
            return self.config.slots
        return self._max_loras(slot) or UNTOLD_SLOTS

    def _max_loras(self, slot: int) -> int:
        replica = self._pool.replicas[slot]
        return 0 if replica is None or replica.load is None else replica.load.max_lora or 0

    def full(self, slot: int) -> bool:
        """No room for one more."""
        replica = self._pool.replicas[slot]
        held = 0 if replica is None or replica.models is None else len(replica.models.adapters)
        return held >= self.slots(slot)

    def twins(self, slot: int) -> list[int]:
        """Slots with the same endpoint: ranks of one engine share its adapters."""
        mine = self._pool.replicas[slot]
        if mine is None or mine.spec.rank is None:
            return [slot]
        return [each.slot for each in self._pool if each.spec.url == mine.spec.url]

    def _listed(self, slot: int) -> Container[str]:
        replica = self._pool.replicas[slot]
        return () if replica is None or replica.models is None else replica.models.adapters

    def _demand(self, adapter: str, now: float) -> float:
        """Requests for it, each half as much after `cold_s`."""
        heat, at = self._heat.get(adapter, (0.0, now))
        return heat * exp(-_LN2 * max(0.0, now - at) / self.config.cold_s)

    # What happens

    def opened(self, slot: int, adapter: str, now: float) -> Residency:
        """A request was booked there; the state that it met."""
        state, seat = self.state(slot, adapter), self.seat(slot)
        seat.busy[adapter] = seat.busy.get(adapter, 0) + 1
        seat.seen[adapter] = now
        self._mark(slot, adapter)
        heat = self._demand(adapter, now)
        if adapter not in self._heat and len(self._heat) >= _MOST_NAMES:
            del self._heat[min(self._heat, key=lambda name: self._heat[name][1])]
        self._heat[adapter] = (heat + 1.0, now)
        return state

    def moved(self, before: int, after: int, adapter: str) -> None:
        """A booked request goes elsewhere."""
        seen = self.seat(before).seen.get(adapter, 0.0)
        self._release(before, adapter)
        seat = self.seat(after)
        seat.busy[adapter] = seat.busy.get(adapter, 0) + 1
        seat.seen[adapter] = seen
        self._mark(after, adapter)

    def closed(self, slot: int, adapter: str, seconds: float | None) -> None:
        """A booked request ended, so long after its first token if it was answered. "": no-op."""
        if not adapter:
            return
        if seconds is not None:
            self.hold_s += _STEP * (seconds - self.hold_s)
        self._release(slot, adapter)

    def _release(self, slot: int, adapter: str) -> None:
        seat = self.seat(slot)
        left = seat.busy.get(adapter, 0) - 1
        if left > 0:
            seat.busy[adapter] = left
            return
        seat.busy.pop(adapter, None)
        self._mark(slot, adapter)
        if not self.has(slot, adapter):
            seat.seen.pop(adapter, None)
        if self.on_idle is not None:
            self.on_idle(slot)

    def _mark(self, slot: int, adapter: str) -> None:
        """What is in use or on its way there changed."""
        seat = self.seat(slot)
        self._dirty.add(slot)
        if adapter in seat.busy or adapter in seat.loading:
            self._booked.setdefault(adapter, set()).add(slot)
            return
        slots = self._booked.get(adapter)
        if slots is not None:
            slots.discard(slot)
            if not slots:
                del self._booked[adapter]

    def loading(self, slot: int, adapter: str, now: float) -> None:
        """A load call is made."""
        for each in self.twins(slot):
            self.seat(each).loading[adapter] = now
            self._mark(each, adapter)

    def loaded(self, slot: int, adapter: str, seconds: float | None) -> None:
        """It is there, after a call that took so long; None: it was there before."""
        for each in self.twins(slot):
            seat = self.seat(each)
            seat.loading.pop(adapter, None)
            self._mark(each, adapter)
            seat.ours.add(adapter)
            if seconds is not None:
                seat.loads += 1
                seat.load_s += max(_STEP, 1.0 / seat.loads) * (seconds - seat.load_s)
                self._loads += 1
                step = max(_STEP, 1.0 / self._loads)
                self.mean_load_s += step * (seconds - self.mean_load_s)
            self._list(each, adapter, True)

    def failed(
        self,
        slot: int,
        adapter: str,
        now: float,
        refused: str | None = None,
        *,
        found: bool = True,
    ) -> None:
        """A load did not succeed.

        refused: what the engine will not load for now (`EVERYTHING`: nothing at all). found: False
        when it says that there is no adapter at the source.
        """
        for each in self.twins(slot):
            seat = self.seat(each)
            seat.loading.pop(adapter, None)
            self._mark(each, adapter)
            seat.failures += 1
            if refused is not None:
                seat.refused[refused] = (now + REFUSED_S, not found)
                self._pool.adapters_changed(each)

    def unloaded(self, slot: int, adapter: str) -> None:
        """It was unloaded."""
        for each in self.twins(slot):
            seat = self.seat(each)
            seat.ours.discard(adapter)
            seat.seen.pop(adapter, None)
            seat.unloads += 1
            self._list(each, adapter, False)

    def missing(self, slot: int, adapter: str) -> None:
        """The engine says that it does not have it, whatever its list said."""
        for each in self.twins(slot):
            self._list(each, adapter, False)

    def lost(self, replica: Member) -> list[str]:
        """What this router had loaded on a replica that now lists none of it: it began anew.

        Told once, latest used first, no more than fit. One of several that is gone was unloaded by
        somebody, and is left to demand.
        """
        seat = self.seat(replica.slot)
        if replica.models is None or not seat.ours or seat.ours & replica.models.adapters.keys():
            return []
        names = sorted(seat.ours, key=lambda name: seat.seen.get(name, 0.0), reverse=True)
        room = self.slots(replica.slot) - len(replica.models.adapters)
        seat.ours.clear()
        return [name for name in names if self.can_load(replica.slot, name)][: max(0, room)]

    def tick(self, now: float) -> None:
        """Now and then: old refusals do not count any more."""
        for slot, seat in enumerate(self._seats):
            over = [name for name, (until, _) in seat.refused.items() if until <= now]
            for name in over:
                del seat.refused[name]
            if over:
                self._pool.adapters_changed(slot)

    def _list(self, slot: int, adapter: str, there: bool) -> None:
        """Correct the replica's list until its next probe reads it anew."""
        replica = self._pool.replicas[slot]
        if replica is None or replica.models is None:
            return
        adapters = dict(replica.models.adapters)
        if there:
            adapters[adapter] = self.base() or next(iter(replica.models.models), "")
        else:
            adapters.pop(adapter, None)
        models: ModelList = msgspec.structs.replace(replica.models, adapters=adapters)
        self._pool.set_models(slot, models)
