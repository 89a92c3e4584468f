"""Connections to replicas: one Link per replica, with its idle connections.

Engines close a connection that is idle for 5 s (uvicorn's default); ours expire sooner, and the
most recently used one is taken first, so that the surplus of a burst ages out. A connection is in
exactly one place: idle here, or in the hands of one exchange.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from warmlane._core.hop import Kept
from warmlane._core.poll import Conn, Poller
from warmlane.router.pool import Pool, Replica
from warmlane.router.proxy.sockets import dial
from warmlane.router.proxy.tracked import Tracked
from warmlane.router.proxy.upstream import Upstream


class Waiter(Protocol):
    """Who asked for a connection."""

    def connected(self, connection: Upstream) -> None: ...
    def connect_failed(self, error: BaseException) -> None: ...


class Link(Kept):
    """All connections to one replica. Lives as long as the replica is in its pool.

    `idle`, `take` and `give` are the base's: every request calls them.
    """

    __slots__ = (
        "_connections",
        "_poller",
        "_tasks",
        "host",
        "port",
        "replica",
        "tls",
    )

    def __init__(
        self,
        replica: Replica,
        connections: Tracked[Upstream],
        poller: Poller,
        *,
        keepalive_s: float,
        max_idle: int,
        tls: Callable[[], ssl.SSLContext],
    ) -> None:
        url = urlsplit(replica.spec.url)
        self.replica = replica
        self.host = url.hostname or ""
        self.port = url.port or (443 if url.scheme == "https" else 80)
        self.tls = tls() if url.scheme == "https" else None
        # The replica's own name, not the client's: virtual hosts (KServe, ingresses) route by it.
        self.host_line = b"Host: " + url.netloc.encode("ascii")
        rank = replica.spec.rank
        self.extra = b"" if rank is None else b"X-data-parallel-rank: %d" % rank
        self._keepalive_s = keepalive_s
        self._max_idle = max_idle
        self._connections = connections
        self._poller = poller
        self._tasks: set[asyncio.Task[None]] = set()

    def expire(self, now: float) -> None:
        """Close what has been idle for too long; the oldest come first."""
        idle = self.idle
        while idle and now - idle[0].idle_since >= self._keepalive_s:
            idle.pop(0).close()

    def connect(self, waiter: Waiter) -> asyncio.Task[None]:
        """Open a connection and tell the waiter. Cancel the task to give up."""
        task = asyncio.get_running_loop().create_task(self._connect(waiter))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self, waiter: Waiter) -> None:
        connection = Upstream(self, self._connections)
        try:
            if self.tls is None:
                Conn(self._poller, await dial(self.host, self.port), connection)
            else:
                await asyncio.get_running_loop().create_connection(
                    lambda: connection,
                    self.host,
                    self.port,
                    ssl=self.tls,
                    server_hostname=self.host,
                )
        except OSError as error:  # ssl.SSLError is one
            waiter.connect_failed(error)
            return
        except asyncio.CancelledError:
            # It may have been made in the very moment in which nobody wanted it any more.
            if connection.usable:
                connection.abort()
            raise
        waiter.connected(connection)

    def close(self) -> None:
        """The replica left: no idle connection is kept, those in use end with their request."""
        self.closed = True
        while self.idle:
            self.idle.pop().close()


class Links:
    """The links of all pools, made when a replica is first used."""

    def __init__(
        self, *, keepalive_s: float, max_idle: int, tls: Callable[[], ssl.SSLContext]
    ) -> None:
        self.connections: Tracked[Upstream] = Tracked()
        self._keepalive_s = keepalive_s
        self._max_idle = max_idle
        self._tls = tls
        self._links: dict[int, Link] = {}  # by id(replica), which the link keeps alive
        self._poller: Poller | None = None

    @property
    def poller(self) -> Poller:
        """What watches plain connections, made when the event loop first needs it."""
        if self._poller is None:
            self._poller = Poller(asyncio.get_running_loop())
        return self._poller

    def watch(self, pool: Pool) -> None:
        pool.on_change(self._changed)

    def _changed(self, event: str, replica: Replica) -> None:
        if event == "removed":
            link = self._links.pop(id(replica), None)
            if link is not None:
                link.close()

    def of(self, replica: Replica) -> Link:
        link = self._links.get(id(replica))
        if link is None:
            link = self._links[id(replica)] = Link(
                replica,
                self.connections,
                self.poller,
                keepalive_s=self._keepalive_s,
                max_idle=self._max_idle,
                tls=self._tls,
            )
        return link

    def expire(self, now: float) -> None:
        for link in self._links.values():
            link.expire(now)

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        for connection in list(self.connections):
            connection.abort()
