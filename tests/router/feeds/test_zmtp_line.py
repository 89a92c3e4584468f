"""Lines to real libzmq sockets, and to peers that lie, stall or vanish."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import zmq

from tests.core.zmtp_streams import frame
from warmlane._core.zmtp import HELLO
from warmlane.router.feeds import zmtp_line
from warmlane.router.feeds.client import EngineError
from warmlane.router.feeds.zmtp_line import CALLERS, Line

READY = frame(4, b"\x05READY\x0bSocket-Type\0\0\0\x03PUB")
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


class Owner:
    """Takes what a line has whenever it is woken; its clock can be put forward."""

    def __init__(self) -> None:
        self.messages: list[list[bytes]] = []
        self.states: list[int] = []
        self.ahead = 0.0
        self.line: Line | None = None

    def clock(self) -> float:
        return time.monotonic() + self.ahead

    def wake(self) -> None:
        if self.line is None:
            return
        while True:
            message = self.line.take(self.clock())
            if not self.states or self.states[-1] != self.line.state:
                self.states.append(self.line.state)
            if message is None:
                return
            self.messages.append(message)

    async def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end, (self.states, self.line and self.line.why)
            await asyncio.sleep(0.01)
            if self.line is not None:
                self.line.tick(self.clock())
                self.wake()

    @property
    def up(self) -> bool:
        return self.line is not None and self.line.up


@contextlib.asynccontextmanager
async def line(
    endpoint: str, kind: bytes = b"SUB", *, bind: bool | None = False, once: bool = False
) -> AsyncIterator[Owner]:
    owner = Owner()
    made = Line(endpoint, kind, bind=bind, wake=owner.wake, clock=owner.clock, once=once)
    owner.line = made
    try:
        yield owner
    finally:
        made.close()
        made.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def test_it_waits_for_its_publisher_and_comes_back_to_it(opened: Open) -> None:
    port = free_port()
    async with line(f"tcp://localhost:{port}") as owner:
        await asyncio.sleep(0.15)  # a dial or two in vain
        for life in range(2):
            publisher = opened(zmq.XPUB)
            publisher.bind(f"tcp://127.0.0.1:{port}")
            await owner.until(lambda: owner.up)
            await owner.until(lambda p=publisher: bool(p.poll(0)))  # type: ignore[misc]
            assert publisher.recv() == b"\x01"
            publisher.send_multipart([b"", bytes([life]) * 8, b"payload"])
            await owner.until(lambda life=life: len(owner.messages) == life + 1)  # type: ignore[misc]
            publisher.close(linger=0)
            await owner.until(lambda: not owner.up)
            assert owner.line is not None and owner.line.why
        assert [each[1][0] for each in owner.messages] == [0, 1]
        assert owner.states[-1] == 4


@pytest.mark.parametrize("name", ["@warmlane-{}", "{}/events"])
async def test_over_ipc(opened: Open, tmp_path: object, name: str) -> None:
    endpoint = "ipc://" + name.format(tmp_path if "/" in name else id(tmp_path))
    publisher = opened(zmq.XPUB)
    publisher.bind(endpoint)
    async with line(endpoint) as owner:
        await owner.until(lambda: bool(publisher.poll(0)))
        publisher.send_multipart([b"", bytes(8), b"payload"])
        await owner.until(lambda: len(owner.messages) == 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "*", "[::]"])
async def test_publishers_that_connect_one_after_another(opened: Open, host: str) -> None:
    port = free_port()
    async with line(f"tcp://{host}:{port}", bind=True) as owner:
        assert owner.line is not None and owner.line.bound
        first = opened(zmq.XPUB)
        first.connect(f"tcp://127.0.0.1:{port}")
        await owner.until(lambda: bool(first.poll(0)))
        first.send_multipart([b"", bytes(8), b"first"])
        await owner.until(lambda: len(owner.messages) == 1)
        owner.ahead += 2  # past the time in which nobody takes over
        second = opened(zmq.XPUB)
        second.connect(f"tcp://127.0.0.1:{port}")
        await owner.until(lambda: bool(second.poll(0)))
        await owner.until(lambda: owner.up and owner.line is not None and owner.line.state == 3)
        assert owner.line.why == "another publisher took its place"
        second.send_multipart([b"", bytes(8), b"second"])
        await owner.until(lambda: len(owner.messages) == 2)


async def test_who_says_nothing_displaces_nobody(opened: Open) -> None:
    """Probes of a port, and peers that never end their handshake."""
    port = free_port()
    async with line(f"tcp://127.0.0.1:{port}", bind=True) as owner:
        publisher = opened(zmq.XPUB)
        publisher.connect(f"tcp://127.0.0.1:{port}")
        await owner.until(lambda: bool(publisher.poll(0)))
        with contextlib.ExitStack() as stack:
            probes = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                for _ in range(CALLERS + 2)
            ]
            probes[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
            await asyncio.sleep(0.1)
            for probe in probes[:2]:  # the first two made room for the last two
                probe.settimeout(5)
                while probe.recv(100):
                    pass
            publisher.send_multipart([b"", bytes(8), b"still"])
            await owner.until(lambda: len(owner.messages) == 1)
            owner.ahead += 11
            await owner.until(lambda: owner.line is not None and not owner.line.callers)
            assert owner.states[-1] == 1


async def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(EngineError, match="cannot be bound"):
        async with line("tcp://192.0.2.1:5557", bind=True):
            pass
    async with line("tcp://192.0.2.1:5557", bind=None) as owner:
        assert owner.line is not None and not owner.line.bound


class Fake:
    """A listener whose connections say what they are told to."""

    def __init__(self, *says: bytes) -> None:
        self.says = list(says)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.port = self.server.getsockname()[1]
        self.conns: list[socket.socket] = []
        asyncio.get_running_loop().add_reader(self.server.fileno(), self.accept)

    def accept(self) -> None:
        self.conns.append(self.server.accept()[0])
        self.conns[-1].sendall(self.says[min(len(self.conns), len(self.says)) - 1])

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.server.fileno())
        for each in (self.server, *self.conns):
            each.close()


async def test_liars_are_left_and_tried_again() -> None:
    hello = HELLO[:11] + b"\x01" + HELLO[12:]
    fake = Fake(b"HTTP/1.1 400\r\n\r\n", hello + READY + b"\x08\x00", hello + READY)
    try:
        async with line(f"tcp://127.0.0.1:{fake.port}") as owner:
            await owner.until(lambda: owner.up)
            assert len(fake.conns) == 3 and owner.states[-1] == 1
    finally:
        fake.close()


@pytest.mark.parametrize("minor", [0, 1])
async def test_silence(minor: int) -> None:
    """A peer that knows heartbeats is asked, and left when it does not answer."""
    fake = Fake(HELLO[:11] + bytes([minor]) + HELLO[12:] + READY)
    try:
        async with line(f"tcp://127.0.0.1:{fake.port}") as owner:
            await owner.until(lambda: owner.up)
            assert owner.line is not None
            for _ in range(4):
                owner.ahead += zmtp_line.PING_S + 0.1
                owner.line.tick(owner.clock())
            await asyncio.sleep(0.05)
            heard = fake.conns[0].recv(10_000)
            assert (b"\x04PING" in heard) == (minor == 1)
            assert (owner.line.state > 1) == (minor == 1)
            assert ("no sign of life" in owner.line.why) == (minor == 1)
    finally:
        fake.close()


async def test_a_handshake_that_does_not_end() -> None:
    fake = Fake(HELLO[:30])
    try:
        async with line(f"tcp://127.0.0.1:{fake.port}") as owner:
            await owner.until(lambda: len(fake.conns) == 1)
            await asyncio.sleep(0.05)
            owner.ahead += zmtp_line.HANDSHAKE_S + 1
            await owner.until(lambda: len(fake.conns) == 2)
            assert owner.line is not None and "no handshake" in owner.line.why
    finally:
        fake.close()


async def test_a_dealer_is_there_once(opened: Open) -> None:
    port = free_port()
    router = opened(zmq.ROUTER)
    router.setsockopt(zmq.SNDHWM, 0)
    router.bind(f"tcp://127.0.0.1:{port}")
    async with line(f"tcp://127.0.0.1:{port}", b"DEALER", once=True) as owner:
        await owner.until(lambda: owner.up)
        assert owner.line is not None
        owner.line.send([b"", b"12345678"])
        await owner.until(lambda: bool(router.poll(0)))
        client, *request = router.recv_multipart()
        assert request == [b"", b"12345678"]
        # More than the kernel holds: it is read before it is taken.
        line_, owner.line = owner.line, None
        for number in range(3000):
            router.send_multipart([client, b"", number.to_bytes(8, "big"), bytes(10_000)])
        for _ in range(2000):
            line_.read_ahead(owner.clock())
            await asyncio.sleep(0)
        owner.line = line_
        owner.wake()
        await owner.until(lambda: len(owner.messages) == 3000)
        assert [int.from_bytes(each[1], "big") for each in owner.messages] == list(range(3000))
        router.close(linger=0)
        await owner.until(lambda: not owner.up)
        router = opened(zmq.ROUTER)
        router.bind(f"tcp://127.0.0.1:{port}")
        await asyncio.sleep(0.3)
        owner.line.tick(owner.clock())
        assert owner.states[-1] == 2 and not router.poll(200)


async def test_a_peer_that_sends_commands_alone_leaves_the_loop() -> None:
    """`take` looks at the socket a few times, whatever comes."""
    pings = frame(4, b"\x07UNKNOWN" + bytes(200)) * 20_000
    fake = Fake(HELLO + READY)
    try:
        async with line(f"tcp://127.0.0.1:{fake.port}") as owner:
            await owner.until(lambda: owner.up)
            assert owner.line is not None
            line_, owner.line = owner.line, None  # nobody takes but this test
            conn, looks = fake.conns[0], [0]
            sender = asyncio.get_running_loop().run_in_executor(None, conn.sendall, pings)
            real = line_._conn
            assert real is not None
            read = real.read

            def counted(now: float) -> bool:
                looks[-1] += 1
                return read(now)

            real.read = counted  # type: ignore[method-assign]
            while not sender.done():
                looks.append(0)
                assert line_.take(owner.clock()) is None
                await asyncio.sleep(0)
            assert max(looks) == zmtp_line.LOOKS
            assert line_.up
    finally:
        fake.close()
