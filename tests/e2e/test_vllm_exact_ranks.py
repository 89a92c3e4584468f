"""One real engine with two data-parallel ranks behind one port: taken apart, each rank exact.

Its publishers name a host, so they connect and the router binds: the other way round than in
`test_vllm_exact`. `--kv-events auto` finds both out.
"""

from __future__ import annotations

from collections import Counter

import pytest

from .vllm.engines import DETAILS, MODEL, Engine, event_flags, kept_port, make_model
from .vllm.fleet import ADAPTERS, BLOCKS, interpreter, until
from .vllm.router import Router
from .vllm.talks import Asker, talks

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

RANKS = ("--data-parallel-size", "2", "--api-server-count", "1")


def test_each_rank_is_exact() -> None:
    python = interpreter()
    models = make_model(python)
    ports = kept_port(), kept_port()
    endpoints = [f"tcp://127.0.0.1:{port}" for port in ports]
    flags = [DETAILS, *RANKS, *event_flags(*endpoints)]
    engine = Engine(python, models, 0, ADAPTERS, BLOCKS, flags)
    engine.name = "ranks"
    engine.log = engine.log.with_name("ranks.log")
    pool = {"name": "default", "kv_events": "auto", "tokenizer": str(models / MODEL)}
    settings = {
        "tokens": {"prefill_tokens_per_s": 150.0},
        "pools": [{**pool, "replicas": [{"url": engine.url}]}],
    }
    try:
        engine.start()
        engine.wait_ready()
        router = Router([], "default", settings)
        try:
            until(lambda: router.total("warmlane_replica_ready") == 2, "two ranks are ready", 60)
            until(lambda: router.total("warmlane_replica_exact") == 2, "both are trusted")
            asker = Asker(router.url)

            def exact() -> bool:
                asker.play("warm", talks(1, 80), 1, 1)
                return asker.asked[-1].view == "exact"

            until(exact, "the tokenizer is proven")
            rows = asker.play("ranks", talks(12, 81), 3, 1)
        finally:
            router.stop()
    finally:
        engine.kill()
    exactly = [row for row in rows if row.view == "exact"]
    names = Counter(row.replica for row in rows)
    wrong = [row for row in exactly if row.cached is None or abs(row.error) > 32]
    print(f"\nranks: {dict(names)}, {len(exactly)} of {len(rows)} exact, {len(wrong)} wrong")
    assert set(names) == {f"127.0.0.1:{engine.port}#0", f"127.0.0.1:{engine.port}#1"}
    assert len(exactly) >= len(rows) / 2
    assert sum(row.cached or 0 for row in exactly) > 0
    assert wrong == []
