"""Plain TCP sockets for the proxy: listening, accepting, connecting. TLS goes other ways.

What listens is watched by the event loop, what is connected by a `Poller` (`_core.poll`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger("warmlane.proxy")

_ACCEPTS = 64  # connections taken in one turn
_PAUSE_S = 1.0  # without accepting, when there are no descriptors left


async def listen(host: str, port: int, backlog: int = 128) -> list[socket.socket]:
    """One bound socket for each address of the host. Raises OSError: one cannot be bound."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    made: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            made.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # or it would take the IPv4 address as well
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(backlog)
            sock.setblocking(False)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made


class Acceptor:
    """Takes connections from listening sockets and hands them to `taken`, non-blocking."""

    def __init__(
        self, sockets: list[socket.socket], taken: Callable[[socket.socket], object]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.sockets = sockets
        self._taken = taken
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        for sock in sockets:
            self._loop.add_reader(sock, self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors or no memory: not for ever
                log.error("accept failed error=%r pause_s=%.0f", str(error), _PAUSE_S)
                self._loop.remove_reader(sock)
                self._paused[sock] = self._loop.call_later(_PAUSE_S, self._resume, sock)
                return
            connection.setblocking(False)
            self._taken(connection)

    def _resume(self, sock: socket.socket) -> None:
        del self._paused[sock]
        self._loop.add_reader(sock, self._accept, sock)

    def close(self) -> None:
        """Accept no more."""
        for timer in self._paused.values():
            timer.cancel()
        for sock in self.sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._paused.clear()
        self.sockets = []


async def dial(host: str, port: int) -> socket.socket:
    """A connected socket to the first address of the host that answers. Raises OSError."""
    loop = asyncio.get_running_loop()
    failed: OSError | None = None
    for family, address in await _addresses(loop, host, port):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failed or OSError(f"no address for {host}")


async def _addresses(
    loop: asyncio.AbstractEventLoop, host: str, port: int
) -> list[tuple[int, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]]:
    """Addresses to try in order; a literal needs no resolver and no thread."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]
