"""The released selection service of ai-dynamo-runtime, told what to do by JSON lines on stdin.

Runs in the peer's own venv. Each line is a list, each answer one JSON line:
["worker", number, event endpoint]; ["stored", number, tokens, blocks]: wait until its index knows
that the worker holds that many blocks; ["reserve", name, tokens] -> worker; ["prefilled", name];
["free", name]; ["time", tokens, rounds] -> median seconds of a select; ["version"].
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("DYN_LOG", "error")

from dynamo._core import SelectionService

MODEL = {"model_name": "m"}
WAIT_S = 5.0


async def stored(service: Any, number: int, tokens: list[int], blocks: int) -> bool:
    """Whether the index knows of the blocks within WAIT_S."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        told = await service.overlap_scores(MODEL | {"token_ids": tokens})
        found = {each["worker_id"]: each["device_blocks"] for each in told["workers"]}
        if found.get(number, 0) >= blocks:
            return True
        await asyncio.sleep(0.002)
    return False


async def timed(service: Any, tokens: list[int], rounds: int) -> float:
    """Median wall time of a select of a token list."""
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        await service.select(MODEL | {"token_ids": tokens})
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


async def answer(service: Any, what: str, *given: Any) -> Any:
    if what == "worker":
        number, endpoint = given
        worker = {"worker_id": number, "endpoint": f"http://127.0.0.1:{9 + number}"}
        sizes = {"block_size": 16, "max_num_batched_tokens": 8192, "total_kv_blocks": 1 << 20}
        told = await service.upsert_worker(
            MODEL | worker | sizes | {"kv_events_endpoint": endpoint}
        )
        return told["lifecycle"]
    if what == "stored":
        return await stored(service, *given)
    if what == "reserve":
        name, tokens = given
        told = await service.select_and_reserve(MODEL | {"selection_id": name, "token_ids": tokens})
        return told["worker_id"]
    if what == "prefilled":
        return await service.prefill_complete(given[0])
    if what == "free":
        return await service.free_reservation(given[0])
    if what == "time":
        return await timed(service, *given)
    return importlib.metadata.version("ai-dynamo-runtime")


async def main() -> None:
    service = SelectionService()
    try:
        for line in sys.stdin:
            print(json.dumps(await answer(service, *json.loads(line))), flush=True)
    finally:
        service.shutdown()


asyncio.run(main())
