"""Where replicas come from besides the config: a watched file, DNS addresses, DNS SRV records.

Each source looks again every `interval_s` and hands its whole list on when it changed. A look-up
that fails, or a DNS answer without a single record, keeps the old list and is logged once: a
broken name server must not empty a fleet that serves well. An empty list in a *file* is meant.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.rdtypes.IN.SRV

from warmlane.router.config import Discovery
from warmlane.router.config_load import read as read_yaml
from warmlane.router.config_load import replica_specs
from warmlane.router.errors import ConfigError
from warmlane.router.metrics import Metrics
from warmlane.router.types import ReplicaSpec

log = logging.getLogger("warmlane.feeds")

_LOOKUP_S = 5.0
_MAX_FILE_BYTES = 8_388_608  # 4,096 replicas with labels are about 1 MB


class LookupFailed(Exception):
    """One look-up gave no list; the message is one line for the log."""


class Source(Protocol):
    """One origin of replicas. `look` returns the whole list, or None when it did not change."""

    kind: str  # file, dns or srv; a label in metrics

    async def look(self) -> Sequence[ReplicaSpec] | None:
        """Raises LookupFailed."""


class FileSource:
    """A YAML or JSON list of replicas (or {replicas: [...]}); read again when its stat changes."""

    kind = "file"

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._stat: tuple[int, int, int] | None = None

    async def look(self) -> Sequence[ReplicaSpec] | None:
        return await asyncio.to_thread(self._read)  # the file may lie on a slow mount

    def _read(self) -> list[ReplicaSpec] | None:
        try:
            stat = self.path.stat()
        except OSError as error:
            self._stat = None
            raise LookupFailed(f"{self.path}: {error.strerror}") from error
        now = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if now == self._stat:
            return None
        if stat.st_size > _MAX_FILE_BYTES:
            raise LookupFailed(f"{self.path}: over {_MAX_FILE_BYTES} bytes")
        try:
            data = read_yaml(self.path)
            # A file cut off while it is written may read as empty: an empty list is written [].
            specs = replica_specs(data, where=str(self.path))
        except ConfigError as error:
            raise LookupFailed(str(error)) from error
        self._stat = now
        return specs


class AddressSource:
    """Each A or AAAA record of a name is a replica, through the system's resolver."""

    kind = "dns"

    def __init__(self, host: str, port: int, scheme: str) -> None:
        self.host = host
        self.port = port
        self.scheme = scheme

    async def look(self) -> Sequence[ReplicaSpec] | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_LOOKUP_S):
                found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise LookupFailed(f"{self.host}: no answer in {_LOOKUP_S:g} s") from error
        except (OSError, UnicodeError) as error:
            raise LookupFailed(f"{self.host}: {error}") from error
        addresses = sorted({str(entry[4][0]) for entry in found})
        if not addresses:
            raise LookupFailed(f"{self.host}: no address")
        return [_spec(self.scheme, address, self.port) for address in addresses]


class SrvSource:
    """Each SRV record of the lowest priority present is a replica (RFC 2782).

    Weights are not used: load decides. A target of "." means "no such service" and is left out.
    """

    kind = "srv"

    def __init__(
        self, name: str, scheme: str, resolver: dns.asyncresolver.Resolver | None = None
    ) -> None:
        self.name = name
        self.scheme = scheme
        self._resolver = resolver

    async def look(self) -> Sequence[ReplicaSpec] | None:
        try:
            if self._resolver is None:
                self._resolver = dns.asyncresolver.Resolver()
            answer = await self._resolver.resolve(
                self.name, dns.rdatatype.SRV, lifetime=_LOOKUP_S, search=True
            )
        except (dns.exception.DNSException, OSError) as error:
            raise LookupFailed(f"{self.name}: {_first_line(error)}") from error
        records = [
            record
            for record in answer
            if isinstance(record, dns.rdtypes.IN.SRV.SRV) and len(record.target.labels) > 1
        ]
        if not records:
            raise LookupFailed(f"{self.name}: no target")
        best = min(record.priority for record in records)
        targets = sorted(
            {
                (record.target.to_text(omit_final_dot=True), record.port)
                for record in records
                if record.priority == best
            }
        )
        return [_spec(self.scheme, host, port) for host, port in targets]


class Watch:
    """Looks at one source again and again and hands on each new list."""

    def __init__(
        self,
        pool: str,
        source: Source,
        interval_s: float,
        metrics: Metrics,
        deliver: Callable[[str, Sequence[ReplicaSpec]], None],
    ) -> None:
        self.pool = pool
        self.source = source
        self.interval_s = interval_s
        self.metrics = metrics
        self.deliver = deliver
        self.trouble = ""

    async def run(self) -> None:
        while True:
            await self.once()
            await asyncio.sleep(self.interval_s)

    async def once(self) -> None:
        kind = self.source.kind
        try:
            specs = await self.source.look()
        except LookupFailed as error:
            self.metrics.discovery_failed(self.pool, kind)
            if str(error) != self.trouble:
                self.trouble = str(error)
                log.error(
                    'event=discovery_failed pool=%s source=%s kept=old why="%s"',
                    self.pool,
                    kind,
                    error,
                )
            return
        if self.trouble:
            self.trouble = ""
            log.info("event=discovery_recovered pool=%s source=%s", self.pool, kind)
        if specs is not None:
            self.deliver(kind, specs)


def sources(config: Discovery) -> list[Source]:
    """The sources that a pool's config names."""
    found: list[Source] = []
    if config.file:
        found.append(FileSource(config.file))
    if config.dns:
        found.append(AddressSource(config.dns, config.dns_port, config.scheme))
    if config.srv:
        found.append(SrvSource(config.srv, config.scheme))
    return found


def _spec(scheme: str, host: str, port: int) -> ReplicaSpec:
    return ReplicaSpec(url=f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
