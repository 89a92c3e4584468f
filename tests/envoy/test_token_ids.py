"""Streams whose choice waits for the prompt's token ids: what comes, goes and ends meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.common import until
from tests.envoy import gateway as envoy
from tests.envoy import rig
from tests.envoy.gateway import Answer
from tests.envoy.talk import Talk as Stream
from tests.envoy.transports import NAMES
from warmlane.envoy.picker import Picker
from warmlane.envoy.session import LATE_MOST
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.types import Request

BODY = envoy.CHAT % b"hello there"
REPLICAS = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]


class Ids:
    """A source of token ids that gives them when a test says so."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[bytes]] = []
        self.bodies: list[bytes] = []

    def pool_of(self, request: Request) -> str | None:
        return "default" if request.prompt is not None else None

    async def ids(self, request: Request, pool: str, body: bytes) -> Request:
        assert pool == "default"
        coming: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.asked.append(coming)
        self.bodies.append(body)
        return msgspec.structs.replace(request, tokens=await coming)


class Talk(Stream):
    """One whose ids are on their way."""

    def __init__(self, picker: Picker, ids: Ids) -> None:
        picker.tokens = ids
        self.ids = ids
        super().__init__(picker)

    async def told(self, tokens: bytes = bytes(64)) -> list[Answer]:
        """The answers once the ids came."""
        self.ids.asked[0].set_result(tokens)
        for _ in range(5):
            await asyncio.sleep(0)
        return self.hear()


@pytest.fixture
def talks() -> Iterator[Any]:
    made: list[Talk] = []

    def build(**options: Any) -> Talk:
        data: dict[str, Any] = {"pools": [{"replicas": REPLICAS}]}
        data["shadow"] = {"mode": options.pop("mode", "active")}
        data["ext_proc"] = options
        config = from_data(data)
        made.append(Talk(Picker(Router(config), config), Ids()))
        return made[-1]

    yield build
    for talk in made:
        talk.session.half_closed()
        talk.session.closed()
        talk.session.closed()
        assert talk.picker.open == talk.picker.buffered == talk.picker.router.open_tickets == 0


async def test_the_choice_comes_with_the_ids(talks: Any) -> None:
    talk = talks()
    assert talk.say(envoy.request_headers(), envoy.request_body(BODY)) == []
    await asyncio.sleep(0)
    assert talk.ids.bodies == [BODY]
    assert (talk.woken, talk.picker.router.open_tickets) == (0, 0)
    assert talk.session.held_bytes == len(BODY)
    head, piece = await talk.told()
    assert head.endpoint.startswith("10.0.0.") and piece.piece == (BODY, True)
    assert (talk.woken, talk.picker.router.open_tickets) == (1, 1)
    assert talk.session.held_bytes == 0
    assert len(talk.say(envoy.response_headers(), envoy.response_body(b"{}"))) == 2


async def test_a_request_without_a_prompt_does_not_wait(talks: Any) -> None:
    talk = talks()
    [head] = talk.say(envoy.request_headers(method="GET", path="/v1/models", end=True))
    assert head.endpoint and talk.ids.asked == []


@pytest.mark.parametrize("mode", [envoy.BUFFERED, envoy.BUFFERED_PARTIAL])
async def test_a_buffered_body_is_charged_while_it_waits(talks: Any, mode: int) -> None:
    talk = talks()
    assert len(talk.say(envoy.request_headers(mode))) == 1
    assert talk.say(envoy.request_body(BODY)) == []
    await asyncio.sleep(0)
    assert talk.session.held_bytes == talk.picker.buffered == len(BODY)
    [answer] = await talk.told()
    assert answer.kind == "request_body" and answer.endpoint


async def test_trailers_wait_too(talks: Any) -> None:
    talk = talks()
    talk.say(envoy.request_headers(), envoy.request_body(BODY, end=False))
    assert talk.say(envoy.request_trailers()) == []
    await asyncio.sleep(0)
    head, piece, trailers = await talk.told()
    assert head.endpoint and piece.piece == (BODY, False)
    assert trailers.kind == "request_trailers"


async def test_an_answer_that_overtakes_the_ids_where_we_only_look_on(talks: Any) -> None:
    talk = talks()
    served = REPLICAS[1].removeprefix("http://")
    observe = {"observe": True}
    talk.say(envoy.request_headers(**observe), envoy.request_body(BODY, **observe))
    await asyncio.sleep(0)
    talk.say(envoy.response_headers(served=served, **observe))
    talk.say(envoy.response_body(b"{}", **observe))
    assert await talk.told() == []
    [row] = talk.picker.shadow.report().values()
    assert (row["decisions"], row["unknown"]) == (1, 0)
    assert talk.picker.router.open_tickets == 0


