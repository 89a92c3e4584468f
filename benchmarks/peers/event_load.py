"""Engine events as vLLM 0.32 tells them, and publishers of them: the load of the events benchmark.

Run as a module it is a publisher: `-m benchmarks.peers.event_load KIND MESSAGES A_SECOND SOURCES`.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import zmq

SIZE = 16  # tokens a block
EVENTS = 4  # a frame
Hash = int | bytes


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True):
    """As vLLM 0.32 declares it."""

    block_hashes: list[Hash]
    parent_block_hash: Hash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True):
    """As vLLM 0.32 declares it."""

    block_hashes: list[Hash]
    medium: str | None
    group_idx: int | None = None


class Batch(msgspec.Struct, array_like=True):
    """One message."""

    ts: float
    events: list[BlockStored | BlockRemoved]
    data_parallel_rank: int | None = None


encode = msgspec.msgpack.Encoder().encode
typed = msgspec.msgpack.Decoder(Batch)


def stored_event(rnd: random.Random, blocks: int, parent: int | None) -> BlockStored:
    hashes: list[Hash] = [rnd.getrandbits(64) for _ in range(blocks)]
    # Frequent ids are small: about half of them are one or three bytes on the wire.
    ids = [min(127_999, int(rnd.expovariate(1 / 30_000))) for _ in range(SIZE * blocks)]
    extra: list[list[Any] | None] = [None] * blocks
    return BlockStored(hashes, parent, ids, SIZE, None, "GPU", None, extra, 0, "full_attention")


def frames(blocks: int, total: int, seed: int = 1, chain: int = 64) -> list[bytes]:
    """Chains of `chain` blocks or more, `blocks` an event, until `total` blocks."""
    rnd, made = random.Random(seed), []
    parent, length = None, 0
    for _ in range(max(1, total // (blocks * EVENTS))):
        events = []
        for _ in range(EVENTS):
            event = stored_event(rnd, blocks, parent)
            length += blocks
            parent = None if length >= chain else int(event.block_hashes[-1])  # type: ignore[arg-type]
            length = 0 if parent is None else length
            events.append(event)
        made.append(encode(Batch(time.time(), list(events), 0)))
    return made


STEPS_A_S = 10  # engine steps a second that prefill: 2,000 tokens each at 20,000 tokens a second


def prefill_payloads() -> list[bytes]:
    """Steps of 2,000 tokens: one event a request of about 500, a removal for each block stored."""
    rnd = random.Random(3)
    payloads, old = [], [rnd.getrandbits(64) for _ in range(125)]
    for _ in range(50):
        events: list[BlockStored | BlockRemoved] = [BlockRemoved([h], "GPU", 0) for h in old]
        new = [stored_event(rnd, blocks, None) for blocks in (31, 31, 31, 32)]
        old = [int(h) for event in new for h in event.block_hashes]  # type: ignore[call-overload]
        payloads.append(encode(Batch(0.0, [*events, *new], 0)))
    return payloads


def decode_payloads() -> list[bytes]:
    """Steps of decoding: one block of one request fills up now and then."""
    rnd = random.Random(4)
    return [encode(Batch(0.0, [stored_event(rnd, 1, None)], 0)) for _ in range(200)]


PAYLOADS: dict[str, Callable[[], list[bytes]]] = {
    "chains": lambda: frames(8, 10_240),
    "prefill": prefill_payloads,
    "decode": decode_payloads,
}


def publish(kind: str, messages: int, a_second: float, sources: int) -> None:
    """A process of its own: `messages` to each of its ports when it is told to, as fast as possible
    or `a_second`."""
    payloads = PAYLOADS[kind]()
    context = zmq.Context()
    sockets, ports = [], []
    for _ in range(sources):
        socket = context.socket(zmq.PUB)
        socket.setsockopt(zmq.SNDHWM, 0)
        ports.append(socket.bind_to_random_port("tcp://127.0.0.1"))
        sockets.append(socket)
    sys.stdout.write(" ".join(map(str, ports)) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()
    began = time.monotonic()
    for seq in range(messages):
        if a_second:
            time.sleep(max(0.0, began + seq / a_second - time.monotonic()))
        for socket in sockets:
            socket.send_multipart([b"", seq.to_bytes(8, "big"), payloads[seq % len(payloads)]])
    sys.stdin.readline()
    context.destroy(linger=0)


@contextlib.contextmanager
def publisher(
    kind: str, messages: int, sources: int, a_second: float = 0.0
) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """Its ports, and what makes it begin."""
    command = [sys.executable, "-m", "benchmarks.peers.event_load", kind, str(messages)]
    command += [str(a_second), str(sources)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        ports = [int(each) for each in child.stdout.readline().split()]
        assert len(ports) == sources, "no publisher"
        told = child.stdin

        def go() -> None:
            told.write("go\n")
            told.flush()

        yield ports, go
        told.write("done\n")


def free_ports(count: int) -> list[int]:
    context = zmq.Context()
    held = [context.socket(zmq.PUB) for _ in range(count)]
    ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in held]
    context.destroy(linger=0)
    return ports


if __name__ == "__main__":
    publish(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
