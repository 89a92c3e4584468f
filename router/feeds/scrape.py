"""Reads the metrics of one replica again and again, and tells its pool.

The interval adapts: short while the replica has work, doubling up to the longest one when it has
none, so that a fleet at rest costs little. An engine that writes its metrics passes no token on
meanwhile (vLLM: 4 ms for 55 KB on one core, in the process that streams all answers), so that it is
asked the less often the longer it takes. A failed scrape leaves the last snapshot where it is:
its age grows, and the decision knows what to do with an old one; only the probe judges health.

Cost: about 0.5 ms of CPU a scrape of 80 KB (HTTP client included). `Pace` bounds the sum over all
replicas to a share of one core.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp

from warmlane.router.config import Scrape
from warmlane.router.feeds.client import EngineError, fetch
from warmlane.router.feeds.dialects import BY_NAME, DIALECTS, Dialect, Reading, detect, read
from warmlane.router.feeds.kept_line import KeptLine
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool, Replica

log = logging.getLogger("warmlane.feeds")

_SCRAPE_CPU_S = 0.001  # measured with recorded vLLM text over loopback, see docs/metrics.md
_CPU_SHARE = 0.2  # of one core, at most, for all scrapes together
_ENGINE_SHARE = 0.01  # of an engine's time, at most, for its answers to scrapes
_TOOK_KEPT = 8  # answers of which the quickest tells what one costs the engine; others waited
_KEEPALIVE_S = 4.0  # vLLM closes a connection that was idle for 5 s
_JITTER = 0.1  # relative, both ways: replicas started together must not be scraped in step
METRICS_PORT_LABEL = "metrics_port"  # a replica's label: its metrics are on another port (Triton)


class Pace:
    """How often a replica may be scraped, given how many there are."""

    __slots__ = ("replicas",)

    def __init__(self) -> None:
        self.replicas = 0

    def floor_s(self) -> float:
        """Shortest interval that keeps all scrapes within their share of a core."""
        return self.replicas * _SCRAPE_CPU_S / _CPU_SHARE


class Scraper:
    """The scrape loop of one replica: `run()` until cancelled."""

    def __init__(
        self,
        pool: Pool,
        replica: Replica,
        session: aiohttp.ClientSession,
        config: Scrape,
        *,
        headers: dict[str, str],
        metrics: Metrics,
        pace: Pace,
        clock: Callable[[], float],
    ) -> None:
        self.pool = pool
        self.replica = replica
        self.session = session
        self.config = config
        self.headers = headers
        self.metrics = metrics
        self.pace = pace
        self.clock = clock
        self.dialect: Dialect | None = BY_NAME.get(pool.config.engine)
        self.interval_s = config.min_interval_s
        self.failures = 0
        self.took_s: deque[float] = deque(maxlen=_TOOK_KEPT)  # of the last answers
        self.trouble = ""  # what the log was told last
        self._epoch: float | None = None
        self._path = ""
        self._random = random.Random(f"{pool.name}/{replica.name}")
        self._origin = metrics_origin(replica)
        self._line: KeptLine | None = None  # engines behind https are asked through the session
        if self._origin.startswith("http://"):
            self._line = KeptLine(self._origin, headers, _KEEPALIVE_S)

    async def run(self) -> None:
        self.pace.replicas += 1
        try:
            while True:
                await self.once()
                await asyncio.sleep(self.delay_s())
        finally:
            self.pace.replicas -= 1
            self.close()

    def close(self) -> None:
        """Let the connection go; `run` does it at its end."""
        if self._line is not None:
            self._line.close()

    async def once(self) -> bool:
        """One scrape. True: the pool has a new snapshot."""
        pool, name = self.pool.name, self.replica.name
        begun = self.clock()
        try:
            reading = await self._fetch()
        except EngineError as error:
            self.failures += 1
            self.metrics.scrape_failed(pool, name)
            self._say(str(error))
            return False
        self.failures = 0
        self.took_s.append(self.clock() - begun)
        self._notice_restart(reading)
        self.pool.update_load(self.replica.slot, reading.snapshot)
        self.metrics.scrape_done(pool, name)
        self._say("")
        return True

    def delay_s(self) -> float:
        """Time to the next scrape; call once after each."""
        shortest, longest = self.config.min_interval_s, self.config.max_interval_s
        if self.failures == 0 and self._busy():
            self.interval_s = shortest
        else:
            self.interval_s = min(longest, max(shortest, self.interval_s) * 2)
        spared = min(longest, min(self.took_s, default=0.0) / _ENGINE_SHARE)
        base = max(self.interval_s, self.pace.floor_s(), spared)
        return base * (1 + _JITTER * (2 * self._random.random() - 1))

    def _busy(self) -> bool:
        load = self.replica.load
        told = load is not None and load.waiting + load.running > 0
        return told or self.pool.ledger.requests[self.replica.slot] > 0

    async def _fetch(self) -> Reading:
        if self._path and self.dialect is not None:
            return self._read(await self._get(self._path), self.dialect)
        known = self.dialect
        dialects = DIALECTS if known is None else (known,)
        paths = list(dict.fromkeys(path for dialect in dialects for path in dialect.paths))
        problem = EngineError("no metrics path")
        for path in paths:
            try:
                text = await self._get(path)
            except EngineError as error:
                if error.status == 0:
                    raise
                if problem.status in (0, 404):  # the first that says more than "not here"
                    problem = error
                continue
            dialect = known or detect(text)
            if dialect is None or path not in dialect.paths:
                problem = EngineError(f"{path}: none of the metrics that routing knows", 200)
                continue
            reading = self._read(text, dialect)
            self._path, self.dialect = path, dialect  # found: ask there from now on
            return reading
        raise problem

    async def _get(self, path: str) -> bytes:
        timeout_s, most = self.config.timeout_s, self.config.max_bytes
        if self._line is not None:
            status, body = await self._line.get(path, timeout_s, most)
        else:
            url = self._origin + path
            status, body = await fetch(
                self.session, url, headers=self.headers, timeout_s=timeout_s, max_bytes=most
            )
        if status != 200:
            raise EngineError(f"{path}: status {status}", status)
        return body

    def _read(self, text: bytes, dialect: Dialect) -> Reading:
        reading = read(text, dialect, self.clock(), self.replica.spec.rank)
        if reading is None:
            raise EngineError(f"neither queue nor batch in the metrics of {dialect.name}", 200)
        return reading

    def _notice_restart(self, reading: Reading) -> None:
        """Counters that go backwards, or another start time: the engine and its cache are new.

        The pool's load listeners see both snapshots and act; this counts and tells.
        """
        before, after = self.replica.load, reading.snapshot
        backwards = (
            before is not None
            and before.prefix_queries is not None
            and after.prefix_queries is not None
            and after.prefix_queries < before.prefix_queries
        )
        renewed = None not in (self._epoch, reading.epoch) and self._epoch != reading.epoch
        if reading.epoch is not None:
            self._epoch = reading.epoch
        if backwards or renewed:
            self.metrics.engine_restarted(self.pool.name, self.replica.name)
            log.warning(
                "event=engine_restarted pool=%s replica=%s", self.pool.name, self.replica.name
            )

    def _say(self, trouble: str) -> None:
        """One line per change, not per failure."""
        if bool(trouble) == bool(self.trouble):
            return
        self.trouble = trouble
        pool, name = self.pool.name, self.replica.name
        if trouble:
            log.warning('event=scrape_failing pool=%s replica=%s why="%s"', pool, name, trouble)
        else:
            log.info("event=scrape_recovered pool=%s replica=%s", pool, name)


def metrics_origin(replica: Replica) -> str:
    """scheme://host:port of the replica's metrics."""
    port = replica.spec.labels.get(METRICS_PORT_LABEL, "")
    parts = urlsplit(replica.spec.url)
    if not port.isdigit():
        return replica.spec.url
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{port}"
