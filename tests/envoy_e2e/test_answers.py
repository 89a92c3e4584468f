"""Answers through a real Envoy: response levels, streams as they come, ends, clients that leave.

Levels: 0 hears nothing of the answer, 1 its headers and its end, 2 all of it. Each picker has a
listener with what its level needs and one with the whole response body in full duplex, as the
Envoy AI Gateway sends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from . import config
from .backend import Backend, noise
from .client import Ask, Http1, Http2
from .config import Tree
from .stage import BUILT, CLIENTS, Stage, chat, sha256, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEVELS = (0, 1, 2)
ALL = [(each, level) for each in BUILT for level in LEVELS]
CHUNK, CHUNKS = 20_000, 100


def name_of(transport: str, level: int, duplex: bool = False) -> str:
    return f"{transport}-{level}{'-duplex' if duplex else ''}"


def listeners(tree: Tree, backends: list[Backend]) -> None:
    del backends
    for transport, level in ALL:
        picker = name_of(transport, level)
        config.add_listener(tree, picker, picker, **config.response_level(level))
        duplex = config.response_level(2)
        config.add_listener(tree, name_of(transport, level, True), picker, **duplex)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("answers")
    quick = folder / "quick.yaml"  # predicted ends come soon
    quick.write_text("ext_proc: {output_tokens_per_s: 2000}")
    pickers = {}
    for transport, level in ALL:
        options = ("--config", str(quick), "--transport", transport)
        pickers[name_of(transport, level)] = (*options, "--response-level", str(level))
    async with stage(folder, pickers=pickers, edit=listeners) as made:
        yield made


@pytest.mark.parametrize("duplex", [False, True], ids=["fitting", "duplex"])
@pytest.mark.parametrize("level", LEVELS)
async def test_no_byte_of_an_answer_is_lost(
    bench: Stage, transport: str, level: int, duplex: bool
) -> None:
    """Also when the picker ends its stream early with chunks under way (level 0)."""
    listener = name_of(transport, level, duplex)
    wanted = noise(CHUNK * CHUNKS)
    for client in CLIENTS:
        for body in (b"", noise(300_000)):
            for how in (f"chunks:{CHUNKS}:{CHUNK}", f"bytes:{CHUNK * CHUNKS}", "trailers"):
                ask = Ask(body, "/any/upload", headers={"x-answer": how})
                answer = await bench.ask(ask, client, listener)
                assert (answer.status, answer.error) == (200, ""), how
                if how == "trailers":
                    assert answer.json["sha256"] == sha256(body)
                else:
                    assert answer.body == wanted, how


@pytest.mark.parametrize("level", LEVELS)
async def test_a_small_answer_is_never_empty(bench: Stage, transport: str, level: int) -> None:
    """An answer that races with the end of the picker's own stream, often enough to be seen."""
    for duplex in (False, True):
        peer = await bench.connect("http1", name_of(transport, level, duplex))
        for _ in range(60):
            answer = await peer.ask(Ask(chat()))
            assert answer.status == 200 and answer.json["size"] == len(chat())
        peer.close()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("level", LEVELS)
async def test_events_arrive_as_they_are_said(
    bench: Stage, transport: str, level: int, client: str
) -> None:
    """The client reads the first events while the replica waits: nothing is held back."""
    bench.gate(opened=False)
    ask = Ask(chat(stream=True), headers={"x-answer": "gate:2"})
    peer = await bench.connect(client, name_of(transport, level))
    number = await peer.send(ask)
    if isinstance(peer, Http1):
        begun = await peer.read(until=b"w1")
    else:
        begun = await peer.begun(number, b"w1")
    assert b"[DONE]" not in begun.body
    bench.gate(opened=True)
    answer = await (peer.read() if isinstance(peer, Http1) else peer.whole(number))
    assert (answer.status, answer.error) == (200, "")
    assert answer.body.count(b"data: ") == 7 and answer.body.endswith(b"data: [DONE]\n\n")
    peer.close()


@pytest.mark.parametrize("level", [1, 2])
async def test_the_end_of_the_message_is_its_completion(
    bench: Stage, transport: str, level: int
) -> None:
    """The ticket is open while the answer runs, and closed by its end, not by any time-out."""
    picker = bench.pickers[name_of(transport, level)]
    bench.gate(opened=False)
    peer = await bench.connect("http1", name_of(transport, level))
    assert isinstance(peer, Http1)
    await picker.reaches("warmlane_open_tickets", 0)  # of the tests before
    before = await picker.total("warmlane_requests_total", status="200")
    await peer.send(Ask(chat(stream=True), headers={"x-answer": "gate:5"}))
    await peer.read(until=b"w4")
    assert await picker.total("warmlane_open_tickets") == 1
    assert await picker.total("warmlane_requests_total", status="200") == before
    bench.gate(opened=True)
    await peer.read()
    await picker.reaches("warmlane_open_tickets", 0)
    assert await picker.total("warmlane_requests_total", status="200") == before + 1
    peer.close()


