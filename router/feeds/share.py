"""Carries the messages between routers through Valkey or Redis: publish and subscribe, no keys.

Owns two connections and the task that uses them. One message is published an interval and each
router hears all of them, its own included: silence on the channel for `timeout_s` is how a dead
server or a cut network is noticed. Nothing is stored in the server, so that nothing is left behind
or has to expire there. A lost server is logged once and asked again until it is back; the router
goes on alone (docs/share.md says with what price).

Cost: about 60 us of CPU for an own message, 60 us for one that is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable
from typing import Any, Final

import redis.asyncio as redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from warmlane.router.config_share import Sharing
from warmlane.router.errors import ConfigError
from warmlane.router.feeds.client import read_keys
from warmlane.router.share import Sharer

log = logging.getLogger("warmlane.share")

_FIRST_PAUSE_S: Final = 0.25
_LAST_PAUSE_S: Final = 5.0


def new_name() -> str:
    """A name for this process that no other one has."""
    return secrets.token_hex(8)


class ShareFeed:
    """`run` until cancelled, then `close`. ConfigError: its password is configured, not there."""

    def __init__(self, sharer: Sharer, clock: Callable[[], float]) -> None:
        self.sharer = sharer
        self.connected = False
        self.most = 1  # routers that were there when they were last heard
        self._settings = sharer.settings
        self._metrics = sharer.router.metrics
        self._clock = clock
        self._password = _password(sharer.settings)
        self._channel = f"{sharer.settings.namespace}:routers"
        self._own = b""  # the last own message, which comes back
        self._publisher: redis.Redis | None = None
        self._was_lost = False
        self._show()

    async def run(self) -> None:
        """Exchange messages; when the server is lost, ask again with growing pauses."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._exchange()
            except (RedisError, OSError) as error:
                was_connected = self.connected
                self._lost(error)
                pause_s = _FIRST_PAUSE_S if was_connected else min(2 * pause_s, _LAST_PAUSE_S)
            await self._wait(pause_s)

    async def close(self) -> None:
        """Say good-bye where somebody listens."""
        publisher, self._publisher = self._publisher, None
        if publisher is None:
            return
        if self.connected:
            try:
                data = self.sharer.tell(self._clock(), leaving=True)
                await publisher.publish(self._channel, data)
            except (RedisError, OSError) as error:
                log.debug("event=share_goodbye failed=%s", type(error).__name__)
        self.connected = False
        await publisher.aclose()

    async def _exchange(self) -> None:
        """Until an error of either connection."""
        self._publisher = publisher = self._open()
        # Each of them is closed even if closing another one fails, or is cancelled meanwhile.
        async with contextlib.AsyncExitStack() as ends:
            ends.push_async_callback(self._end, publisher)
            listener = self._open()
            ends.push_async_callback(listener.aclose)
            channel = listener.pubsub()
            ends.push_async_callback(channel.aclose)
            await channel.subscribe(self._channel)
            await self._rounds(publisher, channel)

    async def _end(self, publisher: redis.Redis) -> None:
        """Cancelled by `close`, which still needs the publisher: then it stays."""
        if not _cancelling():
            self._publisher = None
            await publisher.aclose()

    async def _rounds(self, publisher: redis.Redis, channel: PubSub) -> None:
        clock, interval_s = self._clock, self._settings.interval_s
        due = heard = clock()
        while True:
            now = clock()
            if now >= due:
                self._own = self.sharer.tell(now)
                await publisher.publish(self._channel, self._own)
                self._count("told", len(self._own))
                due = max(due + interval_s, now)
            wait_s = max(0.0, due - clock())
            message = await channel.get_message(ignore_subscribe_messages=True, timeout=wait_s)
            now = clock()
            if message is not None:
                heard = now
                self._hear(message["data"], now)
            elif now - heard > self._settings.timeout_s:
                raise TimeoutError(f"nothing heard for {self._settings.timeout_s:g} s")

    def _hear(self, data: Any, now: float) -> None:
        if not self.connected:
            self._found()
        if data == self._own:
            return
        self._count("heard", len(data))
        self.sharer.hear(data, now)
        self.most = 1 + len(self.sharer.peers)
        self._show()

    async def _wait(self, pause_s: float) -> None:
        """A pause in which what peers said goes on fading."""
        end = self._clock() + pause_s
        while (left_s := end - self._clock()) > 0:
            await asyncio.sleep(min(left_s, self._settings.interval_s))
            self.sharer.age(self._clock())
            self._show()

    def _open(self) -> redis.Redis:
        """A client that tries once and never longer than `timeout_s`."""
        settings = self._settings
        more: dict[str, Any] = {}
        if settings.url.startswith("rediss://") and settings.ca_file:
            more["ssl_ca_certs"] = settings.ca_file
        return redis.Redis.from_url(
            settings.url,
            password=self._password,
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            single_connection_client=True,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **more,
        )

    def _found(self) -> None:
        self.connected, self._was_lost = True, False
        log.info("event=share state=connected channel=%s", self._channel)
        self._show()

    def _lost(self, error: Exception) -> None:
        self.connected = False
        if not self._was_lost:  # one line per change, not one per try
            self._was_lost = True
            why = str(error).splitlines()[0] if str(error) else ""
            log.warning('event=share state=lost why="%s: %s"', type(error).__name__, why)
            self._metrics.count("warmlane_share_troubles_total", "lost")
        self._show()

    def _count(self, direction: str, size: int) -> None:
        self._metrics.count("warmlane_share_messages_total", direction)
        self._metrics.count("warmlane_share_bytes_total", direction, n=size)

    def _show(self) -> None:
        self._metrics.gauge("warmlane_share_connected", float(self.connected))
        self._metrics.gauge("warmlane_share_peers", float(len(self.sharer.peers)))


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _password(settings: Sharing) -> str | None:
    """ConfigError: configured but not there."""
    if settings.password_file:
        return read_keys(settings.password_file, "share.password_file")[0]
    if settings.password_env:
        word = os.environ.get(settings.password_env, "")
        if not word:
            raise ConfigError(
                f"share.password_env: nothing in the environment variable {settings.password_env}"
            )
        return word
    return None
