"""A ZMTP connection to one endpoint, made again whenever it breaks. Floor 5.

Owns sockets and time limits; the bytes are `_core.zmtp`. A line connects (tcp or ipc) or listens
(tcp), and has one peer at a time: where we listen, a second publisher takes over once its handshake
is done, since the first one may be gone without a word. What its peer sends waits in the kernel
until it is taken, so memory is bounded and the peer's own high-water mark counts.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from warmlane._core.zmtp import Zmtp
from warmlane.router.feeds.client import EngineError

READ_BYTES: Final = 65_536  # that `Zmtp.receive` asks for at least
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
CONNECT_S: Final = 5.0
HANDSHAKE_S: Final = 10.0
RETRY_S: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 2.0)
PING_S: Final = 5.0  # of silence, then the peer is asked for a sign of life
DEAD_S: Final = 15.0  # of silence
CALLERS: Final = 4  # peers in their handshake where we listen; more wait in the kernel
TAKE_OVER_S: Final = 1.0  # at most so often: two engines for one endpoint would take turns
LOOKS: Final = 4  # at the socket for one message; commands and parts of large ones are none
AHEAD_BYTES: Final = 128 * 1024 * 1024
LASTING_S: Final = 2.0  # a connection of this age is followed by the next one at once

Wake = Callable[[], object]


class _Conn:
    """One socket and what was read from it."""

    def __init__(self, sock: socket.socket, kind: bytes, now: float) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            _keep_alive(sock)
        self.sock = sock
        self.fd = sock.fileno()
        self.zmtp = Zmtp(kind, MAX_MESSAGE_BYTES)
        self.since = self.heard = self.asked = now

    def flush(self) -> None:
        """Send what is due, as far as the socket takes it. Raises OSError."""
        out = self.zmtp.outgoing()
        if out:
            try:
                sent = self.sock.send(out)
            except BlockingIOError:
                sent = 0
            self.zmtp.unsent(out[sent:])

    def read(self, now: float) -> int:
        """How many bytes came. Raises OSError: the connection is over."""
        got = self.zmtp.receive(self.fd)
        if got > 0:
            self.heard = now
            return got
        if got == 0:
            raise ConnectionError(errno.ECONNRESET, "closed by the peer")
        return 0


class Line:
    """`take` gives the peer's messages; `wake` is called when there may be some.

    kind: b"SUB" or b"DEALER". `state` counts up with each change: odd while connected, so that the
    owner sees every connection and its end.
    bind None: listen where that works. once: not made again after it was there.
    Raises EngineError: the endpoint cannot be bound.
    """

    def __init__(
        self,
        endpoint: str,
        kind: bytes,
        *,
        bind: bool | None,
        wake: Wake,
        clock: Callable[[], float],
        once: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.state = 0
        self.why = ""  # of the last break
        self.drained = False
        self._kind = kind
        self._wake = wake
        self._clock = clock
        self._once = once
        self._loop = asyncio.get_running_loop()
        self._conn: _Conn | None = None
        self.callers: list[_Conn] = []  # in their handshake, where we listen
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._server = _listen(endpoint) if bind is not False else None
        if bind and self._server is None:
            raise EngineError(f"{endpoint}: cannot be bound")
        if self._server is not None:
            self._loop.add_reader(self._server.fileno(), self._accept)
        else:
            self._dial()

    @property
    def bound(self) -> bool:
        return self._server is not None

    @property
    def up(self) -> bool:
        return self.state & 1 == 1

    def close(self) -> None:
        """Nothing is called any more. Twice is legal."""
        if self._task is not None:
            self._task.cancel()
        if self._server is not None:
            self._loop.remove_reader(self._server.fileno())
            self._server.close()
            self._server = None
        for conn in (*self.callers, *([self._conn] if self._conn else [])):
            self._hang_up(conn)
        self.callers, self._conn = [], None

    def send(self, parts: list[bytes]) -> None:
        """To the peer, while `up`."""
        conn = self._conn
        assert conn is not None and self.up
        conn.zmtp.send(parts)
        try:
            conn.flush()
        except OSError as error:
            self._broke(str(error))

    @property
    def zmtp(self) -> Zmtp | None:
        """The bytes of the connection, for those who know how to read them faster than `take`."""
        return None if self._conn is None else self._conn.zmtp

    def fetch(self, now: float) -> bool:
        """Look at the socket, unless the last look took all that was there (`drained`, which the
        owner takes back when it is woken). False: nothing came, or the connection broke."""
        conn = self._conn
        if conn is None or self.drained:
            return False
        try:
            got = conn.read(now)
        except OSError as error:
            self._broke(str(error))
            return False
        self.drained = got < READ_BYTES
        return got > 0

    def take(self, now: float) -> list[bytes] | None:
        """The next message; None: there is none yet, or the connection came or went (`state`)."""
        conn = self._conn
        if conn is None:
            return None
        try:
            for _ in range(LOOKS):
                message = conn.zmtp.take()
                if not self.state & 1 and conn.zmtp.up:
                    self.state += 1
                if message is not None:
                    return message
                conn.flush()
                if not conn.read(now):
                    return None
        except (OSError, ValueError) as error:
            self._broke(str(error))
        return None  # what is still in the kernel wakes the owner again

    def read_ahead(self, now: float) -> None:
        """Up to 1 MB more, AHEAD_BYTES in all: what a ROUTER finds no room for it drops."""
        conn, turns = self._conn, 16
        try:
            while conn is not None and turns and conn.zmtp.waiting < AHEAD_BYTES and conn.read(now):
                turns -= 1
        except OSError:
            pass  # what came before it is taken first; then `take` reads, and finds the same

    def tick(self, now: float) -> None:
        """Time limits; every half second or so."""
        for caller in [each for each in self.callers if now - each.since > HANDSHAKE_S]:
            self.callers.remove(caller)
            self._hang_up(caller)
        conn = self._conn
        if conn is None:
            if self._task is None and self._server is None and not (self._once and self.state):
                self._dial()
            return
        silent = now - conn.heard
        try:
            if not conn.zmtp.up:
                if now - conn.since > HANDSHAKE_S:
                    raise ConnectionError(errno.ETIMEDOUT, "no handshake")
            elif silent > PING_S and now - conn.asked > PING_S:
                conn.asked = now
                conn.zmtp.ping()
            conn.flush()
            # Only one that knows heartbeats is given up for silence, and none with bytes unread.
            asked = conn.zmtp.minor > 0 and conn.asked > conn.heard + PING_S
            if asked and silent > DEAD_S and not conn.zmtp.waiting and not conn.read(now):
                raise ConnectionError(errno.ETIMEDOUT, "no sign of life")
        except OSError as error:
            self._broke(str(error))

    def _hang_up(self, conn: _Conn) -> None:
        self._loop.remove_reader(conn.fd)
        conn.sock.close()

    def _broke(self, why: str) -> None:
        conn, self._conn, self.why = self._conn, None, why
        if conn is not None:
            self._hang_up(conn)
            if self._clock() - conn.since > LASTING_S:
                self._failures = 0
        if self.up:
            self.state += 1
        if self._server is None and not (self._once and self.state):
            self._dial()

    # We connect

    def _dial(self) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._connect(), name=f"zmtp {self.endpoint}")
            self._task.add_done_callback(self._dialled)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            self.why = str(task.exception())  # `tick` tries again

    async def _connect(self) -> None:
        while self._conn is None:
            if self._failures:
                await asyncio.sleep(RETRY_S[min(self._failures, len(RETRY_S)) - 1])
            self._failures += 1
            try:
                async with asyncio.timeout(CONNECT_S):
                    sock = await self._connected()
            except (OSError, TimeoutError) as error:
                self.why = str(error) or "no answer"
                continue
            self._conn = _Conn(sock, self._kind, self._clock())
            self._loop.add_reader(self._conn.fd, self._wake)
            self._wake()

    async def _connected(self) -> socket.socket:
        """A connected socket. Raises OSError."""
        if self.endpoint.startswith("ipc://"):
            path = self.endpoint.removeprefix("ipc://")
            path = "\0" + path[1:] if path.startswith("@") else path
            return await self._reached(socket.AF_UNIX, path)
        host, port = _host_port(self.endpoint)
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failure: OSError = OSError(f"{host}: no address")
        for family, _, _, _, address in found:
            try:
                return await self._reached(family, address)
            except OSError as error:
                failure = error
        raise failure

    async def _reached(self, family: int, address: object) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, address)  # type: ignore[arg-type]
        except BaseException:
            sock.close()
            raise
        return sock

    # We listen

    def _accept(self) -> None:
        assert self._server is not None
        try:
            sock, _ = self._server.accept()
        except OSError:
            return  # it went away again
        if len(self.callers) >= CALLERS:
            self._hang_up(self.callers.pop(0))
        caller = _Conn(sock, self._kind, self._clock())
        self.callers.append(caller)
        self._loop.add_reader(caller.fd, self._shake_hands, caller)
        self._shake_hands(caller)

    def _shake_hands(self, caller: _Conn) -> None:
        now, conn = self._clock(), self._conn
        try:
            while not caller.zmtp.up:
                caller.zmtp.take()
                caller.flush()
                if not caller.zmtp.up and not caller.read(now):
                    return
            if conn is not None and now - conn.since < TAKE_OVER_S:
                raise ConnectionError(errno.EBUSY, "the endpoint has just been taken")
        except (OSError, ValueError) as error:
            self.why = str(error)
            self.callers.remove(caller)
            self._hang_up(caller)
            return
        self.callers.remove(caller)
        if conn is not None:
            self._broke("another publisher took its place")
        self._loop.remove_reader(caller.fd)
        self._loop.add_reader(caller.fd, self._wake)
        self._conn, caller.since = caller, now
        self._wake()


def _keep_alive(sock: socket.socket) -> None:
    """For peers without heartbeats, and those that are gone without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # the system has it
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _host_port(endpoint: str) -> tuple[str, int]:
    parts = urlsplit(endpoint)
    return parts.hostname or "", parts.port or 0


def _listen(endpoint: str) -> socket.socket | None:
    """A listening socket; None where it cannot be had. Names are not looked up."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    everywhere = host in ("*", "::")
    try:
        found = socket.getaddrinfo(
            None if everywhere else host,
            int(port),
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE | (0 if everywhere else socket.AI_NUMERICHOST),
        )
    except (OSError, ValueError):
        return None
    # Of "everywhere" the IPv6 one hears both.
    for family, _, _, _, address in sorted(found, key=lambda each: each[0] != socket.AF_INET6):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and everywhere:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(address)
            sock.listen(16)
            sock.setblocking(False)
            return sock
        except OSError:
            sock.close()
    return None
