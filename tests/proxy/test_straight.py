"""The compiled path of plain requests beside the Python one: which of them take it, that both give
the same bytes, the same decisions and the same counts, and that one leads into the other anywhere.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.common import split_mix
from warmlane.router.types import ReplicaState

from .engine import (
    DONE,
    ERROR_EVENT,
    GOOD,
    LAST,
    SSE_HEAD,
    STREAM,
    Engine,
    Out,
    Script,
    Seen,
    answer_body,
    chat_body,
    chunk,
    event,
    head,
    says,
    says_then_closes,
    streams,
    whole,
)
from .rig import Rig, ends_with_error, post, rig

PLAIN = {"policy": "default"}
MASK = (1 << 64) - 1


def taken(running: Rig) -> tuple[int, int]:
    """Plain requests so far, and those that left the path."""
    state = running.proxy.state
    return state.plain_requests, state.handed_on


async def warm(running: Rig) -> None:
    """One request for each engine: from here on there are kept connections to all."""
    side = running.proxy.state.sides["default"]
    for slot in range(len(running.engines)):
        for other in range(len(running.engines)):
            ready = ReplicaState.READY if other == slot else ReplicaState.EJECTED
            side.pool.set_state(other, ready)
        assert (await running.chat()).status == 200
    for slot in range(len(running.engines)):
        side.pool.set_state(slot, ReplicaState.READY)


async def test_whole_answers_and_streams_stay_on_the_path() -> None:
    async with rig(Engine(GOOD, GOOD, streams(*STREAM), GOOD), pool=PLAIN) as running:
        peer = await running.connect()
        for number, stream in enumerate((False, False, True, False)):
            await peer.send(post(chat_body(stream=stream)))
            reply = await peer.reply()
            assert reply.body == (b"".join(STREAM) if stream else answer_body())
            # The first has to open a connection to the engine.
            assert taken(running) == (number + 1, 1)
        assert running.engines[0].connections == 1


LONG = [event(role=True), *[event(f" {number}") for number in range(20)], event("", "stop"), DONE]


@pytest.mark.parametrize("path", ["straight", "python"])
async def test_streams_teach_how_fast_a_replica_is_and_whole_answers_do_not(path: str) -> None:
    script = Engine(GOOD, GOOD, streams(*LONG, pause=0.001), streams(*LONG), GOOD)
    async with rig(script, pool=PLAIN) as running:
        price = running.proxy.state.router.lanes["default"].decider.price
        assert price is not None
        extra = ["x-warmlane-debug-key: no"] if path == "python" else []
        seen = []
        for stream in (False, False, True, True, False):
            assert (await running.ask(post(chat_body(stream=stream), extra=extra))).status == 200
            seen.append((price.pace(0)[3], price.tempo(0)[4]))
        # The second stream may come in one read: its end is then as early as its first token.
        assert seen[:3] == [(0, 0), (0, 0), (1, 1)]
        assert seen[3:] in ([(2, 1), (2, 1)], [(2, 2), (2, 2)])
        assert taken(running)[0] == (5 if path == "straight" else 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x" * 500}),
        ("/v1/responses", {"input": "x" * 500, "instructions": "be brief"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "system": "be brief"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 'é\n"x'}], "tools": []}),
        ("/v1/chat/completions?x=1", {"messages": [{"role": "user", "content": "hi"}]}),
    ],
)
async def test_kinds_that_take_it(path: str, body: dict[str, Any]) -> None:
    data = json.dumps({"model": "m", **body}).encode()
    async with rig(GOOD, pool=PLAIN) as running:
        for number in (1, 2):
            reply = await running.ask(post(data, path=path))
            assert reply.body == answer_body()
            assert taken(running) == (number, 1)
        assert [seen.body for seen in running.seen] == [data, data]


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(chat_body(cache_salt="s")),
        post(chat_body(model='m"')),
        post(b'{"model":"m","prompt":[1,2,3]}', path="/v1/completions"),
        post(b'{"model":"m","prompt":null}', path="/v1/completions"),
        post(chat_body(), path="/v1/rerank"),
        post(chat_body(), close=True),
        post(chat_body(), extra=["Expect: 100-continue"]),
        post(chat_body(), extra=["x-warmlane-debug-key: no"]),
        post(chat_body() + b" ", extra=["content-encoding: identity"]),
        post(b'{"model":"m","messages":[],"messages":[]}'),
    ],
)
async def test_what_does_not_take_it(request_bytes: bytes) -> None:
    async with rig(GOOD, pool=PLAIN) as running:
        for _ in range(2):
            assert (await running.ask(request_bytes)).status == 200
        assert taken(running) == (0, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"debug_headers": True},
        {"pool": {"policy": "least-requests"}},
        {"models": [{"name": "m", "model": "other"}]},
        {"models": [{"name": "m", "split": [{"pool": "default", "weight": 1}]}]},
        {"index": {"view": "none"}},
    ],
)
async def test_configs_that_do_not_take_it(settings: dict[str, Any]) -> None:
    async with rig(GOOD, **{"pool": PLAIN, **settings}) as running:
        for _ in range(2):
            assert (await running.chat()).status == 200
        assert taken(running) == (0, 0)


def conversations(rng: random.Random, count: int) -> list[bytes]:
    """Bodies that share beginnings, in the orders and spellings that clients write."""
    systems = ["".join(rng.choices("abc é\n", k=rng.randint(20, 900))) for _ in range(3)]
    chats: list[list[dict[str, Any]]] = [
        [{"role": "system", "content": rng.choice(systems)}] for _ in range(6)
    ]
    bodies = []
    for number in range(count):
        chat = rng.choice(chats)
        chat.append({"role": "user", "content": f"turn {number} " + "wörd " * rng.randrange(60)})
        body: dict[str, Any] = {"model": "m", "messages": list(chat)}
        if rng.random() < 0.4:
            body["tools"] = [{"type": "function", "function": {"name": "f", "x": "y" * 100}}]
        if rng.random() < 0.3:
            body["max_tokens"] = rng.choice((1, 50, 5000))
        items = list(body.items())
        rng.shuffle(items)
        bodies.append(json.dumps(dict(items), ensure_ascii=rng.random() < 0.5).encode())
        chat.append({"role": "assistant", "content": f"answer {len(bodies)}"})
    return bodies


def answering(seen_by: list[int], number: int, rng: random.Random) -> Script:
    """An engine that notes its turns; usage and text differ from answer to answer."""

    async def script(seen: Seen, out: Out) -> None:
        seen_by.append(number)
        usage = {"prompt_tokens": len(seen.body) // 5, "completion_tokens": 9}
        if len(seen_by) % 3:
            usage["prompt_tokens_details"] = {"cached_tokens": len(seen.body) // 9}  # type: ignore[assignment]
        text = f"answer {len(seen_by)}" if len(seen_by) % 7 else ""
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        finish = {"finish_reason": "stop"}
        body = {"choices": [{**choice, **finish}], "usage": usage}
        await out.send(whole(json.dumps(body).encode()))

    return script


def numbers_of(running: Rig) -> dict[str, Any]:
    """Every count but those of time, which differ from run to run."""
    found = running.router.metrics.snapshot()
    lane = running.router.lanes["default"]
    names = {each.name: number for number, each in enumerate(lane.pool)}
    found["requests"] = {
        (names[key[1]], *key[2:]): count for key, count in found["requests"].items()
    }
    found["hits"] = {names[key[1]]: cell for key, cell in found["hits"].items()}
    found["placed"] = [round(each, 3) for each in lane.pool.placed_tokens]
    found["factors"] = [round(each, 2) for each in lane.view.trust.factors[:3]]
    found["output"] = lane.output_tokens
    found["ratio"] = lane.view.bytes_per_token.value
    found["blocks"] = lane.view.blocks
    for name, cells in running.router.metrics.histograms.items():
        found[name] = {pool: sum(cell[:-1]) for pool, cell in cells.items()}
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_same_decisions_and_same_counts(seed: int) -> None:
    """The Python path is the oracle: same engines in the same order, same metrics, same view."""
    outcomes = []
    for plain in (True, False):
        rng = random.Random(seed)
        turns: list[int] = []
        engines = [Engine(answering(turns, number, rng)) for number in range(3)]
        async with rig(*engines, pool=PLAIN) as running:
            state = running.proxy.state
            state.plain = plain
            await warm(running)
            state.sow(seed)
            state.rand = split_mix(seed)  # type: ignore[assignment]
            begun = taken(running)[0]
            peer = await running.connect()
            for body in conversations(rng, 60):
                await peer.send(post(body))
                assert (await peer.reply()).status == 200
            assert taken(running)[0] - begun == (60 if plain else 0)
            outcomes.append((turns, numbers_of(running)))
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[0][1] == outcomes[1][1]
    assert len(set(outcomes[0][0])) == 3


async def test_request_cut_anywhere() -> None:
    """A request in two parts, the second with a pipelined one behind it."""
    request = post(chat_body(note="x" * 50))
    async with rig(GOOD, pool=PLAIN) as running:
        peer = await running.connect()
        for cut in range(1, len(request), 7):
            await peer.send(request[:cut])
            await asyncio.sleep(0.001)
            await peer.send(request[cut:] + request)
            for _ in range(2):
                assert (await peer.reply()).body == answer_body()
        assert len({seen.body for seen in running.seen}) == 1
        assert taken(running)[0] > 0


async def test_large_bodies_arrive_in_parts() -> None:
    body = chat_body(zz="q" * 700_000)
    async with rig(GOOD, pool=PLAIN) as running:
        for part in (10_000, 100_000, 1_000_000):
            peer = await running.connect()
            request = post(body)
            for at in range(0, len(request), part):
                await peer.send(request[at : at + part])
                await asyncio.sleep(0.001)
            assert (await peer.reply()).body == answer_body()
        assert [seen.body for seen in running.seen] == [body] * 3
        assert taken(running)[0] == 3


async def test_client_that_leaves_in_mid_body_leaves_nothing() -> None:
    async with rig(GOOD, pool=PLAIN) as running:
        await warm(running)
        request = post(chat_body(zz="q" * 300_000))
        peer = await running.connect()
        await peer.send(request[:200_000])
        async with asyncio.timeout(5):
            while running.proxy.state.buffered_bytes < 100_000:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        peer.reset()
        async with asyncio.timeout(5):
            while running.proxy.state.clients:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert running.proxy.state.buffered_bytes == 0


async def test_drain_waits_for_no_half_request() -> None:
    async with rig(GOOD, pool=PLAIN, timeouts={"head_s": 0.3}) as running:
        peer = await running.connect()
        await peer.send(post(chat_body())[:-5])
        await asyncio.sleep(0.05)
        assert await running.proxy.drain(5.0)
        assert b"408" in await peer.at_end()


def answers() -> list[bytes]:
    return [
        whole(answer_body()),
        SSE_HEAD + chunk(*STREAM) + LAST,
        head(200, "content-type: text/event-stream", "transfer-encoding: chunked", "keep-alive: x")
        + chunk(*STREAM)
        + LAST,
        SSE_HEAD + chunk(b"".join(STREAM[:3]), b"".join(STREAM[3:])) + b"0\r\nX-T: v\r\n\r\n",
        SSE_HEAD + chunk(*[each.replace(b"\n\n", b"\r\n\r\n") for each in STREAM]) + LAST,
    ]


@pytest.mark.parametrize("number", range(len(answers())))
async def test_answer_cut_anywhere(number: int) -> None:
    """Payload, chunk ends and connection are the same wherever the engine's writes are cut."""
    data = answers()[number]
    expected: dict[bool, bytes] = {}
    for plain in (False, True):
        cuts = iter(range(1, len(data), 11))

        async def script(seen: Seen, out: Out, cuts: Iterator[int] = cuts) -> None:
            cut = next(cuts, 1)
            await out.send(data[:cut], pause=0.002)
            await out.send(data[cut:])

        async with rig(script, pool=PLAIN) as running:
            running.proxy.state.plain = plain
            peer = await running.connect()
            bodies = set()
            for _ in range(1, len(data), 11):
                await peer.send(post(chat_body(stream=True)))
                reply = await peer.reply()
                assert not reply.error
                bodies.add(reply.body)
            assert len(bodies) == 1
            expected[plain] = bodies.pop()
            assert running.engines[0].connections == 1
            assert (taken(running)[0] > 0) is plain
    assert expected[True] == expected[False]


