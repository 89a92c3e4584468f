"""Several routers before the same replicas: what each tells of its work, and what it makes of it.

Floor 4: bytes go out and come in, times are arguments; `feeds.share` carries them through Valkey or
Redis, the lab through a virtual clock. Each message holds this router's sums per replica, so that
nothing has to be replayed. Own work needs no message: it is in the ledger at once. The work of a
peer counts in full while its messages come, less and less once they stop, and not at all after
`expire_s`. Ages are taken on this machine's clock from when a message came: clocks of different
machines are never compared.

What is booked in the approximate views (block keys, no text) goes along, so that a session may come
back through another router. Cost: 20 us a message of 8 replicas, on the side and not per request.
"""

from __future__ import annotations

import logging
from array import array
from math import inf
from typing import Final

from warmlane._core import cost
from warmlane._core.journal import Journal
from warmlane.router.config_share import Sharing
from warmlane.router.core import Router
from warmlane.router.lane import Lane
from warmlane.router.pool import Pool, Replica
from warmlane.router.share_wire import (
    TEXT_CHARGE,
    TOKEN_CHAIN,
    TOKEN_CHARGE,
    VERSION,
    Message,
    PoolTold,
    pack,
    records,
    unpack,
)
from warmlane.router.types import ReplicaState

log = logging.getLogger("warmlane.share")

MAX_PEERS: Final = 256
_GRACE: Final = 3.0  # intervals of the sender after which its word begins to count less


def address(replica: Replica | None) -> str:
    """What all routers call a replica, whatever its name in their configs; "": no member."""
    if replica is None or replica.state is ReplicaState.GONE:
        return ""
    rank = replica.spec.rank
    return replica.endpoint if rank is None else f"{replica.endpoint}#{rank}"


class _Heard:
    """What one peer last said of one pool; `columns` are by our slots once mapped."""

    __slots__ = ("columns", "told", "version")

    def __init__(self, told: PoolTold) -> None:
        self.told = told
        self.version = -1
        self.columns: tuple[array[float], ...] = ()

    @property
    def placed(self) -> dict[str, float]:
        """By address."""
        return dict(zip(self.told.addresses, self.told.placed, strict=True))


class _Peer:
    """Another router. at: when its last message came."""

    __slots__ = ("at", "every_s", "number", "pools")

    def __init__(self) -> None:
        self.at = 0.0
        self.every_s = 1.0
        self.number = -1
        self.pools: dict[str, _Heard] = {}

    def weight(self, now: float, expire_s: float) -> float:
        """1 while its messages come, then down to 0 at `expire_s`."""
        grace = min(_GRACE * self.every_s, expire_s / 2)
        age = now - self.at
        return 1.0 if age <= grace else max(0.0, (expire_s - age) / (expire_s - grace))


class _Own:
    """One pool of this router as it tells of it.

    placed: uncached tokens that this router sent to each slot since the replica came; the pool's
    column fades and holds what peers placed as well, so that the difference is taken here.
    """

    __slots__ = ("addresses", "base", "half_lives", "lane", "placed", "slots", "version")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.version = -1
        self.addresses: list[str] = []
        self.slots: dict[str, int] = {}
        self.placed = array("d")
        self.base = array("d")
        self.half_lives = 0.0

    @property
    def pool(self) -> Pool:
        return self.lane.pool

    def follow(self) -> None:
        """Membership as it is now."""
        pool = self.pool
        if self.version == pool.version:
            return
        self.version = pool.version
        names = [address(each) for each in pool.replicas]
        self.placed.extend([0.0] * (len(names) - len(self.placed)))
        self.base.extend([0.0] * (len(names) - len(self.base)))
        for slot, name in enumerate(names):
            if slot >= len(self.addresses) or self.addresses[slot] != name:
                self.placed[slot] = 0.0
                self.base[slot] = pool.placed_tokens[slot]
        self.addresses = names
        self.slots = {name: slot for slot, name in enumerate(names) if name}

    def note_placed(self) -> None:
        """Take over what was placed since the last call."""
        pool = self.pool
        kept = 0.5 ** (pool.half_lives - self.half_lives)
        self.half_lives = pool.half_lives
        for slot, now in enumerate(pool.placed_tokens):
            more = now - self.base[slot] * kept
            if more > 0.5:  # below that it is rounding
                self.placed[slot] += more
            self.base[slot] = now

    def told(self, journal: bytes) -> PoolTold:
        """This pool for a message."""
        self.follow()
        self.note_placed()
        pool, price, size = self.pool, self.lane.decider.price, len(self.addresses)
        ledger, view = pool.ledger, self.lane.view
        return PoolTold(
            pool.name,
            self.addresses,
            array("d", ledger.requests[:size]).tolist(),
            array("d", ledger.running[:size]).tolist(),
            ledger.prefill_tokens[:size].tolist(),
            ledger.decode_tokens[:size].tolist(),
            self.placed.tolist(),
            0.0 if price is None else price.own_rate,
            0.0 if price is None else price.own_work,
            view.text_block_bytes,
            view.token_block_tokens,
            journal,
        )


