"""The processes of the main job: embedded replicas and routers as children of this one.

Each child is `python -m warmlane ...` with the same interpreter and environment. Its address comes
from what it prints, so every port is chosen by the system and two runs never collide.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress

from warmlane.router.sim.client import Client

START_S = 30.0
POLL_S = 0.05


class FleetError(RuntimeError):
    """A child did not start; the message carries the end of what it said."""


class Child:
    """One subprocess whose first lines tell where it listens."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._process: asyncio.subprocess.Process | None = None
        self._said = bytearray()  # the end of stderr
        self._drains: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, patterns: Sequence[str]) -> list[str]:
        """Start, and read lines until each pattern has matched once; their first groups."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "warmlane", *self._words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        stdout, stderr = self._process.stdout, self._process.stderr
        assert stdout is not None
        assert stderr is not None
        self._follow(_keep(stderr, self._said))
        found: list[str] = []
        try:
            async with asyncio.timeout(START_S):
                while len(found) < len(patterns):
                    line = (await stdout.readline()).decode("utf-8", "replace")
                    if not line:
                        await self._process.wait()
                        raise FleetError(self._complaint("ended"))
                    match = re.search(patterns[len(found)], line)
                    if match is not None:
                        found.append(match[1])
        except TimeoutError:
            raise FleetError(self._complaint(f"said nothing useful in {START_S:.0f} s")) from None
        self._follow(_keep(stdout, bytearray()))
        return found

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after 5 s. May be called twice."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5.0)
            except TimeoutError:
                process.kill()
                await process.wait()
        for drain in self._drains:
            drain.cancel()
        await asyncio.gather(*self._drains, return_exceptions=True)
        self._drains.clear()

    def kill(self) -> None:
        """SIGKILL, for tests of a dying replica."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def _follow(self, job: Coroutine[None, None, None]) -> None:
        self._drains.append(asyncio.get_running_loop().create_task(job))

    def _complaint(self, what: str) -> str:
        said = self._said.decode("utf-8", "replace").strip()
        return f"warmlane {' '.join(self._words)} {what}\n{said}"


async def _keep(stream: asyncio.StreamReader, end: bytearray) -> None:
    """Read to the end and keep the last 2,000 bytes: a child must never block on a full pipe."""
    while data := await stream.read(65_536):
        end += data
        del end[:-2000]


class Replicas:
    """Embedded replicas, `per_process` of them in each process."""

    def __init__(self, count: int, options: Sequence[str], per_process: int = 2) -> None:
        self.urls: list[str] = []
        self.children: list[Child] = []
        self._count = count
        self._options = list(options)
        self._per_process = per_process

    async def start(self) -> None:
        shares = []
        left = self._count
        while left > 0:
            shares.append(min(left, self._per_process))
            left -= shares[-1]
        for share in shares:
            words = ["fake-engine", "--port", "0", "--replicas", str(share), *self._options]
            self.children.append(Child(words))
        pattern = r"listening on (\S+)"
        found = await asyncio.gather(
            *(
                child.start([pattern] * share)
                for child, share in zip(self.children, shares, strict=True)
            )
        )
        self.urls = [url for urls in found for url in urls]

    async def reset(self) -> None:
        """Forget every cache. FleetError when one is in use."""
        for url in self.urls:
            client = Client(url)
            reply = await client.post("/reset_prefix_cache")
            await client.close()
            if reply.json() != {"success": True}:
                raise FleetError(f"{url}: the cache could not be reset")

    async def counters(self) -> list[dict[str, float]]:
        """Each replica's own metrics, name without labels -> sum of its samples."""
        pages = []
        for url in self.urls:
            client = Client(url)
            reply = await client.get("/metrics")
            await client.close()
            pages.append(read_metrics(reply.body.decode()))
        return pages

    async def stop(self) -> None:
        await asyncio.gather(*(child.stop() for child in self.children))


class RouterProcess:
    """`warmlane serve` in front of replicas."""

    def __init__(
        self, replicas: Sequence[str], policy: str, port: int = 0, options: Sequence[str] = ()
    ) -> None:
        words = ["serve", "--port", str(port), "--admin-port", "0", "--policy", policy, *options]
        words += ["--log-level", "warning"]
        for url in replicas:
            words += ["--replica", url]
        self.child = Child(words)
        self.url = ""
        self.admin_url = ""
        self._replicas = len(replicas)

    async def start(self) -> None:
        """Start, and wait until every replica has been probed."""
        patterns = [r"listens on (\S+)", r"admin and metrics on (\S+)"]
        self.url, self.admin_url = await self.child.start(patterns)
        admin = Client(self.admin_url)
        try:
            for _ in range(int(START_S / POLL_S)):
                if await self._ready(admin):
                    return
                await asyncio.sleep(POLL_S)
        finally:
            await admin.close()
        raise FleetError(f"{self.url}: not every replica became ready in {START_S:.0f} s")

    async def _ready(self, admin: Client) -> bool:
        reply = await admin.get("/admin/v1/replicas")
        return reply.body.lower().count(b'"ready"') >= self._replicas

    async def stop(self) -> None:
        await self.child.stop()


def read_metrics(page: str) -> dict[str, float]:
    """Prometheus text -> sums by name; enough for counting, labels are ignored."""
    sums: dict[str, float] = {}
    for line in page.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums
