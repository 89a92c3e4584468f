"""Host names of replicas -> addresses: a gateway is told "ip:port", never a name.

Envoy's ORIGINAL_DST cluster connects to what the header says and resolves nothing. Replicas found
through Kubernetes or DNS come as addresses anyway; names of a static list are looked up here, when
their pool changes and then now and again.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from warmlane.envoy.picker import Picker, host, is_bare

log = logging.getLogger("warmlane.envoy")

_AGAIN_S = 30.0


class Resolver:
    """Keeps `picker.addresses` up to date."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker
        self._versions: list[tuple[str, int]] = []
        self._next = 0.0
        self._task: asyncio.Task[None] | None = None
        self._troubles: dict[str, str] = {}  # names that nobody knows, and what was said of them

    def look(self, now: float) -> None:
        """Look names up if pools changed or it is time again; returns at once."""
        pools = self._picker.router.pools.values()
        versions = [(pool.name, pool.version) for pool in pools]
        if (versions == self._versions and now < self._next) or self._task is not None:
            return
        self._versions, self._next = versions, now + _AGAIN_S
        names = {
            each.endpoint for pool in pools for each in pool if not is_bare(host(each.endpoint))
        }
        if names:
            self._task = asyncio.ensure_future(self._resolve(names))

    async def resolved(self) -> None:
        """Waits for a look-up under way."""
        if self._task is not None:
            await self._task

    async def _resolve(self, names: set[str]) -> None:
        loop = asyncio.get_running_loop()
        self._troubles = {name: why for name, why in self._troubles.items() if name in names}
        addresses, changed = self._picker.addresses, False
        try:
            for name in sorted(names):
                where, _, port = name.rpartition(":")
                try:
                    found = await loop.getaddrinfo(where, port, type=socket.SOCK_STREAM)
                except (OSError, UnicodeError) as error:  # the second: no name at all, like a..b
                    self._say(name, str(error))
                    continue
                self._say(name, "")
                # IPv4 first: "localhost" is mostly served there alone.
                ip = min(found, key=lambda each: each[0] != socket.AF_INET)[4][0]
                address = f"[{ip}]:{port}" if ":" in str(ip) else f"{ip}:{port}"
                changed = changed or addresses.get(name) != address
                addresses[name] = address
        finally:
            self._task = None
        if changed:
            self._picker.readdressed()

    def _say(self, name: str, why: str) -> None:
        """One line per change of what is wrong with a name."""
        if self._troubles.get(name, "") == why:
            return
        if why:
            self._troubles[name] = why
            log.warning('event=not_resolved endpoint=%s why="%s"', name, why)
        else:
            del self._troubles[name]
            log.info("event=resolved endpoint=%s", name)
