"""Two zones, real processes: traffic keeps to its zone, and a zone that dies costs no request.

The fake engines of a zone share a process, so that one SIGKILL takes the whole of it.
Routers are `warmlane serve`, one a zone, before all four; they do not hear each other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from warmlane.router.sim.client import Client, Reply
from warmlane.router.sim.demo_fleet import Replicas, RouterProcess
from warmlane.router.sim.player import Play, play, read_stream
from warmlane.router.sim.traces import Workload
from warmlane.router.sim.workload import cut, generate

ZONES = ("a", "b")
HANG_S = 60.0  # longer than any request here takes, even on a busy machine


class World(NamedTuple):
    """Replicas two by two in a zone, and a router in each."""

    fleet: Replicas
    routers: dict[str, RouterProcess]

    def kill(self, zone: str) -> None:
        self.fleet.children[ZONES.index(zone)].kill()


@asynccontextmanager
async def world(
    folder: Path, per_zone: int, *options: str, told: bool = True
) -> AsyncIterator[World]:
    fleet = Replicas(per_zone * len(ZONES), options, per_process=per_zone)
    routers: dict[str, RouterProcess] = {}
    try:
        await fleet.start()
        replicas = [
            {"url": url, "zone": ZONES[number // per_zone] if told else ""}
            for number, url in enumerate(fleet.urls)
        ]
        file = folder / "zones.json"
        file.write_text(json.dumps({"pools": [{"replicas": replicas}]}))
        for zone in ZONES:
            words = ["--config", str(file), "--zone", zone]
            routers[zone] = RouterProcess((), "default", options=words)
            await routers[zone].start()
            await ready(routers[zone], len(replicas))
        yield World(fleet, routers)
    finally:
        for router in routers.values():
            await router.stop()
        await fleet.stop()


async def ready(router: RouterProcess, count: int) -> None:
    client = Client(router.admin_url)
    async with asyncio.timeout(30):
        found = 0
        while found < count:
            await asyncio.sleep(0.05)
            found = (await client.get("/admin/v1/replicas")).body.lower().count(b'"ready"')
    await client.close()


async def counted(router: RouterProcess, family: str) -> dict[tuple[str, ...], float]:
    """Values of a counter by its labels but the pool, in order of their names."""
    client = Client(router.admin_url)
    page = (await client.get("/metrics")).body.decode()
    await client.close()
    return {
        tuple(value for label, value in sorted(sample.labels.items()) if label != "pool"): (
            sample.value
        )
        for each in text_string_to_metric_families(page)
        for sample in each.samples
        if sample.name == family
    }


async def test_at_equal_load_requests_stay_in_their_zone(tmp_path: Path) -> None:
    """Agent sessions with a shared prompt, as many in each zone, through its own router."""
    made = cut(generate("agent", 48, seed=2), turns=8)
    how = Play(model="fake", speed=4, shrink=8, output_shrink=4, rate=24, think_cap_s=1.5)
    options = ["--speed", "4", "--scale", "8", "--tick-ms", "2"]
    async with world(tmp_path, 2, *options) as running:
        halves = [
            msgspec.structs.replace(made, sessions=made.sessions[number :: len(ZONES)])
            for number in range(len(ZONES))
        ]
        results = await asyncio.gather(
            *(
                play(half, router.url, how)
                for half, router in zip(halves, running.routers.values(), strict=True)
            )
        )
        assert [result.error for each in results for result in each if result.error] == []
        stayed = told = tokens = 0.0
        for zone, router in running.routers.items():
            found = await counted(router, "warmlane_zone_requests_total")
            assert {key[-1] for key in found} == {zone}  # in_zone, replica's, router's
            stayed += found.get(("yes", zone, zone), 0.0)
            told += sum(found.values())
            tokens += sum((await counted(router, "warmlane_zone_prompt_tokens_total")).values())
    assert told == made.requests
    assert tokens == sum(result.prompt for each in results for result in each)
    print(f"{stayed:.0f} of {told:.0f} requests stayed in their zone")
    assert stayed >= 0.95 * told


class Asked(NamedTuple):
    """One request of the traffic. sent_at, of the loop's clock."""

    stream: bool
    sent_at: float
    reply: Reply