async def test_role_alone_is_held_until_the_token() -> None:
    """Nothing reaches the client before a token: who dies after its role is replaced."""
    dies = says_then_closes(SSE_HEAD, chunk(STREAM[0]), pause=0.02)
    async with rig(Engine(GOOD, dies), Engine(GOOD, streams(*STREAM)), pool=PLAIN) as running:
        await warm(running)
        running.router.pools["default"].set_state(1, ReplicaState.EJECTED)
        reply = await running.chat(stream=True)
        assert reply.body == b"".join(STREAM) and not reply.error
        assert [len(engine.seen) for engine in running.engines] == [2, 2]
        assert taken(running)[1] == 3  # the two that opened connections, and this one


@pytest.mark.parametrize("where", range(1, 5))
async def test_streams_that_break_later_end_with_one_error(where: int) -> None:
    parts = [chunk(each) for each in STREAM[:where]]
    script = says_then_closes(SSE_HEAD + parts[0], *parts[1:], chunk(event(" x")), pause=0.005)
    async with rig(Engine(GOOD, script), pool=PLAIN) as running:
        await warm(running)
        reply = await running.chat(stream=True)
        assert reply.body.startswith(b"".join(STREAM[:where]))
        assert ends_with_error(reply.body) == "upstream_broken"
        assert taken(running) == (2, 2)


