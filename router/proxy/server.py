"""The listening side of the proxy: start, heartbeat, reload, drain, close."""

from __future__ import annotations

import asyncio
import logging
import socket
from time import monotonic

from warmlane._core.poll import Conn
from warmlane.router.config import Config
from warmlane.router.core import Router
from warmlane.router.errors import ConfigError
from warmlane.router.proxy.access import Certificate, Keys
from warmlane.router.proxy.downstream import Client
from warmlane.router.proxy.sockets import Acceptor, listen
from warmlane.router.proxy.state import State

log = logging.getLogger("warmlane.proxy")

# Resolution of all time-outs. One pass over 10,000 connections costs about 1 ms.
_TICK_S = 0.1
# Ticks between two looks at the key and certificate files.
_RELOAD_EVERY = 20


class Proxy:
    """A running proxy. `port` is the bound one, also when 0 was asked for."""

    def __init__(self, router: Router, config: Config) -> None:
        listen = config.listen
        self._config = config
        self._keys = Keys(listen.api_key_file, "listen.api_key_file")
        self._debug_keys = Keys(config.admin.token_file, "admin.token_file")
        self._certificate = Certificate(listen) if listen.tls_cert else None
        self.state = State(router, config, self._keys, self._debug_keys)
        self._server: asyncio.Server | Acceptor | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticks = 0
        self.port = 0

    async def start(self) -> None:
        """Bind and serve. OSError: the address is taken."""
        loop = asyncio.get_running_loop()
        settings = self._config.listen
        if self._certificate is None:
            sockets = await listen(settings.host, settings.port, settings.backlog)
            self._server = Acceptor(sockets, self._accepted)
        else:
            self._server = await loop.create_server(
                lambda: Client(self.state),
                settings.host,
                settings.port,
                backlog=settings.backlog,
                ssl=self._certificate.context,
            )
        self.port = self._server.sockets[0].getsockname()[1]
        self._timer = loop.call_later(_TICK_S, self._tick)

    def _accepted(self, sock: socket.socket) -> None:
        """A client has connected."""
        Conn(self.state.links.poller, sock, Client(self.state))

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)
        self.state.tick(monotonic())
        self._ticks += 1
        if self._ticks % _RELOAD_EVERY == 0:
            self.reload_files()

    def reload_files(self) -> None:
        """Take changed keys and certificates into use; bad ones are reported and ignored."""
        for source in (self._keys, self._debug_keys, self._certificate):
            try:
                if source is not None and source.reload():
                    log.info("reloaded %s", type(source).__name__.lower())
            except ConfigError as error:
                log.error("kept the old %s: %s", type(source).__name__.lower(), error)

    @property
    def inflight(self) -> int:
        """Requests under way."""
        return self.state.inflight

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Accept no connection, close idle ones, let requests under way finish. True: all did."""
        self.state.draining = True
        if self._server is not None:
            self._server.close()
        for client in list(self.state.clients):
            client.finish()
        limit = self._config.timeouts.drain_s if timeout_s is None else timeout_s
        try:
            await asyncio.wait_for(self.state.clients.emptied(), limit)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Cut everything that is still open; tickets close as cancelled."""
        if self._server is not None:
            self._server.close()
        for client in list(self.state.clients):
            client.transport.abort()
        await self.state.clients.emptied()
        self.state.links.close()
        await self.state.links.connections.emptied()
        self.state.links.poller.close()
        if self._timer is not None:
            self._timer.cancel()


async def start_proxy(router: Router, config: Config) -> Proxy:
    """Serve `router` on `config.listen`. ConfigError: bad key or certificate files."""
    proxy = Proxy(router, config)
    await proxy.start()
    return proxy
