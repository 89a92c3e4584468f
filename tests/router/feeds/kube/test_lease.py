"""Leader election: never two at once, whatever the API server does; a successor when one goes."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.common import until
from tests.kube_api.server import LEASES, KubeServer, Refusal
from tests.router.feeds.kube.rig import PlainAccess
from warmlane.router.config import Leader
from warmlane.router.feeds.kube_api import KubeApi
from warmlane.router.feeds.kube_lease import Lease
from warmlane.router.metrics import Metrics

CONFIG = Leader(lease="picker", lease_s=15.0, renew_s=10.0, retry_s=2.0)


class Clock:
    """Seconds that a test moves on."""

    now = 50.0


class Candidate:
    """One elector with its own clock offset, stepped by hand."""

    def __init__(self, server: KubeServer, name: str, clock: Clock, offset: float = 0.0) -> None:
        config = Leader(lease="picker", identity=name)
        self.access = PlainAccess(server.url)
        self.metrics = Metrics()
        self.lease = Lease(config, self.access, self.metrics, lambda: clock.now + offset)

    async def step(self) -> bool:
        async with KubeApi(self.access) as api:
            await self.lease.step(api)
        return self.lease.leading


def holder(server: KubeServer) -> str:
    found = server.store.collections[LEASES].objects["default", "picker"]
    return str(found["spec"]["holderIdentity"])


async def test_the_first_leads_and_the_second_takes_over_when_it_is_gone() -> None:
    clock = Clock()
    async with KubeServer() as server:
        one = Candidate(server, "one", clock)
        two = Candidate(server, "two", clock, offset=1e6)  # clocks need not agree
        assert await one.step() and not await two.step()
        for _ in range(10):
            clock.now += 2.0
            assert await one.step() and not await two.step()
        clock.now += 9.9
        assert one.lease.leading  # without a renewal
        clock.now += 0.2
        assert not one.lease.leading and not await two.step()  # nobody leads for a while
        clock.now += 5.0
        assert await two.step() and holder(server) == "two"
        assert not await one.step()
        spec = server.store.collections[LEASES].objects["default", "picker"]["spec"]
        assert (spec["leaseTransitions"], spec["leaseDurationSeconds"]) == (2, 15)
        assert one.metrics.gauges["warmlane_leader"] == {(): 0}
        assert two.metrics.counts["warmlane_leader_changes_total"] == {(): 1}


async def test_a_released_lease_is_taken_at_once() -> None:
    clock = Clock()
    async with KubeServer() as server:
        one, two = Candidate(server, "one", clock), Candidate(server, "two", clock)
        assert await one.step() and not await two.step()
        await one.lease.release()
        assert not one.lease.leading and holder(server) == ""
        assert await two.step()
        await one.lease.release()  # it is not ours: it stays with the other
        assert holder(server) == "two"


async def test_a_restarted_process_of_the_same_name_goes_on() -> None:
    clock = Clock()
    async with KubeServer() as server:
        assert await Candidate(server, "one", clock).step()
        assert await Candidate(server, "one", clock).step()


async def test_of_two_at_the_same_moment_one_loses() -> None:
    clock = Clock()
    async with KubeServer() as server:
        one, two = Candidate(server, "one", clock), Candidate(server, "two", clock)
        led = await asyncio.gather(one.step(), two.step())
        assert sum(led) == 1


async def test_an_api_that_is_away_ends_the_term() -> None:
    clock = Clock()
    async with KubeServer() as server:
        one = Candidate(server, "one", clock)
        assert await one.step()
        down = Refusal(503, "ServiceUnavailable", {})
        server.refuse = lambda _: down
        clock.now += 9.0
        assert await one.step()
        clock.now += 1.0
        assert not await one.step()
        server.refuse = None
        assert await one.step()


@pytest.mark.parametrize("seed", range(8))
async def test_never_two_leaders(seed: int) -> None:
    """Random steps, stalls, faults and foreign writes; the clocks run alike, not equal."""
    chance, clock = random.Random(seed), Clock()
    async with KubeServer() as server:
        candidates = [Candidate(server, f"c{n}", clock, n * 1000.0) for n in range(3)]
        led: set[str] = set()
        for _ in range(150):
            clock.now += chance.choice((0.0, 0.5, 2.0, 2.0, 6.0))
            if chance.random() < 0.2:
                refusal = Refusal(chance.choice((409, 500, 503, 401, 429)), "Broken", {})
                server.refusals = [refusal] * chance.randint(1, 3)
            if chance.random() < 0.1 and server.store.collections[LEASES].objects:
                server.store.change(LEASES, "picker", metadata={"labels": {"touched": "yes"}})
            if chance.random() < 0.1:
                await chance.choice(candidates).lease.release()
            together = chance.sample(candidates, chance.randint(1, 3))
            await asyncio.gather(*(each.step() for each in together))
            leaders = [each.lease.identity for each in candidates if each.lease.leading]
            assert len(leaders) <= 1, f"seed {seed}: {leaders}"
            led.update(leaders)
        assert len(led) > 1  # it did change hands


async def test_run_and_close() -> None:
    loop = asyncio.get_running_loop()
    async with KubeServer() as server:
        config = Leader(lease="picker", identity="x", retry_s=0.01, renew_s=5.0, lease_s=6.0)
        lease = Lease(config, PlainAccess(server.url), Metrics(), loop.time)
        task = asyncio.create_task(lease.run())
        await until(lambda: lease.leading)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await lease.release()
        assert holder(server) == ""
        lease._until = float("inf")
        server.refuse = lambda _: Refusal(500, "Broken", {})
        await lease.release()  # an API that is away does not hold up the end
        assert not lease.leading