async def test_the_end_is_predicted_where_nobody_tells_it(bench: Stage, transport: str) -> None:
    """Level 0: the ticket outlives the answer, and goes by the predicted time."""
    picker = bench.pickers[name_of(transport, 0)]
    answer = await bench.ask(Ask(chat(max_tokens=1)), "http1", name_of(transport, 0))
    assert answer.status == 200
    await picker.reaches("warmlane_open_tickets", 0)
    assert await picker.total("warmlane_leaked_tickets_total") == 0


async def test_only_level_2_reads_the_usage(bench: Stage, transport: str) -> None:
    for level in LEVELS:
        picker = bench.pickers[name_of(transport, level)]
        await picker.reaches("warmlane_open_tickets", 0)  # of the tests before
        before = await picker.total("warmlane_actual_hit_tokens_total")
        for how in ("json", "sse:3:1"):
            ask = Ask(chat(stream=how != "json"), headers={"x-answer": how})
            assert (await bench.ask(ask, "http1", name_of(transport, level))).status == 200
        await picker.reaches("warmlane_open_tickets", 0)
        hits = await picker.total("warmlane_actual_hit_tokens_total") - before
        assert hits == (96 if level == 2 else 0)


async def test_a_prefix_stays_where_it_is(bench: Stage, transport: str) -> None:
    """The choice is made by what the picker read in the body."""
    for text in ("first " * 400, "second " * 400, "third " * 400):
        served = set()
        for turn in range(4):
            ask = Ask(chat(text + "and more" * turn))
            answer = await bench.ask(ask, "http1", name_of(transport, 1))
            assert answer.status == 200
            served.add(answer.headers["x-replica"])
        assert len(served) == 1


async def test_first_tokens_are_seen_or_predicted(bench: Stage, transport: str) -> None:
    """A replica that sends headers and then computes: level 2 waits for the first token, level 1
    takes the predicted moment for it. The difference is the error of level 1."""
    waiting = "warmlane_replica_inflight_prefill_tokens"
    for level in (1, 2):
        picker = bench.pickers[name_of(transport, level)]
        await picker.reaches("warmlane_open_tickets", 0)  # of the tests before
        bench.gate(opened=False)
        peer = await bench.connect("http1", name_of(transport, level))
        assert isinstance(peer, Http1)
        ask = Ask(chat(f"{level}" * 4000, stream=True), headers={"x-answer": "gate:0"})
        coming = bench.expect("gate:0")
        await peer.send(ask)
        await asyncio.wait_for(coming, 10)
        if level == 1:  # about 1,000 tokens: a seventh of a second at the pace first guessed
            await picker.reaches(waiting, 0)
            assert await picker.total("warmlane_open_tickets") == 1
            bench.gate(opened=True)
        else:
            await asyncio.sleep(0.5)
            assert await picker.total(waiting) > 0
            bench.gate(opened=True)
            await picker.reaches(waiting, 0)
        answer = await peer.read()
        assert answer.body.endswith(b"data: [DONE]\n\n")
        peer.close()


@pytest.mark.parametrize("level", LEVELS)
async def test_a_client_that_leaves_frees_everything(
    bench: Stage, transport: str, level: int
) -> None:
    """In the middle of its request, while it waits, and in the middle of the answer."""
    listener = name_of(transport, level)
    for client in CLIENTS:
        peer = await bench.connect(client, listener)
        sending = asyncio.ensure_future(peer.send(Ask(pieces=_endless())))
        await asyncio.sleep(0.1)
        sending.cancel()
        peer.close()
        bench.gate(opened=False)
        for how in ("held", "gate:2"):
            peer = await bench.connect(client, listener)
            request = bench.expect(how)
            await peer.send(Ask(chat(stream=True), headers={"x-answer": how}))
            seen = await asyncio.wait_for(request, 10)
            if isinstance(peer, Http2):
                peer.reset(max(peer.answers))
                await asyncio.sleep(0.05)
            peer.close()
            await asyncio.wait_for(seen.lost.wait(), 10)
    picker = bench.pickers[listener]
    await picker.reaches("warmlane_open_tickets", 0)
    await picker.reaches("warmlane_ext_proc_open_streams", 0)


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield b'{"model": "m", "messages": ['
        await asyncio.sleep(0.01)
