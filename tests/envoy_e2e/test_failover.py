"""What is lost when a replica or the picker goes: with a real Envoy, and as little as it can be.

What is Envoy's doing alone is shown on one transport, the one that `auto` takes.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from . import config
from .backend import Backend
from .client import Answer, Ask, Http1
from .config import Tree
from .stage import Stage, chat, stage

HEALTH = {"interval": "0.2s", "no_traffic_interval": "0.2s", "unhealthy_interval": "0.2s"}


def quick_health(tree: Tree, backends: list[Backend]) -> None:
    """Health checks ten times as often as in the file: the tests wait for them."""
    del backends
    for each in tree["static_resources"]["clusters"]:
        if "health_checks" in each:
            each["health_checks"][0].update(HEALTH)
        if "outlier_detection" in each:
            each["outlier_detection"] |= {"base_ejection_time": "1s", "max_ejection_time": "1s"}


def served(answers: list[Answer]) -> set[int]:
    return {int(answer.headers["x-replica"]) for answer in answers if answer.status == 200}


async def some(stage: Stage, count: int) -> list[Answer]:
    """One after the other, each on a connection of its own."""
    return [await stage.ask(Ask(chat(f"number {n} " * 50))) for n in range(count)]


async def test_the_second_choice_serves(tmp_path: Path, transport: str) -> None:
    """A replica that died a moment ago: Envoy walks the picker's list, and tells who served."""
    options = ("--transport", transport, "--endpoints", "ordered", "--policy", "round-robin")
    make = stage(tmp_path, name=config.OVERRIDE_HOST, pickers={"picker": options}, replicas=3)
    async with make as made:
        answers = await some(made, 6)
        assert served(answers) == {backend.port for backend in made.backends}
        dead, *rest = made.backends
        await dead.stop()
        answers = await some(made, 6)
        assert [answer.status for answer in answers] == [200] * 6
        assert served(answers) == {backend.port for backend in rest}
        moved = await made.picker.total("warmlane_ext_proc_served_elsewhere_total")
        assert moved >= 1


async def test_one_address_has_no_second(tmp_path: Path) -> None:
    """ORIGINAL_DST reads one address: a replica that just died is the client's error."""
    options = ("--policy", "round-robin")
    async with stage(tmp_path, pickers={"picker": options}) as made:
        await some(made, 2)
        await made.backends[0].stop()
        statuses = [answer.status for answer in await some(made, 4)]
        assert 503 in statuses and 200 in statuses


async def test_what_clients_could_not_reach_is_soon_out(tmp_path: Path, transport: str) -> None:
    """Nobody probes for ten minutes, unless a client got a 503."""
    settings = tmp_path / "settings.yaml"
    settings.write_text("probe: {interval_s: 600}\n")
    options = ("--policy", "round-robin", "--transport", transport, "--config", str(settings))
    async with stage(tmp_path, pickers={"picker": options}) as made:
        await some(made, 2)
        await made.backends[0].stop()
        ends = time.monotonic() + 20
        while {answer.status for answer in await some(made, 4)} != {200}:
            assert time.monotonic() < ends, "still sent there"
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("name", "mode", "lost"),
    [
        (config.ORIGINAL_DST, "FULL_DUPLEX_STREAMED", 20),
        (config.OVERRIDE_HOST, "FULL_DUPLEX_STREAMED", 2),
        (config.OVERRIDE_HOST, "BUFFERED", 0),
    ],
)
async def test_a_picker_is_killed_and_comes_back(
    tmp_path: Path, name: str, mode: str, lost: int
) -> None:
    """Closed: 500 until it is back. Open: those that find out fail, where the body is given away.

    Two: one on the connection that broke, one that cannot make a new one.
    """

    def edit(tree: Tree, backends: list[Backend]) -> None:
        quick_health(tree, backends)
        config.set_modes(config.listener(tree), request_body_mode=mode)

    async with stage(tmp_path, name=name, pickers={"picker": ()}, edit=edit) as made:
        assert {answer.status for answer in await some(made, 4)} == {200}
        await made.picker.kill()
        answers = await some(made, 20)
        statuses = [answer.status for answer in answers]
        if name == config.ORIGINAL_DST:
            assert statuses == [500] * lost
        else:
            assert statuses[lost:] == [200] * (20 - lost)
            assert served(answers) == {backend.port for backend in made.backends}
        await made.picker.start()
        before = await made.picker.total("warmlane_requests_total")
        deadline = time.monotonic() + 20
        while await made.picker.total("warmlane_requests_total") < before + 5:
            assert time.monotonic() < deadline, await made.envoy.admin("/clusters")
            await some(made, 1)
            await asyncio.sleep(0.05)
        assert {answer.status for answer in await some(made, 6)} == {200}


