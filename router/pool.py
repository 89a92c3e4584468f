"""One pool: its replicas by slot, what is known of each, and the columns decisions work on.

Owns membership, states, load snapshots with their age, and the ledger of work in flight. Feeds
write here between decisions, on the same thread. It never asks a network or a clock, and a
decision costs it one comparison: columns are kept up to date when something changes.

A slot is never reused while the index still sweeps it or a ticket is open on it: `reap` frees it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from warmlane._core.ledger import Ledger
from warmlane._core.price import Price
from warmlane._core.upkeep import Placements
from warmlane.router.adapters import AdapterTable
from warmlane.router.config import Limits, PoolConfig
from warmlane.router.config_load import normal_spec
from warmlane.router.errors import ConfigError
from warmlane.router.foreign import Foreign
from warmlane.router.pace import PrefillPace
from warmlane.router.types import Doubt, LoadSnapshot, ModelList, ReplicaSpec, ReplicaState

Listener = Callable[[str, "Replica"], None]
LoadListener = Callable[["Replica", LoadSnapshot | None], None]

# Uncached tokens guessed for a waiting request that another router sent, until this pool has
# decided something itself: about the median prompt of the public chat traces after its hits.
_FOREIGN_TOKENS = 512.0
_PLACED_HALF_LIFE_S = 300.0  # a cache of 400,000 tokens turns over in minutes under load


class Replica:
    """One replica and the last that was heard of it. Only its pool writes to it."""

    __slots__ = (
        "doubt",
        "endpoint",
        "exact",
        "health",
        "load",
        "models",
        "name",
        "reason",
        "slot",
        "spec",
        "state",
        "token_features",
        "unwilling",
    )

    def __init__(self, spec: ReplicaSpec, slot: int, state: ReplicaState) -> None:
        self.spec = spec
        self.slot = slot
        self.name = spec.name
        self.endpoint = spec.url.partition("://")[2]
        self.state = state
        self.health = state  # what the state is, or would be were it not drained
        self.reason = ""
        self.unwilling = False  # it says itself that it does not serve now
        self.load: LoadSnapshot | None = None
        self.models: ModelList | None = None
        self.doubt: Doubt | None = None  # what is predicted of it lastingly does not come true
        self.exact: bool | None = None  # its hits come from its own events; None: it has none
        self.token_features = 0  # proven equal to our tokenizer: bits of token_jobs.bits_of

    def __repr__(self) -> str:
        return f"<Replica {self.name} slot {self.slot} {self.state.name}>"


class Pool(Placements):
    """Replicas by slot, and their columns. `version` grows with every change but load.

    initial: state of a new replica; READY where nobody probes (library, simulation).
    """

    def __init__(
        self,
        config: PoolConfig,
        limits: Limits | None = None,
        *,
        stale_s: float = 10.0,
        initial: ReplicaState = ReplicaState.READY,
    ) -> None:
        limits = limits or Limits()
        self.name = config.name
        self.config = config
        self.initial = initial
        self.version = 1
        self.replicas: list[Replica | None] = []
        self.ledger = Ledger(limits.replicas, limits.tickets)
        self.ready = array("B")
        self.kv_usage = array("d")
        self.placed_tokens = array("d")
        self.foreign = Foreign()
        self.pace = PrefillPace()
        self.price: Price | None = None  # what decides here; its predictions are metrics
        self.adapters = AdapterTable(self)
        self.mean_uncached_tokens = _FOREIGN_TOKENS
        self.half_lives = 0.0  # of placed tokens, gone since the pool began
        self._faded_at: float | None = None
        self._limit = limits.replicas
        self._stale_s = stale_s
        self._fresh_until = float("inf")
        self._names: dict[str, Replica] = {}
        self._listeners: list[Listener] = []
        self._load_listeners: list[LoadListener] = []

    def __len__(self) -> int:
        return len(self.replicas)

    def __iter__(self) -> Iterator[Replica]:
        """The members: every replica that is not GONE."""
        return iter(list(self._names.values()))

    # Membership

    def add(self, spec: ReplicaSpec, now: float) -> int:
        """Slot of a new member. The same spec again is the same slot.

        ConfigError: bad URL, a name that another spec has, or the pool is full.
        """
        del now  # part of the face: a membership with ages may want it
        spec = normal_spec(spec, f"pool {self.name!r}: replica")
        known = self._names.get(spec.name)
        if known is not None:
            if known.spec == spec:
                return known.slot
            raise ConfigError(
                f"pool {self.name!r}: replica {spec.name!r}: the name is taken by {known.spec.url}"
            )
        slot = self._free_slot()
        # As much as the least of the others: a newcomer is neither shunned nor swamped.
        others = [self.placed_tokens[each.slot] for each in self]
        self.placed_tokens[slot] = min(others, default=0.0)
        replica = Replica(spec, slot, self.initial)
        self.pace.forget(slot)
        self.adapters.reset(slot)
        self.replicas[slot] = self._names[spec.name] = replica
        self.ready[slot] = self.initial is ReplicaState.READY
        self._changed("added", replica)
        return slot

    def remove(self, name: str, now: float) -> bool:
        """Take a member out; its slot waits for `reap`. False: no such member."""
        del now
        replica = self._names.pop(name, None)
        if replica is None:
            return False
        replica.state = replica.health = ReplicaState.GONE
        self.ready[replica.slot] = 0
        self.foreign.forget(replica.slot)
        self.kv_usage[replica.slot] = 0.0
        self._changed("removed", replica)
        return True

    def drain(self, name: str, reason: str = "drained by an operator") -> bool:
        """No new requests; those under way finish. False: no such member."""
        replica = self._names.get(name)
        if replica is None:
            return False
        self._become(replica, ReplicaState.DRAINING, reason)
        return True

    def undrain(self, name: str) -> bool:
        """Back to the state that its health gives it. False: no such member."""
        replica = self._names.get(name)
        if replica is None:
            return False
        self._become(replica, replica.health, "undrained")
        return True

    def relabel(self, spec: ReplicaSpec) -> bool:
        """Other labels or another zone for the same replica, which keeps all else."""
        replica = self._names.get(spec.name)
        if replica is None or replica.spec == spec:
            return False
        if replica.spec.url != spec.url or replica.spec.rank != spec.rank:
            raise AssertionError("another endpoint is another replica: remove and add")
        replica.spec = spec
        self._changed("labels", replica)
        return True

    def reap(self, is_free: Callable[[int], bool]) -> int:
        """Free the slots of GONE replicas that `is_free` (the index) has let go; how many."""
        freed = 0
        requests = self.ledger.requests
        for slot, replica in enumerate(self.replicas):
            gone = replica is not None and replica.state is ReplicaState.GONE
            if gone and requests[slot] == 0 and is_free(slot):
                self.replicas[slot] = None
                freed += 1
        return freed

    def by_name(self, name: str) -> Replica | None:
        """The member of that name, or None."""
        return self._names.get(name)

    def on_change(self, listener: Listener) -> None:
        """Call `listener(event, replica)` after a change: "added", "removed",
        "state", "models", "labels", "tokens" or "adapters"."""
        self._listeners.append(listener)

    def on_load(self, listener: LoadListener) -> None:
        """Call `listener(replica, previous snapshot)` after each load snapshot."""
        self._load_listeners.append(listener)

    # What the feeds know

    def set_state(
        self, slot: int, state: ReplicaState, reason: str = "", *, unwilling: bool = False
    ) -> bool:
        """Health of a member, told by a probe or by passive ejection. True: its state changed.

        unwilling: the replica itself says that it does not serve now (asleep, paused); it is not
        asked even when nobody else is left. A drained replica stays drained; what is told here is
        where `undrain` leads. Late news of a replica that is gone is ignored.
        """
        if state in (ReplicaState.GONE, ReplicaState.DRAINING):
            raise AssertionError("use remove or drain: an operator's word is not health")
        replica = self.replicas[slot]
        if replica is None or replica.state is ReplicaState.GONE:
            return False
        replica.health = state
        if replica.unwilling is not unwilling:
            replica.unwilling = unwilling
            self.version += 1
        if replica.state is ReplicaState.DRAINING:
            return False
        return self._become(replica, state, reason)

    def set_models(self, slot: int, models: ModelList) -> bool:
        """What /v1/models said. True: it differs from before."""
        replica = self.replicas[slot]
        if replica is None or replica.state is ReplicaState.GONE or replica.models == models:
            return False
        replica.models = models
        self._changed("models", replica)
        return True

    def follow(self, config: PoolConfig) -> PoolConfig:
        """Another config of this pool; the one before."""
        old, self.config = self.config, config
        if config.adapters != old.adapters:  # who may serve an adapter is not as before
            self.version += 1
        return old

    def adapters_changed(self, slot: int) -> None:
        """Which adapters may be loaded on a replica is not as before."""
        replica = self.replicas[slot]
        if replica is not None:
            self._changed("adapters", replica)

    def set_token_features(self, slot: int, features: int) -> None:
        """What was proven of a replica's tokenizer (bits); 0 until it is asked."""
        replica = self.replicas[slot]
        if replica is not None and replica.token_features != features:
            replica.token_features = features
            self._changed("tokens", replica)

    def update_load(self, slot: int, load: LoadSnapshot) -> None:
        """A scrape. What the engine counts beyond this router's own ledger is others' work.

        The difference is taken now, against the ledger of the same moment, and not at a decision
        that may be seconds later: a count of then minus a count of now would be noise.
        """
        replica = self.replicas[slot]
        if replica is None or replica.state is ReplicaState.GONE:
            return
        previous, replica.load = replica.load, load
        own, past_first = self.ledger.requests[slot], self.ledger.running[slot]
        requests = max(0.0, load.waiting + load.running - own)
        waiting = max(0.0, load.waiting - max(0, own - past_first))
        self.foreign.see(slot, requests, waiting, self.mean_uncached_tokens, load.taken_at)
        self.kv_usage[slot] = min(1.0, max(0.0, load.kv_usage))
        self.pace.heard(slot, previous, load, self.backlog_tokens(slot) > 0)
        if load.asleep != (previous is not None and previous.asleep):
            self.ready[slot] = replica.state is ReplicaState.READY and not load.asleep
            self._changed("state", replica)
        self._fresh_until = min(self._fresh_until, load.taken_at + self._stale_s)
        for listener in self._load_listeners:
            listener(replica, previous)

    def load_age_s(self, slot: int, now: float) -> float | None:
        """Age of the last scrape, None without one."""
        replica = self.replicas[slot]
        return None if replica is None or replica.load is None else now - replica.load.taken_at

    def backlog_tokens(self, slot: int) -> float:
        """Uncached prompt tokens that wait there or are being computed, others' work included."""
        return self.ledger.prefill_tokens[slot] + self.foreign.tokens[slot]

    def capacity_tokens(self, replica: Replica) -> int | None:
        """KV cache of a replica: its spec, its metrics, the pool's config; None: nobody tells."""
        load = replica.load
        told = None
        if load is not None and load.num_blocks and load.block_size:
            told = load.num_blocks * load.block_size
        return replica.spec.capacity_tokens or told or self.config.capacity_tokens

    # For the decision

    # `freshen` and `placed` are the base's: every decision calls them.

    def fade(self, now: float) -> None:
        """Forget old placements and refusals; to be called now and then."""
        self.adapters.tick(now)
        if self._faded_at is not None and now > self._faded_at:
            gone = (now - self._faded_at) / _PLACED_HALF_LIFE_S
            self.half_lives += gone
            kept = 0.5**gone
            for slot in range(len(self.placed_tokens)):
                self.placed_tokens[slot] *= kept
        self._faded_at = now

    def _expire_loads(self, now: float) -> None:
        """Neither dead nor idle: others' work is unknown (0), kv_usage is as the fresh ones'."""
        fresh, stale, until = [], [], float("inf")
        for slot, replica in enumerate(self.replicas):
            if replica is None or replica.load is None:
                continue
            end = replica.load.taken_at + self._stale_s
            if end > now:
                fresh.append(slot)
                until = min(until, end)
            else:
                stale.append(slot)
        usage = sum(self.kv_usage[slot] for slot in fresh) / len(fresh) if fresh else 0.0
        for slot in stale:
            self.foreign.unsee(slot)
            self.kv_usage[slot] = usage
        self.foreign.look()
        self._fresh_until = until

    def _free_slot(self) -> int:
        for slot, replica in enumerate(self.replicas):
            if replica is None:
                return slot
        if len(self.replicas) >= self._limit:
            raise ConfigError(f"pool {self.name!r}: {self._limit} replicas: limits.replicas")
        self.replicas.append(None)
        self.ready.append(0)
        self.pace.add()
        self.foreign.add_slot()
        self.kv_usage.append(0.0)
        self.placed_tokens.append(0.0)
        return len(self.replicas) - 1

    def _become(self, replica: Replica, state: ReplicaState, reason: str) -> bool:
        if replica.state is state:
            return False
        replica.state, replica.reason = state, reason
        self.ready[replica.slot] = state is ReplicaState.READY
        self._changed("state", replica)
        return True

    def _changed(self, event: str, replica: Replica) -> None:
        self.version += 1
        for listener in self._listeners:
            listener(event, replica)