@pytest.mark.parametrize("last", [ERROR_EVENT, event("", "abort")])
@pytest.mark.parametrize("joined", [False, True])
async def test_engine_that_breaks_its_stream(last: bytes, joined: bool) -> None:
    parts = [chunk(*STREAM[:3]), chunk(last, DONE) + LAST]
    script = says(SSE_HEAD + parts[0] + parts[1]) if joined else says(SSE_HEAD, *parts, pause=0.01)
    async with rig(Engine(GOOD, script), pool=PLAIN) as running:
        await warm(running)
        reply = await running.chat(stream=True)
        if joined and last == ERROR_EVENT:  # nothing had gone out yet
            assert reply.status == 502
        else:
            assert reply.body.startswith(b"".join(STREAM[:3]))
            ends_with_error(reply.body)


async def test_kept_connection_that_closed_is_nobodys_fault() -> None:
    async with rig(Engine(GOOD, says_then_closes(), GOOD), pool=PLAIN) as running:
        for _ in range(2):
            assert (await running.chat()).status == 200
        assert len(running.seen) == 3
        assert running.count("retries_total") == 0


async def test_client_that_leaves_cancels_the_replica() -> None:
    async def endless(seen: Seen, out: Out) -> None:
        await out.send(SSE_HEAD + chunk(event("x")))
        while True:
            await out.send(chunk(event("y")), pause=0.005)

    async with rig(Engine(GOOD, endless), pool=PLAIN) as running:
        await warm(running)
        peer = await running.connect()
        await peer.send(post(chat_body(stream=True)))
        await peer.reply(until=b'"y"')
        running.engines[0].lost.clear()
        peer.reset()
        await asyncio.wait_for(running.engines[0].lost.wait(), 5)
        assert running.count("client_gone_total") == 1


