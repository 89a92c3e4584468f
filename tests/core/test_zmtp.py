"""ZMTP bytes against the plain-Python reader, cut everywhere, and against libzmq itself."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tests.core.event_streams import Engine
from tests.core.twin_zmtp import Heard, heard
from tests.core.zmtp_streams import damaged, frame, stream
from warmlane._core.kv_events import MORE, Intake
from warmlane._core.radix import RadixTree
from warmlane._core.zmtp import HELLO, Zmtp, _fail_alloc_after

LIMIT = 4096


def taken(zmtp: Zmtp, found: Heard) -> None:
    """Take what has come, as the owner of a connection does."""
    try:
        while (message := zmtp.take()) is not None:
            found.messages.append(message)
    except ValueError:
        found.refused = True
    found.out += zmtp.outgoing()
    found.up = zmtp.up


def by_pieces(kind: bytes, data: bytes, cuts: list[int]) -> Heard:
    zmtp, found = Zmtp(kind, LIMIT), Heard(out=b"")
    edges = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(edges):
        zmtp.feed(data[start:end])
        taken(zmtp, found)
    return found


@given(st.randoms(use_true_random=False), st.sampled_from([b"SUB", b"DEALER"]), st.booleans())
def test_every_cutting_of_every_stream(rnd: random.Random, kind: bytes, whole: bool) -> None:
    data = stream(rnd, kind)
    data = data if whole else damaged(rnd, data)
    expected = heard(kind, data, LIMIT)
    cuts = [rnd.randrange(len(data) + 1) for _ in range(rnd.randrange(9))]
    assert by_pieces(kind, data, cuts) == expected
    if len(data) < 2000:
        assert by_pieces(kind, data, list(range(len(data)))) == expected


def up(kind: bytes = b"SUB", limit: int = LIMIT, minor: int = 1) -> Zmtp:
    """A connection behind its handshake."""
    zmtp = Zmtp(kind, limit)
    theirs = {b"SUB": b"PUB", b"DEALER": b"ROUTER"}[kind]
    ready = b"\x05READY\x0bSocket-Type" + len(theirs).to_bytes(4, "big") + theirs
    zmtp.feed(HELLO[:11] + bytes([minor]) + HELLO[12:] + frame(4, ready))
    assert zmtp.take() is None and zmtp.up
    zmtp.outgoing()
    return zmtp


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak ZMTP"),
        (b"\xff" + bytes(8) + b"\x7e", "does not speak ZMTP"),
        (HELLO[:10] + b"\x01", "ZMTP 1, not 3"),
        (HELLO[:12] + b"CURVE".ljust(20, b"\0") + bytes(32), "mechanism 'CURVE', not NULL"),
        (HELLO + frame(0, b"x"), "message before the handshake"),
        (HELLO + frame(4, b"\x05ERROR\x06denied"), "it refuses: denied"),
        (HELLO + frame(4, b"\x04PING\0\0"), "command before READY"),
        (HELLO + frame(4, b"\x05READY\x0bSocket-Type\0\0\0\x03SUB"), "it is a 'SUB' socket"),
        (HELLO + frame(4, b"\x05READY\x0bSocket-Type\0\0\1\x03PUB"), "READY that is not one"),
        (HELLO + frame(4, b""), "command without a name"),
        (HELLO + b"\x06" + (1 << 40).to_bytes(8, "big"), "a command of"),
    ],
)
def test_peers_that_are_given_up(data: bytes, why: str) -> None:
    zmtp = Zmtp(b"SUB", LIMIT)
    zmtp.feed(data)
    for _ in range(2):
        with pytest.raises(ValueError, match=why):
            zmtp.take()
    assert not zmtp.up


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x08\x00", "unknown flags"),
        (b"\x05\x00", "unknown flags"),
        (b"\x02" + (LIMIT + 1).to_bytes(8, "big"), "more than 4096 bytes"),
        (b"\x02" + b"\xff" * 8, "more than 4096 bytes"),
        (frame(1, bytes(LIMIT)) + b"\x00\x01", "more than 4096 bytes"),
        (b"\x01\x00" * 17, "more than 16 parts"),
        (frame(4, b"\x04PING\0\0" + bytes(17)), "PING that is not one"),
    ],
)
def test_messages_that_are_given_up(data: bytes, why: str) -> None:
    """As soon as it is known: a length alone, without its bytes, is enough."""
    zmtp = up()
    zmtp.feed(data)
    with pytest.raises(ValueError, match=why):
        zmtp.take()


def test_a_peer_that_pings_and_never_reads() -> None:
    zmtp = up()
    zmtp.feed(frame(4, b"\x04PING\0\0" + b"c" * 16) * 2000)
    with pytest.raises(ValueError, match="does not read"):
        zmtp.take()


def test_a_heartbeat_is_for_those_who_know_it() -> None:
    for minor, asked in ((1, b"\x04\x07\x04PING\0\0"), (0, b"")):
        zmtp = up(minor=minor)
        zmtp.ping()
        assert zmtp.outgoing() == asked


def test_requests_of_ours() -> None:
    zmtp = Zmtp(b"DEALER", LIMIT)
    with pytest.raises(ValueError, match="not connected"):
        zmtp.send([b""])
    zmtp = up(b"DEALER")
    zmtp.send([b"", b"12345678"])
    out = zmtp.outgoing()
    assert out == b"\x01\x00\x00\x0812345678" and zmtp.outgoing() == b""
    zmtp.unsent(out[4:])
    assert zmtp.outgoing() == out[4:]
    with pytest.raises(ValueError, match="255"):
        zmtp.send([bytes(256)])
    with pytest.raises(ValueError, match="kind must be"):
        Zmtp(b"REQ", 1)


def test_memory_comes_with_the_bytes_and_goes_with_them() -> None:
    """A length promises nothing, and a quiet connection keeps no buffer."""
    zmtp = up(limit=1 << 40)
    zmtp.feed(b"\x02" + (1 << 39).to_bytes(8, "big") + bytes(100))
    assert zmtp.take() is None and zmtp.waiting == 109
    zmtp = up()
    _fail_alloc_after(0)
    with pytest.raises(MemoryError):
        zmtp.feed(b"\0")
    zmtp.feed(b"\x00\x01a")
    assert zmtp.take() == [b"a"] and zmtp.take() is None
    _fail_alloc_after(0)
    with pytest.raises(MemoryError):
        zmtp.feed(b"\0")


@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_batches_straight_into_the_intake(rnd: random.Random, spoiled: int) -> None:
    """`apply` takes what it may, `take` the rest, in order: together what `take` alone does."""
    engine = Engine(rnd, "a", "map", "unsigned")
    sent = [[b"topic", number.to_bytes(8, "big"), engine.batch()] for number in range(12)]
    for _ in range(spoiled):  # another number, other parts, no msgpack
        at = rnd.randrange(12)
        act = rnd.randrange(3)
        sent[at] = [
            [b"", bytes(8), sent[at][-1]],
            [*sent[at], b"more"],
            [b"", at.to_bytes(8, "big"), b"\xc1"],
        ][act]
    data = b""
    for parts in sent:
        if rnd.random() < 0.2:
            data += frame(4, b"\x04PING\0\0")
        for left, part in zip(reversed(range(len(parts))), parts, strict=True):
            data += frame(1 if left else 0, part, long=rnd.random() < 0.2)
    zmtp, got, expected = up(limit=1 << 20), [], 0
    mine, other = (Intake(RadixTree(0, 1)) for _ in range(2))
    for each in (mine, other):
        each.open(0)
    edges = [0, *sorted(rnd.randrange(len(data) + 1) for _ in range(rnd.randrange(4))), len(data)]
    for start, end in pairwise(edges):
        zmtp.feed(data[start:end])
        while True:
            count, flags = zmtp.apply(mine, 0, expected, rnd.choice([0, 0, 20]))
            got += sent[len(got) : len(got) + count]
            expected += count
            if count:
                assert zmtp.last == got[-1][2]
            while flags & MORE:
                flags = mine.apply(0, zmtp.last or b"", 20)
            if count:
                continue
            message = zmtp.take()
            if message is None:
                break
            got.append(message)
            if len(message) == 3:
                expected = int.from_bytes(message[1], "big") + 1
                mine.apply(0, message[2])
    assert got == sent
    for parts in sent:
        if len(parts) == 3:
            other.apply(0, parts[2])
    assert mine.stats(0) == other.stats(0) and mine.tree.dump() == other.tree.dump()


def test_one_call_takes_no_more_than_it_should() -> None:
    zmtp, made = up(limit=1 << 20), Intake(RadixTree(0, 1))
    made.open(0)
    assert zmtp.apply(made, 0, 0, 0) == (0, 0)
    payload = msgspec.msgpack.encode([0.0, [], 0, b"x" * 1000])
    for number in range(200):
        zmtp.feed(frame(1, b"") + frame(1, number.to_bytes(8, "big")) + frame(0, payload))
    count, flags = zmtp.apply(made, 0, 0, 0)
    assert flags == 0 and 64 <= count <= 66, "64 KB of them"
    assert zmtp.apply(made, 0, count + 1, 0) == (0, 0), "the number after is another one"
    with pytest.raises(ValueError, match="must be"):
        zmtp.apply(made, 3, count, 0)
    assert Zmtp(b"SUB", 9).apply(made, 0, 0, 0) == (0, 0)


# Against libzmq -----------------------------------------------------------------------------------


Open = Callable[[int], "zmq.Socket[bytes]"]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Sockets of libzmq by their kind."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[zmq.Socket[bytes]] = []

    def one(kind: int) -> zmq.Socket[bytes]:
        made.append(context.socket(kind))
        return made[-1]

    yield one
    context.destroy(linger=0)


def hear(zmtp: Zmtp, made: socket.socket) -> int:
    assert select.select([made], [], [], 10)[0]
    return zmtp.receive(made.fileno())


@contextmanager
def dialled(zmtp: Zmtp, port: int) -> Iterator[socket.socket]:
    """Connected, the handshake at its end."""
    with socket.create_connection(("127.0.0.1", port)) as made:
        shake_hands(zmtp, made)
        yield made


def shake_hands(zmtp: Zmtp, made: socket.socket) -> None:
    while not zmtp.up:
        made.sendall(zmtp.outgoing())
        assert hear(zmtp, made) > 0
        assert zmtp.take() is None
    made.sendall(zmtp.outgoing())


def next_message(zmtp: Zmtp, made: socket.socket) -> list[bytes]:
    while (message := zmtp.take()) is None:
        assert hear(zmtp, made) > 0
    return message


def test_a_publisher_of_libzmq(opened: Open) -> None:
    publisher = opened(zmq.XPUB)
    zmtp = Zmtp(b"SUB", 1 << 24)
    with dialled(zmtp, publisher.bind_to_random_port("tcp://127.0.0.1")) as made:
        assert publisher.recv() == b"\x01"  # everything is subscribed to
        sizes = [0, 1, 255, 256, 65_535, 65_536, 3_000_000]
        for size in sizes:
            publisher.send_multipart([b"topic", bytes(8), bytes(size)])
        for size in sizes:
            assert next_message(zmtp, made) == [b"topic", bytes(8), bytes(size)]
        zmtp.ping()
        made.sendall(zmtp.outgoing())
        assert hear(zmtp, made) > 0 and zmtp.take() is None  # its PONG
        publisher.close(linger=0)
        assert hear(zmtp, made) == 0


def test_a_router_of_libzmq(opened: Open) -> None:
    router = opened(zmq.ROUTER)
    router.setsockopt(zmq.HEARTBEAT_IVL, 50)
    zmtp = Zmtp(b"DEALER", 1 << 24)
    with dialled(zmtp, router.bind_to_random_port("tcp://127.0.0.1")) as made:
        zmtp.send([b"", (7).to_bytes(8, "big")])
        made.sendall(zmtp.outgoing())
        client, empty, start = router.recv_multipart()
        assert (empty, start) == (b"", (7).to_bytes(8, "big"))
        while not (pong := zmtp.outgoing()):  # it asks for a sign of life
            assert hear(zmtp, made) > 0 and zmtp.take() is None
        made.sendall(pong)
        for number in range(1000):
            router.send_multipart([client, b"", b"topic", number.to_bytes(8, "big"), bytes(999)])
        for number in range(1000):
            message = next_message(zmtp, made)
            assert message == [b"", b"topic", number.to_bytes(8, "big"), bytes(999)]


def test_a_publisher_that_connects(opened: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        publisher = opened(zmq.XPUB)
        publisher.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        zmtp = Zmtp(b"SUB", 1 << 24)
        made, _ = server.accept()
        with made:
            shake_hands(zmtp, made)
            assert publisher.recv() == b"\x01"
            publisher.send_multipart([b"", bytes(8), b"payload"])
            assert next_message(zmtp, made) == [b"", bytes(8), b"payload"]


def test_a_socket_of_another_kind(opened: Open) -> None:
    other = opened(zmq.PUSH)
    zmtp = Zmtp(b"SUB", 1 << 24)
    port = other.bind_to_random_port("tcp://127.0.0.1")
    with pytest.raises(ValueError, match="'PUSH' socket"), dialled(zmtp, port):
        pass
