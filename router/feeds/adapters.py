"""Loads and unloads LoRA adapters through the engines' own endpoints (vLLM's).

Owns the calls and who waits for them; what is where, and who gives way, `router.adapters` knows.
One load at a time per engine: it would serialise them anyhow, and each looks for room first. Many
requests for one adapter wait for one call. A load that nobody waits for any more still ends: the
next request will want it. Only adapters of the config's sources are ever loaded or unloaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import aiohttp
import msgspec

from warmlane.router.adapters_books import EVERYTHING
from warmlane.router.catalog import no_such_model
from warmlane.router.errors import NoReplica, RouterError
from warmlane.router.feeds.client import EngineError, fetch
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool, Replica

log = logging.getLogger("warmlane.adapters")

LOAD: Final = "/v1/load_lora_adapter"
UNLOAD: Final = "/v1/unload_lora_adapter"
NOT_FOUND: Final = "not_found"
_MOST_PENDING: Final = 64  # loads that wait for one engine
_LOOK_S: Final = 0.25  # between two looks for room: what others use is told by scrapes
_MAX_BYTES: Final = 65_536

# "" when the adapter is there, else why not: a word for the metric.
Result = asyncio.Future[str]
Placing = asyncio.Task[int]
Pair = tuple[str, str, str]  # pool, URL, adapter


class AdapterFeed:
    """Loads of one router. `session` and `headers` are the feeds' own."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.session: aiohttp.ClientSession | None = None
        self.headers: dict[str, dict[str, str]] = {}
        self._metrics = metrics
        self._clock = clock
        self._loads: dict[Pair, asyncio.Task[str]] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._room: dict[tuple[str, int], asyncio.Event] = {}

    def watch(self, pool: Pool) -> None:
        """A pool that is new."""
        pool.adapters.on_idle = partial(self._idle, pool.name)
        pool.on_change(partial(self._changed, pool))

    async def close(self) -> None:
        """End all loads; may be called twice."""
        tasks = list(self._loads.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def needed(self, pool: Pool, slot: int, adapter: str) -> Result | None:
        """What to wait for before a request for `adapter` goes to `slot`; None: nothing.

        The result is "" once the adapter is there, or why it is not. To be awaited under `shield`:
        others may wait for the same.
        """
        table, replica = pool.adapters, pool.replicas[slot]
        if replica is None or table.has(slot, adapter) or not table.can_load(slot, adapter):
            return None
        return self._start(pool, replica, adapter, "demand")

    def placing(self, pool: Pool, choices: Sequence[int], adapter: str) -> Placing | None:
        """For a face that names a replica and does not try one after the other.

        None: the first choice has it. Else what ends with the slot of the first that has it or
        came to have it, -1 when none did; to be cancelled when nobody waits for it.
        """
        if self.needed(pool, choices[0], adapter) is None:
            return None
        job = self._place(pool, choices, adapter)
        return asyncio.get_running_loop().create_task(job, name=f"place {adapter}")

    async def _place(self, pool: Pool, choices: Sequence[int], adapter: str) -> int:
        for slot in choices:
            wait = self.needed(pool, slot, adapter)
            if wait is not None:
                await asyncio.shield(wait)
            if pool.adapters.has(slot, adapter):
                return slot
        return -1

    def _start(self, pool: Pool, replica: Replica, adapter: str, why: str) -> Result:
        loop = asyncio.get_running_loop()
        pair = (pool.name, replica.spec.url, adapter)
        known = self._loads.get(pair)
        if known is not None:
            return known
        if sum(each[:2] == pair[:2] for each in self._loads) >= _MOST_PENDING:
            self._metrics.limit_reached("adapter_loads")
            refused: Result = loop.create_future()
            refused.set_result("busy")
            return refused
        task = loop.create_task(
            self._load(pool, replica, adapter, why), name=f"load {adapter} on {replica.name}"
        )
        self._loads[pair] = task
        task.add_done_callback(lambda _: self._loads.pop(pair, None))
        return task

    async def _load(self, pool: Pool, replica: Replica, adapter: str, why: str) -> str:
        """Load it, after room was made. Never raises: the result says what happened."""
        table, slot, began = pool.adapters, replica.slot, self._clock()
        result, text = "timeout", f"not loaded in {table.config.load_s:g} s"
        lock = self._locks.setdefault((pool.name, replica.spec.url), asyncio.Lock())
        try:
            async with asyncio.timeout(table.config.load_s), lock:
                if await self._make_room(pool, replica, adapter):
                    result, text = await self._call(pool, replica, adapter)
                else:
                    result, text = "gone", "the replica left the pool"
        except TimeoutError:
            table.failed(slot, adapter, self._clock())
        except EngineError as error:
            table.failed(slot, adapter, self._clock())
            result, text = "failed", str(error)
        except Exception as error:
            table.failed(slot, adapter, self._clock())
            log.exception("event=adapter_bug pool=%s adapter=%s", pool.name, adapter)
            result, text = "failed", type(error).__name__
        word = result or ("restored" if why == "restart" else "loaded")
        self._metrics.count("warmlane_adapter_loads_total", pool.name, replica.name, word)
        if result:
            log.warning(
                'event=adapter_load_failed pool=%s replica=%s adapter=%s result=%s why="%s"',
                *(pool.name, replica.name, adapter, result, text),
            )
        else:
            log.info(
                "event=adapter_loaded pool=%s replica=%s adapter=%s for=%s seconds=%.3f",
                *(pool.name, replica.name, adapter, why, self._clock() - began),
            )
        return result

    async def _make_room(self, pool: Pool, replica: Replica, adapter: str) -> bool:
        """Unload who is missed least until one more fits; waits while all are in use.

        False: the replica is gone. EngineError: the engine does not let one go.
        """
        table, slot = pool.adapters, replica.slot
        while pool.replicas[slot] is replica:
            if table.has(slot, adapter) or not table.full(slot):
                return True
            victim = table.victim(slot, self._clock())
            if victim is not None:
                await self._unload(pool, replica, victim)
                continue
            room = self._room.setdefault((pool.name, slot), asyncio.Event())
            room.clear()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await room.wait()
            except TimeoutError:
                continue
        return False

    async def _call(self, pool: Pool, replica: Replica, adapter: str) -> tuple[str, str]:
        """(result, why) of the engine's answer."""
        table, slot = pool.adapters, replica.slot
        if table.has(slot, adapter):
            return "", ""
        began = self._clock()
        table.loading(slot, adapter, began)
        body = {"lora_name": adapter, "lora_path": table.source(adapter)}
        status, answer = await self._post(pool, replica, LOAD, body)
        now = self._clock()
        if pool.replicas[slot] is not replica:
            return "gone", "the replica left the pool"
        if status == 200:
            self._metrics.count(
                "warmlane_adapter_load_milliseconds_total",
                *(pool.name, replica.name),
                n=round(1e3 * (now - began)),
            )
            table.loaded(slot, adapter, now - began)
            return "", ""
        if status == 400 and b"already" in answer:  # by somebody else; not idempotent there
            table.loaded(slot, adapter, None)
            return "", ""
        result, refused = _refusal(status, answer, adapter)
        table.failed(slot, adapter, now, refused, found=result != NOT_FOUND)
        return result, f"status {status}"

    async def _unload(self, pool: Pool, replica: Replica, adapter: str) -> None:
        status, _ = await self._post(pool, replica, UNLOAD, {"lora_name": adapter})
        gone = status in (200, 404)
        result = "unloaded" if gone else "failed"
        self._metrics.count("warmlane_adapter_unloads_total", pool.name, replica.name, result)
        if not gone:
            raise EngineError(f"{adapter} is not unloaded: status {status}", status)
        pool.adapters.unloaded(replica.slot, adapter)
        log.info(
            "event=adapter_unloaded pool=%s replica=%s adapter=%s",
            *(pool.name, replica.name, adapter),
        )

    async def _post(
        self, pool: Pool, replica: Replica, path: str, body: dict[str, str]
    ) -> tuple[int, bytes]:
        assert self.session is not None, "started"
        return await fetch(
            self.session,
            replica.spec.url + path,
            headers=self.headers.get(pool.name, {}),
            timeout_s=pool.adapters.config.load_s,
            max_bytes=_MAX_BYTES,
            data=msgspec.json.encode(body),
        )

    def _idle(self, pool: str, slot: int) -> None:
        room = self._room.get((pool, slot))
        if room is not None:
            room.set()

    def _changed(self, pool: Pool, event: str, replica: Replica) -> None:
        """A restarted engine lists nothing of what was loaded there: load it again."""
        if event == "removed":
            self._room.pop((pool.name, replica.slot), None)
            if not any(each.spec.url == replica.spec.url for each in pool):
                self._locks.pop((pool.name, replica.spec.url), None)
        elif event == "models" and self.session is not None:
            for adapter in pool.adapters.lost(replica):
                self._start(pool, replica, adapter, "restart")


def not_loaded(pool: Pool, adapter: str, name: str) -> RouterError:
    """What the client hears when no choice could load the adapter that `name` stands for."""
    if adapter and pool.adapters.nowhere(adapter):
        return no_such_model(name)
    return NoReplica("No engine could load this model now.", retry_after_s=1.0)


def _refusal(status: int, answer: bytes, adapter: str) -> tuple[str, str]:
    """(result, what the engine will not load). vLLM: 404 with an error object, the path holds no
    adapter; 404 without, loading at run time is switched off; other errors are the adapter's."""
    if status == 404 and b'"error"' in answer and b"adapter" in answer:
        return NOT_FOUND, adapter
    if status in (401, 403, 404, 405, 501):
        return "disabled", EVERYTHING
    return "failed", adapter