async def test_client_that_does_not_read_stops_the_replica() -> None:
    big = chunk(event("z" * 60_000))

    async def flood(seen: Seen, out: Out) -> None:
        await out.send(SSE_HEAD)
        for _ in range(400):
            await out.send(big)
        await out.send(chunk(DONE), LAST)

    async with rig(Engine(GOOD, flood), pool=PLAIN) as running:
        await warm(running)
        peer = await running.connect(limit=2**12)
        await peer.send(post(chat_body(stream=True)))
        await asyncio.sleep(0.3)
        (client,) = [each for each in running.proxy.state.clients if each.exchange is not None]  # type: ignore[attr-defined]
        assert client.transport.get_write_buffer_size() < 1 << 20
        assert client.stalled  # type: ignore[attr-defined]
        found, tail = 0, b""
        while not tail.endswith(LAST):
            part = await asyncio.wait_for(peer.reader.read(1 << 20), 10)
            assert part
            found += (tail[-5:] + part).count(b"data: ")
            tail = (tail + part)[-100:]
        assert found == 401


async def test_time_out_while_held_releases_what_is_there() -> None:
    script = says(
        SSE_HEAD + chunk(STREAM[0]), *[chunk(each) for each in STREAM[1:]], LAST, pause=0.5
    )
    limits = {"hold_s": 0.2}
    async with rig(Engine(GOOD, script), pool=PLAIN, limits=limits) as running:
        await warm(running)
        reply = await running.chat(stream=True)
        assert reply.body == b"".join(STREAM)
        assert taken(running) == (2, 2)