@pytest.mark.parametrize("end", ["closed", "half_closed"])
async def test_a_stream_that_ends_before_its_ids_leaves_nothing(talks: Any, end: str) -> None:
    talk = talks()
    talk.say(envoy.request_headers(), envoy.request_body(BODY))
    await asyncio.sleep(0)
    if end == "half_closed":
        talk.session.half_closed()
        assert talk.session.status == (0, "")
    talk.session.closed()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert talk.ids.asked[0].cancelled()
    assert (talk.woken, talk.hear(), talk.picker.buffered) == (0, [], 0)
    assert talk.picker.ends == {("reset",): 1}


async def test_ids_that_come_in_the_turn_of_the_reset_decide_nothing(talks: Any) -> None:
    talk = talks()
    talk.say(envoy.request_headers(), envoy.request_body(BODY))
    await asyncio.sleep(0)
    talk.ids.asked[0].set_result(bytes(64))
    await asyncio.sleep(0)  # the task is done, its news is on the way
    talk.session.closed()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (talk.woken, talk.hear(), talk.picker.router.open_tickets) == (0, [], 0)


async def test_a_source_that_fails_ends_its_stream_alone(talks: Any) -> None:
    talk = talks()
    talk.say(envoy.request_headers(), envoy.request_body(BODY))
    await asyncio.sleep(0)
    talk.ids.asked[0].set_exception(ValueError("a bug"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert talk.session.status == (13, "internal error") and talk.woken == 1


async def test_messages_before_the_choice_are_bounded(talks: Any) -> None:
    talk = talks()
    talk.say(envoy.request_headers(), envoy.request_body(BODY))
    talk.say(*[envoy.response_body(b"x", end=False)] * LATE_MOST)
    assert talk.session.status is None
    talk.say(envoy.response_body(b"x", end=False))
    assert talk.session.status is not None and talk.session.status[0] == 8


async def test_shadow_passes_once_the_ids_came(talks: Any) -> None:
    talk = talks(mode="shadow")
    assert talk.say(envoy.request_headers(), envoy.request_body(BODY)) == []
    await asyncio.sleep(0)
    head, piece = await talk.told()
    assert not head.set and piece.piece == (BODY, True)


async def test_a_refusal_after_the_ids(talks: Any) -> None:
    talk = talks()
    pool = talk.picker.router.pools["default"]
    for replica in list(pool):
        pool.drain(replica.name)
    talk.say(envoy.request_headers(), envoy.request_body(BODY))
    await asyncio.sleep(0)
    [refusal] = await talk.told()
    assert refusal.status == 503 and talk.session.status == (0, "") and talk.woken == 1


@pytest.mark.parametrize("transport", NAMES)
async def test_streams_that_wait_on_either_transport(transport: str) -> None:
    """Some are reset while they wait, the others are answered; nothing is left of any."""
    ids = Ids()
    async with rig.picker(transport=transport) as server, rig.channel(server) as channel:
        server.picker.tokens = ids
        streams = [rig.Stream(channel) for _ in range(8)]
        for stream in streams:
            await stream.say(envoy.request_headers(), envoy.request_body(BODY))
        await until(lambda: len(ids.asked) == 8)
        for stream in streams[::2]:
            stream.call.cancel()
        await until(lambda: server.picker.open == 4)
        assert sum(each.cancelled() for each in ids.asked) == 4
        for coming in ids.asked:
            if not coming.cancelled():
                coming.set_result(bytes(64))
        for stream in streams[1::2]:
            head, piece = await stream.hear(2)
            assert head.endpoint and piece.piece == (BODY, True)
            assert await stream.end() == 0
        await until(lambda: server.picker.open == 0)
        router = server.running.router
        assert router.open_tickets == server.picker.buffered == 0
        assert server.picker.ends == {("reset",): 8}  # none saw an answer


@pytest.mark.parametrize("transport", NAMES)
async def test_a_drain_waits_for_a_choice_that_waits(transport: str) -> None:
    ids = Ids()
    async with rig.picker(transport=transport) as server, rig.channel(server) as channel:
        server.picker.tokens = ids
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(), envoy.request_body(BODY))
        await until(lambda: len(ids.asked) == 1)
        drain = asyncio.ensure_future(server.drain(timeout_s=10.0))
        await asyncio.sleep(0.05)
        ids.asked[0].set_result(bytes(64))
        head, _ = await stream.hear(2)
        assert head.endpoint
        assert await stream.end() == 0
        assert await drain