async def ask(client: Client, number: int, prompt_words: int, tokens: int) -> Asked:
    """ConnectionError or TimeoutError: no whole answer came."""
    body: dict[str, Any] = {
        "model": "fake",
        "prompt": f"{number % 5} " + "warm " * prompt_words + f"{number}",
        "max_tokens": tokens,
        "stream": bool(number % 2),
    }
    sent_at = asyncio.get_running_loop().time()
    return Asked(body["stream"], sent_at, await client.post("/v1/completions", body))


def text_of(asked: Asked) -> str:
    """The answer's text up to its end or its break."""
    events = [each[6:] for each in asked.reply.body.split(b"\n\n") if each.startswith(b"data: {")]
    choices = [choice for each in events for choice in json.loads(each).get("choices", ())]
    return "".join(choice["text"] for choice in choices)


def whole(asked: Asked) -> bool:
    if asked.stream:
        return not read_stream(asked.reply)[2]
    return bool(asked.reply.json()["choices"][0]["text"])


# Of six all five choices of a decision are there. Untold: the router knows of no zones.
@pytest.mark.parametrize(("per_zone", "told"), [(2, True), (6, True), (6, False)])
async def test_a_zone_that_dies_fails_no_request_that_has_no_byte_yet(
    tmp_path: Path, per_zone: int, told: bool
) -> None:
    """SIGKILL of all engines of a zone, with requests in line, in prefill and in decoding there.

    Every answer is a 200 and comes to an end. Incomplete may be a stream alone that was sent before
    and had some of its text: what has no byte yet is served by the other zone.
    """
    async with world(tmp_path, per_zone, "--speed", "1", told=told) as running:
        client = Client(running.routers["a"].url, timeout_s=HANG_S)
        # Long prompts first: at the kill they are in line or in prefill; then what decodes.
        tasks = [asyncio.ensure_future(ask(client, n, 40, 120)) for n in range(8)]
        await asyncio.sleep(0.4)
        tasks += [asyncio.ensure_future(ask(client, n, 9000, 4)) for n in range(8, 24)]
        await asyncio.sleep(0.15)
        busy = await counted(running.routers["a"], "warmlane_replica_inflight_requests")
        dead = {url.removeprefix("http://") for url in running.fleet.urls[:per_zone]}
        under_way = sum(value for (replica,), value in busy.items() if replica in dead)
        killed_at = asyncio.get_running_loop().time()
        running.kill("a")
        for number in range(24, 84):
            tasks.append(asyncio.ensure_future(ask(client, number, 200, 2)))
            await asyncio.sleep(0.02)
        answers = await asyncio.gather(*tasks)
        retries = await counted(running.routers["a"], "warmlane_retries_total")
        await client.close()
    assert under_way >= 4, "the zone had next to nothing to do: this would prove nothing"
    assert sum(retries.values()) >= 1
    for asked in answers:
        assert asked.reply.status == 200, asked.reply.body
    broken = [asked for asked in answers if not whole(asked)]
    for asked in broken:
        assert asked.stream and asked.sent_at < killed_at
        assert text_of(asked), "it had no byte yet"
    print(f"{under_way:.0f} under way at the kill, {len(broken)} had begun, {retries} retried")


def test_the_halves_are_of_one_kind() -> None:
    """The proof above stands on equal load: both halves bring about as much."""

    def prompt(half: Workload) -> int:
        return sum(turn.prompt for session in half.sessions for turn in session.turns)

    made = cut(generate("agent", 48, seed=2), turns=8)
    one, other = (
        msgspec.structs.replace(made, sessions=made.sessions[number::2]) for number in range(2)
    )
    assert 0.8 < prompt(one) / prompt(other) < 1.25
