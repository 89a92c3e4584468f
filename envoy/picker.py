"""What all streams of one endpoint picker share: the router, the switch, addresses and bounds.

Owned by the server's event loop. Never blocks and never awaits: a session asks, and gets an answer,
or, for token ids alone, is called back.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Final, TypeAlias

from warmlane._core.desk import Lead
from warmlane._core.proc_gate import Gate, Link
from warmlane.envoy.extras import address_of
from warmlane.envoy.messages import DESTINATION, MODES, set_header
from warmlane.router.admission_read import header_names
from warmlane.router.config import Config
from warmlane.router.core import Router
from warmlane.router.feeds.adapters import AdapterFeed
from warmlane.router.interfaces import TokenSource
from warmlane.router.pool import Pool, Replica
from warmlane.router.predicted import Predicted
from warmlane.router.requests import KINDS, SCAN_KIND, TransferParams
from warmlane.router.shadow import Shadow
from warmlane.router.types import Decision, Kind, ReplicaState, Request

RANK_HEADER: Final = b"x-data-parallel-rank"
_TRIES: Final = 3  # of a gateway, the first one included (num_retries 2 in deploy/envoy)

# A request whose token ids are on their way; to be cancelled when nobody waits for it any more.
Waiting: TypeAlias = asyncio.Task[Request]
Loading: TypeAlias = asyncio.Task[int]  # or whose adapter is loaded: the slot that has it, -1


class Way:
    """How a gateway is told of one replica. address: "ip:port" as it goes on the wire."""

    __slots__ = ("address", "endpoint", "mutation", "rank", "replica")

    def __init__(self, replica: Replica, address: str) -> None:
        self.replica = replica
        self.address = address
        self.endpoint = address.encode()
        self.rank = replica.spec.rank
        self.mutation = b"" if self.rank is None else set_header(RANK_HEADER, b"%d" % self.rank)


class Ways:
    """The ways to one pool's replicas, by slot; rebuilt when the pool changes."""

    def __init__(self, pool: Pool, addresses: dict[str, str]) -> None:
        self.pool = pool
        self.name = pool.name
        self._addresses = addresses
        self._version = 0
        self.by_slot: list[Way | None] = []
        self._by_address: dict[str, list[int]] = {}

    def fresh(self) -> list[Way | None]:
        """The ways by slot; None where a slot is free."""
        if self._version != self.pool.version:
            self._version = self.pool.version
            self.rebuild()
        return self.by_slot

    def rebuild(self) -> None:
        self.by_slot = [
            None if each is None else Way(each, self._addresses.get(each.endpoint, each.endpoint))
            for each in self.pool.replicas
        ]
        self._by_address = {}
        for slot, way in enumerate(self.by_slot):
            if way is not None:
                self._by_address.setdefault(way.address, []).append(slot)

    def slot_of(self, address: str, preferred: tuple[int, ...]) -> int:
        """The slot at an address: one of `preferred` if it can be, -1 if nobody is there.

        Ranks behind one address are told apart by what was chosen.
        """
        self.fresh()
        slots = self._by_address.get(address)
        if not slots:
            return -1
        return next((slot for slot in preferred if slot in slots), slots[0])

    def names(self, entries: list[str]) -> set[str]:
        """Replica names and endpoints that a subset's entries mean.

        "ip:port" is that port alone; a bare IP means each of its ports.
        """
        found = set(entries)
        ways = [way for way in self.fresh() if way is not None]
        bare = {host(entry) for entry in entries if is_bare(entry)}
        for way in ways:
            if way.address in found or (bare and host(way.address) in bare):
                found.add(way.replica.name)
        return found


