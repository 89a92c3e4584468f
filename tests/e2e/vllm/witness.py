"""What the engines' caches did and when, seen without the router: an ear of its own on the events.

Blocks are named as nobody else names them: SHA-256 over parent, tokens, adapter and salt, by hand
and in Python. So the witness shares no code with the router's intake, and what it says about a
block that came or went between a decision and the moment an engine looked is evidence.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import zmq

from .engines import BLOCK_TOKENS

POLL_MS = 50


class Happening(NamedTuple):
    """ts: seconds of the epoch, by the engine's clock, which is this machine's."""

    ts: float
    stored: bool


def first_parent(adapter: str, salt: str) -> bytes:
    """What stands before the first block."""
    return hashlib.sha256(f"{adapter}\0{salt}".encode()).digest()


def chain(ids: Sequence[int], adapter: str, salt: str) -> list[bytes]:
    """Names of a prompt's full blocks."""
    names, parent = [], first_parent(adapter, salt)
    for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        parent = _name(parent, ids[start : start + BLOCK_TOKENS])
        names.append(parent)
    return names


def _name(parent: bytes, ids: Sequence[int]) -> bytes:
    return hashlib.sha256(parent + struct.pack(f"<{len(ids)}I", *ids)).digest()


class Log:
    """What one publisher told."""

    def __init__(self) -> None:
        self.names: dict[int, bytes] = {}  # by the engine's hash; kept over removals
        self.log: defaultdict[bytes, list[Happening]] = defaultdict(list)
        self.clears: list[float] = []
        self.stored = self.removed = 0
        self.batches = 0
        self._copies: Counter[bytes] = Counter()
        self._seq = -1

    def holds(self) -> set[bytes]:
        """Blocks that are there now."""
        return {name for name, copies in self._copies.items() if copies > 0}

    def numbered(self, seq: int) -> None:
        """A smaller number than before: another life of the engine, which holds nothing."""
        if seq <= self._seq:
            self._copies.clear()
        self._seq = seq

    def hear(self, payload: bytes) -> None:
        ts, events, *_ = msgspec.msgpack.decode(payload)
        self.batches += 1
        for event in events:
            kind = event["type"]
            if kind == "BlockStored":
                self._stored(ts, event)
            elif kind == "BlockRemoved":
                for key in event["block_hashes"]:
                    self.removed += 1
                    if key in self.names:
                        name = self.names[key]
                        self.log[name].append(Happening(ts, False))
                        self._copies[name] -= 1
            elif kind == "AllBlocksCleared":
                self.clears.append(ts)
                self._copies.clear()

    def _stored(self, ts: float, event: dict[str, Any]) -> None:
        adapter = event.get("lora_name") or ""
        parent = self.names.get(event["parent_block_hash"])
        extras = event.get("extra_keys") or [None]
        for number, key in enumerate(event["block_hashes"]):
            if parent is None:
                salts = [each for each in extras[0] or () if each != adapter]
                parent = first_parent(adapter, salts[0] if salts else "")
            start = number * BLOCK_TOKENS
            parent = _name(parent, event["token_ids"][start : start + BLOCK_TOKENS])
            self.names[key] = parent
            self.log[parent].append(Happening(ts, True))
            self._copies[parent] += 1
            self.stored += 1


class Witness:
    """Listens to publishers by replica name, from its making to `close`."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self.engines = {name: Log() for name in ports}
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._context = zmq.Context()
        self._sockets = {}
        for name, port in ports.items():
            ear = self._context.socket(zmq.SUB)
            ear.subscribe(b"")
            ear.connect(f"tcp://127.0.0.1:{port}")
            self._sockets[ear] = self.engines[name]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        poller = zmq.Poller()
        for ear in self._sockets:
            poller.register(ear, zmq.POLLIN)
        while not self._ends.is_set():
            for ear, _ in poller.poll(POLL_MS):
                _, seq, payload = ear.recv_multipart()
                with self._lock:
                    log = self._sockets[ear]
                    log.numbered(int.from_bytes(seq, "big"))
                    log.hear(payload)

    def stored(self, replica: str, block: bytes, since: float, until: float) -> bool:
        """Did this block come there meanwhile?"""
        return self._happened(replica, block, since, until, stored=True)

    def removed(self, replica: str, block: bytes, since: float, until: float) -> bool:
        """Did it leave?"""
        return self._happened(replica, block, since, until, stored=False)

    def history(self, replica: str, block: bytes) -> list[Happening]:
        """Whenever it came and left."""
        with self._lock:
            return list(self.engines[replica].log.get(block, ()))

    def cleared(self, replica: str, since: float, until: float) -> bool:
        """Did everything?"""
        with self._lock:
            return any(since <= ts <= until for ts in self.engines[replica].clears)

    def _happened(
        self, replica: str, block: bytes, since: float, until: float, *, stored: bool
    ) -> bool:
        with self._lock:
            log = self.engines[replica].log.get(block, ())
            return any(each.stored is stored and since <= each.ts <= until for each in log)

    def close(self) -> None:
        self._ends.set()
        self._thread.join(10)
        for ear in self._sockets:
            ear.close(linger=0)
        self._context.term()