class Sharer:
    """One router's side of the exchange: `tell` at each interval, `hear` each message of others.

    name: of this process among all routers of the namespace.
    """

    def __init__(self, router: Router, settings: Sharing, name: str) -> None:
        self.router = router
        self.settings = settings
        self.name = name
        self.peers: dict[str, _Peer] = {}
        self._number = 0
        self._own: dict[str, _Own] = {}
        self._dropped: dict[int, int] = {}
        self._troubles: set[str] = set()

    def tell(self, now: float, leaving: bool = False) -> bytes:
        """The message of this interval; peers that vanished are forgotten on the way."""
        pools = [own.told(self._journal(own.lane)) for own in self._pools()]
        message = Message(
            VERSION, self.name, self._number, self.settings.interval_s, leaving, pools
        )
        self._number += 1
        self.age(now)
        return pack(message)

    def hear(self, data: bytes, now: float) -> None:
        """A message that came. One that cannot be read is counted and changes nothing."""
        try:
            message = unpack(data)
        except ValueError as error:
            self._trouble("unreadable", str(error))
            return
        if message.sender == self.name:
            return
        peer = self.peers.get(message.sender)
        if message.leaving:
            if peer is not None:
                self._forget(message.sender)
                self._apply(now)
            return
        if peer is None:
            if len(self.peers) >= MAX_PEERS:
                self._trouble("too_many_peers", f"more than {MAX_PEERS}")
                return
            peer = self.peers[message.sender] = _Peer()
            log.info("event=share_peer peers=%d", len(self.peers))
        elif message.number <= peer.number:
            self._trouble("out_of_order", "a message that was heard before")
            return
        peer.at, peer.number, peer.every_s = now, message.number, message.every_s
        before, peer.pools = peer.pools, {}
        for told in message.pools:
            own = self._own_pool(told.name)
            if own is not None:
                peer.pools[told.name] = _Heard(told)
                self._book(own, before.get(told.name), told)
        self._apply(now)

    def age(self, now: float) -> None:
        """Let the word of silent peers fade; to be called at each interval. `tell` does it."""
        expire_s = self.settings.expire_s
        silent = [name for name, peer in self.peers.items() if now - peer.at >= expire_s]
        for name in silent:
            self._forget(name)
            self.router.metrics.count("warmlane_share_troubles_total", "peer_expired")
        if silent or any(peer.weight(now, expire_s) < 1.0 for peer in self.peers.values()):
            self._apply(now)

    def _forget(self, name: str) -> None:
        del self.peers[name]
        log.info("event=share_peer_gone peers=%d", len(self.peers))

    def _pools(self) -> list[_Own]:
        found = [self._own_pool(name) for name in self.router.lanes]
        return [own for own in found if own is not None]

    def _own_pool(self, name: str) -> _Own | None:
        lane = self.router.lanes.get(name)
        if lane is None:
            return None
        own = self._own.get(name)
        if own is None or own.lane is not lane:  # a reload made it anew
            own = self._own[name] = _Own(lane)
            if self.settings.prefixes:
                lane.journal = lane.view.journal = Journal(self.settings.prefix_bytes)
        own.follow()
        return own

    def _journal(self, lane: Lane) -> bytes:
        journal = lane.journal
        if journal is None:
            return b""
        if journal.dropped > self._dropped.get(lane.number, 0):
            self._dropped[lane.number] = journal.dropped
            self._trouble("dropped", "more block keys in an interval than share.prefix_bytes")
        return journal.take()

    def _book(self, own: _Own, before: _Heard | None, told: PoolTold) -> None:
        """What the peer placed since its last message, and the prefixes it sent."""
        own.note_placed()
        placed = own.pool.placed_tokens
        known = {} if before is None else before.placed
        for name, now in zip(told.addresses, told.placed, strict=True):
            slot, last = own.slots.get(name), known.get(name)
            if slot is not None and last is not None and now > last:
                placed[slot] += now - last
                own.base[slot] = placed[slot]
        if told.journal and self.settings.prefixes:
            self._read(own, told)

    def _read(self, own: _Own, told: PoolTold) -> None:
        view, slots, size = own.lane.view, own.slots, len(told.addresses)
        if (told.block_bytes, told.block_tokens) != (
            view.text_block_bytes,
            view.token_block_tokens,
        ):
            self._trouble("block_size", "peers differ in index.block_bytes or block_tokens")
            return
        try:
            for theirs, what, count, keys in records(told.journal):
                slot = slots.get(told.addresses[theirs]) if theirs < size else None
                if slot is None:
                    continue
                unit = "tokens" if what in (TOKEN_CHAIN, TOKEN_CHARGE) else "text"
                if what >= TEXT_CHARGE:
                    view.book_charge(slot, unit, count)
                else:
                    view.book(slot, unit, keys)
        except ValueError as error:
            self._trouble("unreadable", str(error))

    def _apply(self, now: float) -> None:
        """Sums over all peers into the pools' columns."""
        for own in self._pools():
            pool, size = own.pool, len(own.pool)
            sums = tuple([array("d", bytes(8 * size)) for _ in range(4)])
            rate, work, said_at = 0.0, 0.0, inf
            for peer in self.peers.values():
                heard = peer.pools.get(pool.name)
                if heard is None:
                    continue
                # A message under way for less than an interval tells of the time before.
                said_at = min(said_at, peer.at - peer.every_s)
                if heard.version != pool.version:
                    heard.columns, heard.version = _mapped(own, heard.told), pool.version
                weight = peer.weight(now, self.settings.expire_s)
                rate, work = rate + weight * heard.told.rate, work + weight * heard.told.work
                for total, column in zip(sums, heard.columns, strict=True):
                    cost.blend(total, 1.0, column, weight, total)
            pool.foreign.tell(sums, said_at)
            if own.lane.decider.price is not None:
                own.lane.decider.price.others(rate, work)

    def _trouble(self, what: str, why: str) -> None:
        """Counted each time, logged once a kind."""
        self.router.metrics.count("warmlane_share_troubles_total", what)
        if what not in self._troubles:
            self._troubles.add(what)
            log.warning('event=share_trouble what=%s why="%s"', what, why)


def _mapped(own: _Own, told: PoolTold) -> tuple[array[float], ...]:
    """Requests, waiting ones, tokens and KV tokens of the peer by our slots, of those we know."""
    columns = told.requests, told.running, told.tokens, told.kv_tokens
    if told.addresses == own.addresses:
        found = [array("d", column) for column in columns]
    else:
        found = [array("d", bytes(8 * len(own.pool))) for _ in columns]
        for theirs, name in enumerate(told.addresses):
            slot = own.slots.get(name)
            if slot is not None:
                for mine, column in zip(found, columns, strict=True):
                    mine[slot] += column[theirs]
    requests, running, tokens, kv_tokens = found
    cost.blend(requests, 1.0, running, -1.0, running)
    return requests, running, tokens, kv_tokens
