"""KV events of the fake engine over ZMQ, on vLLM's wire.

PUB message: [topic, sequence number 8 bytes big-endian, msgpack payload]; payload = array
[wall time, events, data parallel rank]. Events are maps with a "type" (vLLM 0.24 on) or, by
switch, arrays: "array" as in 0.18 to 0.23, "array-0.11" as in 0.11. As in vLLM the publisher binds
only when the endpoint holds `*` or `::` or is ipc/inproc, else it connects. The replay ROUTER
always binds and answers [empty, start] with the batches from there on and an end marker.

Never blocks: PUB drops what a slow subscriber does not take, as the real one does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import msgspec
import zmq

from warmlane.router.sim.engine import Cleared, Event, Removed, Stored

FORMS = ("map", "array", "array-0.11")
END = b"\xff" * 8
HIGH_WATER = 100_000


class EventPublisher:
    """Publishes batches and keeps the last `buffer` of them for replay."""

    def __init__(
        self,
        endpoint: str,
        *,
        block_size: int,
        replay_endpoint: str = "",
        topic: str = "",
        form: str = "map",
        buffer: int = 10_000,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"unknown event form {form!r}; known: {', '.join(FORMS)}")
        self.block_size = block_size
        self.form = form
        self.topic = topic
        self.next = 0
        self.adapter_ids: dict[str, int] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=buffer)
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._pub.setsockopt(zmq.LINGER, 200)
        binds = "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc:", "inproc:"))
        (self._pub.bind if binds else self._pub.connect)(endpoint)
        self.endpoint = _bound(self._pub, endpoint) if binds else endpoint
        self._router: zmq.Socket[bytes] | None = None
        self.replay_endpoint = ""
        if replay_endpoint:
            self._router = self._context.socket(zmq.ROUTER)
            self._router.setsockopt(zmq.LINGER, 200)
            self._router.setsockopt(zmq.SNDHWM, 2 * (buffer + 1))
            self._router.bind(replay_endpoint)
            self.replay_endpoint = _bound(self._router, replay_endpoint)
            loop = asyncio.get_running_loop()
            loop.add_reader(self._router.fileno(), self._replay)
            loop.call_soon(self._replay)  # the descriptor is edge-triggered

    def publish(self, events: list[Event]) -> None:
        """One batch: the events of one scheduler step."""
        encoded = [self._event(event) for event in events]
        payload = self._encode([time.time(), encoded, 0])
        sequence, self.next = self.next, self.next + 1
        self._kept.append((sequence, payload))
        frames = [self.topic.encode(), sequence.to_bytes(8, "big"), payload]
        try:
            self._pub.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return  # no room: the batch is lost on the wire and stays in the replay buffer

    def sources(self) -> dict[str, Any]:
        """What GET /kv_event_sources answers for rank 0."""
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.endpoint,
            "replay_endpoint": self.replay_endpoint or None,
            "buffer_steps": self._kept.maxlen,
            "hwm": HIGH_WATER,
            "max_queue_size": HIGH_WATER,
            "topic": self.topic,
        }

    def close(self) -> None:
        if self._router is not None:
            asyncio.get_running_loop().remove_reader(self._router.fileno())
            self._router.close()
        self._pub.close()
        self._context.term()

    def _event(self, event: Event) -> Any:
        if isinstance(event, Stored):
            return self._stored(event)
        if isinstance(event, Removed):
            if self.form == "map":
                return {
                    "type": "BlockRemoved",
                    "block_hashes": [event.key],
                    "medium": "GPU",
                    "group_idx": 0,
                }
            full = ["BlockRemoved", [event.key], "GPU", 0]
            return full if self.form == "array" else full[:3]
        assert isinstance(event, Cleared)
        return {"type": "AllBlocksCleared"} if self.form == "map" else ["AllBlocksCleared"]

    def _stored(self, event: Stored) -> Any:
        sequence, first, last = event.sequence, event.first, event.last
        size = self.block_size
        tokens = [] if sequence.tokens is None else sequence.tokens[first * size : last * size]
        adapter = sequence.adapter
        salt = getattr(sequence.owner, "salt", "")
        extra = []
        for index in range(first, last):
            keys = [adapter] if adapter else []
            if salt and index == 0:
                keys.append(salt)
            extra.append(keys or None)
        fields: dict[str, Any] = {
            "type": "BlockStored",
            "block_hashes": list(sequence.keys[first:last]),
            "parent_block_hash": sequence.keys[first - 1] if first else None,
            "token_ids": list(tokens),
            "block_size": size,
            "lora_id": self._adapter_id(adapter) if adapter else None,
            "medium": "GPU",
            "lora_name": adapter or None,
            "extra_keys": extra,
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }
        if self.form == "map":
            return fields
        values = [*fields.values(), None]  # the sliding window
        return values if self.form == "array" else values[:7]

    def _adapter_id(self, adapter: str) -> int:
        return self.adapter_ids.setdefault(adapter, len(self.adapter_ids) + 1)

    def _replay(self) -> None:
        """Answer every replay request that has come in."""
        router = self._router
        assert router is not None
        while True:
            try:
                frames = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) < 3 or len(frames[-1]) != 8:
                continue  # vLLM ignores malformed requests, too
            client, start = frames[0], int.from_bytes(frames[-1], "big")
            topic = [] if self.form != "map" else [self.topic.encode()]
            for sequence, payload in self._kept:
                if sequence >= start:
                    number = sequence.to_bytes(8, "big")
                    router.send_multipart([client, b"", *topic, number, payload], zmq.NOBLOCK)
            marker = [b""] if topic else []
            router.send_multipart([client, b"", *marker, END, b""], zmq.NOBLOCK)


def _bound(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """The endpoint with the real port where the OS chose it."""
    if not endpoint.startswith("tcp://"):
        return endpoint
    value = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(value, bytes)
    return value.rstrip(b"\0").decode()
