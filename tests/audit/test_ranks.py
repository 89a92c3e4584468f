"""Data-parallel ranks behind one port: audit and doctor hear each by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.common import until
from tests.core.event_captures import payload, steps
from tests.router.feeds.engine import Engine, recorded
from tests.router.feeds.test_kv_ranks import Ranks
from warmlane.router.audit_listen import Listener
from warmlane.router.config_load import normal_spec
from warmlane.router.feeds.client import open_session
from warmlane.router.types import ReplicaSpec


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.close()


async def test_the_audit_hears_each_rank(ranks: Ranks) -> None:
    async with Engine() as engine:
        engine.metrics = recorded("vllm-0.32.0-dp2")
        engine.event_sources = ranks.sources()
        session = open_session(4.0)
        spec = normal_spec(ReplicaSpec(url=engine.url, name="dp"))
        listener = Listener([(spec, "auto")], session, {}, 5.0)
        try:
            await listener.start(0.2)
            await until(lambda: [ear.replica.name for ear in listener.ears] == ["dp#0", "dp#1"])
            await ranks.joined()
            await listener.scrape()
            assert [ear.counters is not None for ear in listener.ears] == [True, True]
            for step in steps("0.32.0-dp2"):
                for batch in step["batches"]:
                    ranks.send(batch["rank"], payload(batch))
            await until(
                lambda: all(ear.batches == ranks.sent[at] for at, ear in enumerate(listener.ears))
            )
            blocks = [listener.view.tree.replica_blocks(ear.slot) for ear in listener.ears]
            assert min(blocks) > 0
            listener.join()
            assert all(mark.joined for mark in listener.marks())
        finally:
            await listener.close()
            await session.close()