class Picker(Gate):
    """See the module."""

    def __init__(self, router: Router, config: Config) -> None:
        self.router = router
        self.options = options = config.ext_proc
        self.metrics = router.metrics
        self.level = options.response_level
        self.ordered = options.endpoints == "ordered"
        self.subset = options.subset
        self.test_headers = options.test_headers
        self.steers = options.test_headers or options.session_token  # by headers of the client
        self.body_mode = MODES[options.body_mode]
        self.streamed_bytes = options.streamed_bytes
        self.ask_for_body = options.ask_for_body
        self.draining = False
        self.ends = router.metrics.counts["warmlane_ext_proc_streams_total"]
        self.rand = random.Random().getrandbits
        self.predicted = Predicted(
            router, options.prefill_tokens_per_s, options.output_tokens_per_s
        )
        self.shadow = Shadow(router, config.shadow)
        self.tokens: TokenSource | None = None  # set by the server, where a pool is exact
        self.adapters: AdapterFeed | None = None  # set by the server
        self.failing: Callable[[str, str], None] | None = None  # set by the server
        # Endpoints by name ("host:port") -> "ip:port"; filled by `addresses.Resolver`.
        self.addresses: dict[str, str] = {}
        self._ways: dict[str, Ways] = {}
        # The compiled course tells one address, and reads no bodies of answers.
        self.plain = self.level < 2 and not self.ordered and not self.test_headers
        # These it does not know.
        if options.session_token or options.endpoint_scores or options.conditional:
            self.plain = False
        self.unknown_kind = Kind.OTHER
        self.paths = {path: SCAN_KIND[kind] for path, kind in KINDS.items()}
        self.sow(random.getrandbits(64))
        router.catalog.on_change(self.forget_leads)
        self.follow(config)

    def follow(self, config: Config) -> None:
        """A reload: pools come and go; limits and rules of bodies count from the next message on.

        Streams under way keep the ways of the pool that decided them.
        """
        self.config = config
        before, self._ways = self._ways, {}
        for name, pool in self.router.pools.items():
            ways = before.get(name)
            if ways is None or ways.pool is not pool:
                ways = Ways(pool, self.addresses)
                pool.on_change(self._pool_changed)
            gate = self.router.lanes[name].gate
            if gate is not None and self.forget_leads not in gate.on_active:  # a reload made it
                gate.on_active.append(self.forget_leads)
            self._ways[name] = ways
        self.forget_leads()
        for lane in self.router.lanes.values():
            lane.last_resort = False  # a gateway has a way of its own to fall back
        self.predicted.follow()
        self.transfer_params: TransferParams = config.transfer_params
        self.body_bytes = config.limits.body_bytes
        self.buffered_most = config.limits.buffered_bytes
        self.text_bytes = config.limits.answer_text_bytes
        self.admission = config.admission if config.admission.enabled else None
        self.wanted = header_names(self.admission)

    def ways(self, pool: str) -> Ways:
        """The ways to the replicas of a pool that decides now."""
        return self._ways[pool]

    def lead(self, name: bytes) -> Lead | None:
        """Where a model name leads without a look at the request; see `Leads.lead_of`.

        Where token ids may be wanted each request is asked about first: no name leads anywhere.
        """
        if self.tokens is not None:
            return None
        found = self.router.fixed_target(name)
        if found is None:
            return None
        model, target = found
        lane, ways = self.router.lanes[target.pool], self._ways[target.pool]

        def link_of(slot: int) -> Link:
            way = ways.fresh()[slot]
            assert way is not None, "a decision names members only"
            return Link(way.endpoint, way.mutation, self.predicted.of(lane, slot))

        return lane.lead(model, target, ways, link_of)

    def _pool_changed(self, event: str, replica: Replica) -> None:
        self.forget_leads()

    def endpoint(self, decision: Decision, ways: list[Way | None], first: Way) -> bytes:
        """What the gateway is told: one address, or the ordered list by config.

        A list names only replicas with the rank of the first, the rank header is one for all, and
        with the request's adapter: a gateway that falls back on one loads nothing. Where the first
        three would stand in one zone the third gives way to the best of another one: gateways try
        about three, and a zone may be gone.
        """
        if not self.ordered or len(decision.choices) == 1:
            return first.endpoint
        found = [first, *self._like(first, decision, decision.choices, ways)]
        zone = first.replica.spec.zone
        if zone and all(way.replica.spec.zone == zone for way in found[:_TRIES]):
            slots = self.router.rest(decision.ticket, monotonic(), True, frozenset({zone}))
            others = found[_TRIES:] + self._like(first, decision, slots, ways)
            far = next((way for way in others if way.replica.spec.zone != zone), None)
            if far is not None:
                found = [way for way in found if way is not far]
                found.insert(_TRIES - 1, far)
        return b",".join([way.endpoint for way in found])

    def _like(
        self, first: Way, decision: Decision, slots: Sequence[int], ways: list[Way | None]
    ) -> list[Way]:
        """Others that a gateway may take in place of the first, each address once."""
        found: dict[bytes, Way] = {first.endpoint: first}
        for slot in slots:
            way = ways[slot]
            if way is None or way.rank != first.rank:
                continue
            if not decision.adapter or has_adapter(way.replica, decision.adapter):
                found.setdefault(way.endpoint, way)
        return list(found.values())[1:]

    def subset_of(self, entries: list[str]) -> frozenset[str]:
        """The subset in the router's own names."""
        found: set[str] = set()
        for ways in self._ways.values():
            found |= ways.names(entries)
        return frozenset(found)

    def with_ids(
        self, request: Request, body: bytes, then: Callable[[Waiting], None]
    ) -> Waiting | None:
        """None: decide at once. Else `then` is called, in a later turn and within the budget, with
        what holds the request and its token ids; not at all when it was cancelled before."""
        tokens = self.tokens
        pool = None if tokens is None else tokens.pool_of(request)
        if tokens is None or pool is None:
            return None
        ids = tokens.ids(request, pool, body)
        waiting = asyncio.get_running_loop().create_task(_request(ids), name="token ids")
        waiting.add_done_callback(lambda done: None if done.cancelled() else then(done))
        return waiting

    def loading(
        self, pool: Pool, decision: Decision, then: Callable[[Loading], None]
    ) -> Loading | None:
        """None: the first choice has the request's adapter. Else `then` is called as above."""
        if self.adapters is None:
            return None
        loading = self.adapters.placing(pool, decision.choices, decision.adapter)
        if loading is not None:
            loading.add_done_callback(lambda done: None if done.cancelled() else then(done))
        return loading

    def subset_of_token(self, token: bytes) -> frozenset[str] | None:
        """The replicas at a session token's address, None where none of them is ready."""
        address = address_of(token)
        found = {
            way.replica.name
            for ways in self._ways.values()
            for way in ways.fresh()
            if way is not None
            and way.address == address
            and way.replica.state is ReplicaState.READY
        }
        return frozenset(found) or None

    def _failed(self, side: Ways, slot: int) -> None:
        """A client got 5xx for a request that went there."""
        replica = side.pool.replicas[slot] if 0 <= slot < len(side.pool.replicas) else None
        if self.failing is not None and replica is not None:
            self.failing(side.name, replica.name)

    def readdressed(self) -> None:
        """Addresses changed: ways are made anew."""
        for ways in self._ways.values():
            ways.rebuild()
        self.forget_leads()


async def _request(ids: Awaitable[Request]) -> Request:
    return await ids


def has_adapter(replica: Replica, adapter: str) -> bool:
    """By its list; one that nobody has read yet is believed."""
    return replica.models is None or adapter in replica.models.adapters


def host(address: str) -> str:
    """The host of "host", "host:port", "[v6]:port" or a bare IPv6 address, without brackets."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") != 1 else address.partition(":")[0]


def is_bare(address: str) -> bool:
    """An IP address without a port?"""
    try:
        ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return False
    return True


__all__ = ["DESTINATION", "Picker", "Waiting", "Way", "Ways", "host", "is_bare"]