# What Envoy 1.40 does with an answer under way when the picker is killed: it goes on where the
# picker has left already (level 0), or in open mode where Envoy still has the request by itself and
# sees no body of the answer (level 1, not full duplex). Else it is cut.
CUTS = [
    (config.ORIGINAL_DST, "FULL_DUPLEX_STREAMED", 0, False),
    (config.ORIGINAL_DST, "BUFFERED", 1, True),
    (config.OVERRIDE_HOST, "FULL_DUPLEX_STREAMED", 1, True),
    (config.OVERRIDE_HOST, "BUFFERED", 1, False),
    (config.OVERRIDE_HOST, "BUFFERED", 2, True),
]


@pytest.mark.parametrize(("name", "mode", "level", "cut"), CUTS)
async def test_answers_under_way_when_the_picker_is_killed(
    tmp_path: Path, name: str, mode: str, level: int, cut: bool
) -> None:
    def modes(tree: Tree, backends: list[Backend]) -> None:
        del backends
        levelled = config.response_level(level)
        config.set_modes(config.listener(tree), request_body_mode=mode, **levelled)

    options = {"picker": ("--response-level", str(level))}
    async with stage(tmp_path, name=name, pickers=options, edit=modes, stays=False) as made:
        peer = await made.connect()
        assert isinstance(peer, Http1)
        await peer.send(Ask(chat(stream=True), headers={"x-answer": "gate:2"}))
        await peer.read(until=b"w1")
        await made.picker.kill()
        if cut:
            await peer.read()  # at once, not at its next event
        made.gate(opened=True)
        answer = await peer.read()
        peer.close()
    assert answer.status == 200
    assert answer.error == ("closed" if cut else "")
    assert answer.body.endswith(b"data: [DONE]\n\n") is not cut


def two_pickers(tree: Tree, backends: list[Backend]) -> None:
    """Both pickers in one cluster, as the pods of one Service."""
    quick_health(tree, backends)
    first, second = config.cluster(tree, "one"), config.cluster(tree, "two")
    ends = first["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ends += second["load_assignment"]["endpoints"][0]["lb_endpoints"]


async def test_a_drain_fails_no_request(tmp_path: Path, transport: str) -> None:
    """SIGTERM to one of two pickers under load: streams under way end well, new ones go over."""
    drain = ("--transport", transport, "--drain-delay-s", "1", "--drain-s", "10")
    make = stage(tmp_path, pickers={"one": drain, "two": drain}, edit=two_pickers, stays=False)
    async with make as made:
        one, two = made.pickers["one"], made.pickers["two"]
        stop = asyncio.Event()

        async def load(number: int) -> list[Answer]:
            """Short requests and streams that are longer than the delay, till the end."""
            answers = []
            while not stop.is_set():
                how = "sse:30:50" if number % 2 else "json"
                ask = Ask(
                    chat(f"{number} " * 20, stream=bool(number % 2)), headers={"x-answer": how}
                )
                answers.append(await made.ask(ask, ("http1", "http2")[number // 2 % 2]))
            return answers

        clients = [asyncio.ensure_future(load(number)) for number in range(8)]
        await asyncio.sleep(0.5)
        one.terminate()
        assert await one.ended() == 0
        seen = await two.total("warmlane_requests_total")
        await asyncio.sleep(0.5)
        stop.set()
        answers = [answer for each in clients for answer in await each]
        assert {(answer.status, answer.error) for answer in answers} == {(200, "")}
        assert len(answers) > 50
        assert await two.total("warmlane_requests_total") > seen
        assert "how=drained" in one.log.read_text()
        await two.settled()


async def test_tls_with_a_certificate_of_its_own(tmp_path: Path, transport: str) -> None:
    """What the files of deploy/ say: TLS towards the picker, nothing verified, health over it."""
    options = {"picker": ("--transport", transport)}
    async with stage(tmp_path, pickers=options, tls=True) as made:
        assert {answer.status for answer in await some(made, 4)} == {200}
        assert await made.envoy.stat("cluster.picker.ssl.handshake") >= 1
        assert await made.envoy.stat("cluster.picker.health_check.success") >= 1
