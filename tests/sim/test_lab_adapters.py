"""The lab with adapters: honest books, the same requests for all, and the order that is claimed."""

from __future__ import annotations

import pytest

from warmlane.router.sim.lab_adapters import (
    RIVALS,
    AdapterLab,
    AdapterRun,
    AdapterWorkload,
    _step,
    demand,
)
from warmlane.router.types import LoadSnapshot

SMALL = AdapterWorkload(adapters=30, replicas=3, slots=3, rate=8.0, seconds=60.0)


def run(rival: str, load: AdapterWorkload = SMALL) -> AdapterRun:
    return AdapterLab(rival, load).run()


@pytest.mark.parametrize("rival", RIVALS)
def test_every_request_is_answered_and_every_load_has_a_cause(rival: str) -> None:
    lab = AdapterLab(rival, SMALL)
    found = lab.run()
    assert found.requests == len(demand(SMALL)) == len(found.ttft_s)
    assert min(found.ttft_s) > 0
    assert found.loads <= found.requests - found.met
    resident = [set(each.models.adapters) for each in lab.pool if each.models is not None]
    assert all(len(names) <= SMALL.slots for names in resident)
    assert found.loads - found.unloads == sum(map(len, resident))
    assert lab.router.open_tickets == 0


def test_the_same_arguments_give_the_same_run() -> None:
    assert run("warmlane") == run("warmlane")


def test_popularity_is_zipfs() -> None:
    load = AdapterWorkload(seconds=2000.0)
    counts = [0] * load.adapters
    for live in demand(load):
        counts[live.adapter] += 1
    counts.sort(reverse=True)
    assert sum(counts) == pytest.approx(load.rate * load.seconds, rel=0.02)
    harmonic = sum(1 / rank for rank in range(1, load.adapters + 1))
    assert counts[0] / sum(counts) == pytest.approx(1 / harmonic, rel=0.05)


def test_the_price_hits_more_than_chance_and_waits_less_than_either_affinity() -> None:
    load = AdapterWorkload(seconds=90.0)  # 100 adapters, 8 replicas, 4 slots each
    ours = run("warmlane", load)
    assert ours.hit > run("random", load).hit + 0.1
    mean = sum(ours.ttft_s)
    assert mean < sum(run("llmd-lora", load).ttft_s)
    assert mean < sum(run("rendezvous", load).ttft_s)


def test_llmds_steps() -> None:
    def seen(running: str, waiting: str, most: int) -> LoadSnapshot:
        return LoadSnapshot(
            taken_at=0.0,
            running_adapters=frozenset(running),
            waiting_adapters=frozenset(waiting),
            max_lora=most,
        )

    assert _step(seen("a", "", 1), "a") == 1.0
    assert _step(seen("b", "", 2), "a") == 0.8
    assert _step(seen("b", "a", 2), "a") == 0.6
    assert _step(seen("b", "c", 2), "a") == 0.0
    assert _step(None, "a") == 0.0