async def test_bug_before_the_reservation_is_told_by_the_other_path(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(GOOD, pool=PLAIN) as running:
        await warm(running)
        begun = taken(running)[0]
        with monkeypatch.context() as patch:
            patch.setattr(running.router.pools["default"], "_fresh_until", 0.0)
            patch.setattr(running.router.pools["default"], "_expire_loads", lambda _: 1 / 0)
            assert (await running.chat()).status == 500
        assert "a request failed inside the router" in caplog.text
        assert taken(running)[0] == begun
        assert (await running.chat()).status == 200


@pytest.mark.parametrize("where", ["budget", "ejector"])
async def test_bug_costs_one_request(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks:
        def request(self) -> None:
            raise ZeroDivisionError

        def ok(self, slot: int) -> None:
            raise ZeroDivisionError

    async with rig(GOOD, pool=PLAIN) as running:
        await warm(running)
        side = running.proxy.state.sides["default"]
        with monkeypatch.context() as patch:
            patch.setattr(side, where, Breaks())
            peer = await running.connect()
            await peer.send(post(chat_body()))
            reply = await peer.reply()
            assert reply.status == 500 or where == "ejector"
        assert "a request failed inside the router" in caplog.text
        assert (await running.chat()).status == 200


async def test_exchange_that_cannot_be_made_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    async with rig(Engine(GOOD, says_then_closes(), GOOD), pool=PLAIN) as running:
        await warm(running)
        lane = running.router.lanes["default"]
        with monkeypatch.context() as patch:
            patch.setattr(type(lane), "adopt", lambda *_: 1 / 0)
            peer = await running.connect()
            await peer.send(post(chat_body()))
            assert (await peer.reply()).error
        assert reports
        assert (await running.chat()).status == 200


async def test_pool_that_changes_is_seen_at_once() -> None:
    async with rig(GOOD, GOOD, pool=PLAIN) as running:
        await warm(running)
        pool = running.router.pools["default"]
        for slot in (0, 1, 0):
            pool.set_state(slot, ReplicaState.EJECTED)
            pool.set_state(1 - slot, ReplicaState.READY)
            before = [len(engine.seen) for engine in running.engines]
            for _ in range(3):
                assert (await running.chat()).status == 200
            after = [len(engine.seen) for engine in running.engines]
            assert after[slot] == before[slot] and after[1 - slot] == before[1 - slot] + 3


async def test_keys_guard_the_path(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    async with rig(GOOD, pool=PLAIN, listen={"api_key_file": str(keys)}) as running:
        for key, status in (("secret", 200), ("wrong", 401), ("secret", 200)):
            request = post(chat_body(), extra=[f"Authorization: Bearer {key}"])
            assert (await running.ask(request)).status == status
        assert (await running.ask(post(chat_body()))).status == 401
        assert taken(running) == (2, 1)


async def test_many_clients_at_once() -> None:
    """Answers do not mix: every client gets back what it alone has sent."""

    async def echo(seen: Seen, out: Out) -> None:
        word = re.search(rb"word-\d+-\d+", seen.body)
        assert word is not None
        await out.send(whole(answer_body(word[0].decode())))

    async with rig(Engine(echo), Engine(echo), pool=PLAIN) as running:

        async def client(number: int) -> None:
            peer = await running.connect()
            for turn in range(15):
                word = f"word-{number}-{turn}"
                message = {"role": "user", "content": word + " x" * random.randrange(9000)}
                await peer.send(post(chat_body(messages=[message])))
                reply = await peer.reply()
                assert reply.body == answer_body(word)

        await asyncio.gather(*[client(number) for number in range(30)])
        begun, handed_on = taken(running)
        assert begun == 450 and handed_on < 100
