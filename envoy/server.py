"""The endpoint picker as a server: transports, health, certificates, heartbeat, drain.

Owns which transport runs and says so in the log. One loop, one thread. `start_server(running)` is
for programs that embed it; `warmlane ext-proc` (router/ext_proc.py) is the command.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from time import monotonic
from typing import Final

from warmlane.envoy import transport_native
from warmlane.envoy.addresses import Resolver
from warmlane.envoy.health import SERVICE, Health
from warmlane.envoy.picker import Picker
from warmlane.envoy.session import Session
from warmlane.envoy.streams import Methods, Transport, TransportLimits
from warmlane.envoy.tls import Tls
from warmlane.envoy.transport_grpcio import start_grpcio
from warmlane.router.build import Running
from warmlane.router.config import Config
from warmlane.router.config_envoy import ExtProc
from warmlane.router.errors import ConfigError

log = logging.getLogger("warmlane.envoy")

PROCESS: Final = f"/{SERVICE}/Process"
_TICK_S: Final = 0.05
_RELOAD_EVERY: Final = 40  # ticks between two looks at the certificate's files
_LOG_EVERY_S: Final = 60.0  # shadow report
# A message carries a body of the largest size and its headers.
_MESSAGE_MORE: Final = 1 << 20


class PortTaken(OSError):
    """An address cannot be listened on; the message names it."""


class Server:
    """A running endpoint picker. Made by `start_server`."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.options: ExtProc = running.config.ext_proc
        self.picker = Picker(running.router, running.config)
        self.picker.tokens = running.feeds.tokens
        self.picker.adapters = running.feeds.adapters
        self.picker.failing = running.feeds.failing
        self.health = Health()
        self.tls: Tls | None = None if self.options.insecure else Tls(self.options)
        self.resolver = Resolver(self.picker)
        self.transport: Transport | None = None
        self.health_transport: Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticks = 0
        self._log_at = monotonic() + _LOG_EVERY_S
        running.shadow = self.picker.shadow
        running.followers.append(self.picker.follow)

    @property
    def port(self) -> int:
        """The bound ext_proc port."""
        assert self.transport is not None, "started"
        return self.transport.port

    @property
    def health_port(self) -> int:
        """The bound port of the plaintext health service."""
        assert self.health_transport is not None, "started"
        return self.health_transport.port

    async def start(self) -> None:
        """Bind and serve. PortTaken; ConfigError: the wanted transport is not built."""
        options = self.options
        health = self.health.methods()
        methods: Methods = {PROCESS: partial(Session, self.picker), **health}
        limits = limits_of(self.running.config)
        self.resolver.look(monotonic())
        await self.resolver.resolved()
        self.transport = await _listen(
            options.transport, methods, options.host, options.port, self.tls, limits
        )
        metrics = self.running.metrics
        metrics.transport, metrics.transport_stats = self.transport.name, self.transport.stats
        try:
            # Probes are rare: the transport that is always there will do.
            self.health_transport = await _listen(
                "grpcio", health, options.host, options.health_port, None, limits
            )
        except BaseException:
            await self.transport.close()
            raise
        log.info(
            "event=ext_proc_started transport=%s port=%d tls=%s level=%d mode=%s",
            self.transport.name,
            self.port,
            "off" if self.tls is None else "self-signed" if not options.tls_cert else "files",
            options.response_level,
            self.running.config.shadow.mode,
        )
        self._tick()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)
        now = monotonic()
        picker, metrics = self.picker, self.running.metrics
        picker.predicted.tick(now)
        metrics.ext_proc_streams, metrics.ext_proc_buffered_bytes = picker.open, picker.buffered
        self.resolver.look(now)
        if self.running.standby != self.health.standby:
            self.health.set(standby=self.running.standby)
        self._ticks += 1
        if self._ticks % _RELOAD_EVERY == 0:
            self.reload_files()
        if now >= self._log_at:
            self._log_at = now + _LOG_EVERY_S
            for line in self.picker.shadow.log_lines():
                log.info("%s", line)

    def reload_files(self) -> None:
        """Take a changed certificate into use; a bad one is reported and ignored."""
        try:
            if self.tls is not None and self.tls.reload():
                log.info("event=certificate_reloaded")
        except ConfigError as error:
            log.error('event=certificate_kept why="%s"', error)

    async def drain(self, delay_s: float = 0.0, timeout_s: float | None = None) -> bool:
        """NOT_SERVING at once; after `delay_s` GOAWAY, and streams finish. True: all did.

        The delay is for gateways that learn by health checks: until then new streams are served.
        """
        self.picker.draining = True
        self.health.set(draining=True)
        await asyncio.sleep(delay_s)
        assert self.transport is not None, "started"
        limit = self.running.config.timeouts.drain_s if timeout_s is None else timeout_s
        return await self.transport.drain(limit)

    async def close(self) -> None:
        """Cut what is left; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
        for transport in (self.transport, self.health_transport):
            if transport is not None:
                counts = " ".join(f"{key}={value:g}" for key, value in transport.stats().items())
                log.debug("event=transport_closed transport=%s %s", transport.name, counts)
                await transport.close()


def limits_of(config: Config) -> TransportLimits:
    """The bounds of a transport by the config."""
    return TransportLimits(
        streams=config.ext_proc.streams,
        message_bytes=config.limits.body_bytes + _MESSAGE_MORE,
        buffered_bytes=config.limits.buffered_bytes,
        keepalive_s=config.ext_proc.keepalive_s,
    )


async def _listen(
    name: str, methods: Methods, host: str, port: int, tls: Tls | None, limits: TransportLimits
) -> Transport:
    missing = transport_native.why_missing()
    if name == "native" and missing:
        raise ConfigError(f"ext_proc.transport: native: {missing}; use auto or grpcio")
    if name == "auto" and missing:
        log.info('event=native_transport_missing why="%s"', missing)
    try:
        if name == "grpcio" or missing:
            return await start_grpcio(methods, host=host, port=port, tls=tls, limits=limits)
        native = transport_native.NativeLimits(
            streams=2 * limits.streams,
            streams_per_connection=limits.streams,
            message_bytes=limits.message_bytes,
            stream_bytes=2 * limits.message_bytes,
            held_bytes=limits.buffered_bytes,
            keepalive_s=limits.keepalive_s,
        )
        return await transport_native.start_native(
            methods, host=host, port=port, tls=None if tls is None else tls.context, limits=native
        )
    except OSError as error:
        raise PortTaken(f"{host}:{port}: {error.strerror or error}") from error


async def start_server(running: Running) -> Server:
    """Serve `running` on `config.ext_proc`. PortTaken; ConfigError."""
    server = Server(running)
    try:
        await server.start()
    except BaseException:
        await server.close()
        raise
    return server
