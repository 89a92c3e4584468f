"""The fake engine over real sockets: vLLM's HTTP surface, faults, drain and KV events."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import openai
import pytest

from tests.sim.rig import fake, metric, post, running, stream
from warmlane.router.sim.faults import Fault, parse_fault


async def test_a_prompt_costs_its_tokens_once_and_usage_tells_the_hit() -> None:
    async with fake() as (_, session):
        prompt = "x" * 4 * 100
        for cached in (0, 96):
            status, answer = await post(session, "/v1/completions", prompt=prompt, max_tokens=7)
            assert status == 200
            assert answer["object"] == "text_completion"
            assert answer["usage"]["prompt_tokens"] == 100
            assert answer["usage"]["completion_tokens"] == 7
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
            assert answer["choices"][0]["finish_reason"] == "length"
            assert len(answer["choices"][0]["text"]) == 28
        assert await metric(session, "vllm:prefix_cache_queries_total") == 200
        assert await metric(session, "vllm:prefix_cache_hits_total") == 96


async def test_stream_and_whole_answer_carry_the_same_text() -> None:
    async with fake() as (_, session):
        body = {"messages": [{"role": "user", "content": "tell me"}], "max_tokens": 40}
        _, whole = await post(session, "/v1/chat/completions", **body)
        events = await stream(
            session, "/v1/chat/completions", **body, stream_options={"include_usage": True}
        )
        assert events[-1] == "[DONE]"
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(e["choices"][0]["delta"]["content"] for e in events[:-2])
        assert text == whole["choices"][0]["message"]["content"]
        assert events[-2]["choices"] == []
        assert events[-2]["usage"]["completion_tokens"] == 40
        reasons = [e["choices"][0]["finish_reason"] for e in events[:-2]]
        assert reasons[-1] == "length"
        assert set(reasons[:-1]) == {None}


async def test_the_next_turn_hits_the_generated_text() -> None:
    async with fake() as (_, session):
        messages = [{"role": "user", "content": "w" * 64}]
        _, first = await post(session, "/v1/chat/completions", messages=messages, max_tokens=200)
        messages += [first["choices"][0]["message"], {"role": "user", "content": "go on"}]
        _, second = await post(session, "/v1/chat/completions", messages=messages, max_tokens=1)
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        # all but the last generated token are in the cache, in full blocks
        assert cached == (first["usage"]["total_tokens"] - 1) // 16 * 16


async def test_salts_and_adapters_do_not_share_a_hit() -> None:
    async with fake(loras=("red",)) as (_, session):
        prompt = "y" * 400
        for extra in ({}, {"cache_salt": "a"}, {"model": "red"}, {"cache_salt": "b"}):
            _, answer = await post(session, "/v1/completions", prompt=prompt, max_tokens=1, **extra)
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        _, again = await post(
            session, "/v1/completions", prompt=prompt, max_tokens=1, cache_salt="a"
        )
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 96


async def test_tokens_go_both_ways_and_prompts_may_be_ids_or_lists() -> None:
    async with fake() as (_, session):
        text = "häß ünd 漢字 ok"
        _, ids = await post(session, "/tokenize", prompt=text)
        assert ids["count"] == -(-len(text.encode()) // 4)
        assert (await post(session, "/detokenize", tokens=ids["tokens"]))[1]["prompt"] == text
        _, by_text = await post(session, "/v1/completions", prompt=text, max_tokens=3)
        _, by_ids = await post(session, "/v1/completions", prompt=ids["tokens"], max_tokens=3)
        assert by_text["choices"] == by_ids["choices"]
        _, many = await post(session, "/v1/completions", prompt=[text, "b"], n=2, max_tokens=3)
        assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
        assert many["choices"][0]["text"] == by_text["choices"][0]["text"]
        assert len({choice["text"] for choice in many["choices"]}) == 4
        assert many["usage"]["completion_tokens"] == 12
        _, told = await post(
            session, "/v1/completions", prompt=text, max_tokens=3, return_token_ids=True
        )
        assert told["choices"][0]["prompt_token_ids"] == ids["tokens"]
        assert len(told["choices"][0]["token_ids"]) == 3


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/completions", {"model": "nope", "prompt": "a"}, 404, "NotFoundError"),
        ("/v1/completions", {"max_tokens": 3}, 400, "Bad Request"),
        ("/v1/completions", {"prompt": "a", "max_tokens": "many"}, 400, "Bad Request"),
        ("/v1/completions", {"prompt": "a", "max_tokens": -1}, 400, "BadRequestError"),
        ("/v1/completions", {"prompt": [1, -2]}, 400, "BadRequestError"),
        ("/v1/completions", {"prompt": "a" * 4 * 2000}, 400, "BadRequestError"),
        ("/v1/chat/completions", {"model": "fake"}, 400, "Bad Request"),
        ("/v1/chat/completions", {"messages": [3]}, 400, "Bad Request"),
        ("/v1/unload_lora_adapter", {"lora_name": "nope"}, 404, "NotFoundError"),
        ("/fault", {"kind": "nope"}, 400, "BadRequestError"),
    ],
)
async def test_errors_have_the_shape_and_codes_of_vllm(
    path: str, body: dict[str, Any], status: int, kind: str
) -> None:
    async with fake(max_model_len=1000) as (_, session):
        code, answer = await post(session, path, **body)
        assert code == status
        assert answer["error"]["code"] == status
        assert answer["error"]["type"] == kind


async def test_unknown_paths_and_methods() -> None:
    async with fake() as (_, session):
        async with session.get("/nope") as answer:
            assert (answer.status, await answer.json()) == (404, {"detail": "Not Found"})
        async with session.get("/v1/completions") as answer:
            assert answer.status == 405
        async with session.post("/v1/completions", data=b"{not json") as answer:
            assert answer.status == 400


async def test_the_api_key_guards_v1_and_nothing_else() -> None:
    async with fake(api_key="sk-1") as (_, session):
        for path, open_to_all in [("/v1/models", False), ("/health", True), ("/metrics", True)]:
            async with session.get(path) as answer:
                assert answer.status == (200 if open_to_all else 401)
        async with session.get("/v1/models", headers={"authorization": "Bearer sk-1"}) as answer:
            assert answer.status == 200


async def test_adapters_load_and_unload() -> None:
    async with fake(enable_lora=True, max_loras=2) as (_, session):
        load = {"lora_name": "blue", "lora_path": "./blue"}
        assert (await post(session, "/v1/load_lora_adapter", **load))[0] == 200
        assert (await post(session, "/v1/load_lora_adapter", **load))[0] == 400
        async with session.get("/v1/models") as answer:
            entries = (await answer.json())["data"]
        assert [(entry["id"], entry["parent"]) for entry in entries] == [
            ("fake", None),
            ("blue", "fake"),
        ]
        assert (await post(session, "/v1/completions", prompt="a", model="blue"))[0] == 200
        assert (await post(session, "/v1/unload_lora_adapter", lora_name="blue"))[0] == 200
        assert (await post(session, "/v1/completions", prompt="a", model="blue"))[0] == 404
        async with session.get("/metrics") as answer:
            assert 'max_lora="2"' in await answer.text()


async def test_other_kinds_of_request() -> None:
    async with fake() as (_, session):
        _, embedding = await post(session, "/v1/embeddings", input=["one", "two"])
        assert [entry["index"] for entry in embedding["data"]] == [0, 1]
        _, response = await post(session, "/v1/responses", input="hello", max_output_tokens=5)
        assert response["usage"]["output_tokens"] == 5
        _, message = await post(
            session,
            "/v1/messages",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=4,
        )
        assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("max_tokens", 4)


async def test_faults_strike_once_and_then_the_engine_is_well_again() -> None:
    async with fake() as (_, session):
        body = {"prompt": "p" * 64, "max_tokens": 400}
        for kind in ("reset", "close"):
            await post(session, "/fault", kind=kind)
            with pytest.raises(aiohttp.ClientError):
                await post(session, "/v1/completions", **body)
        for kind, status in (("unavailable", 503), ("error", 500)):
            await post(session, "/fault", kind=kind)
            assert (await post(session, "/v1/completions", **body))[0] == status
        await post(session, "/fault", kind="abort")
        _, answer = await post(session, "/v1/completions", **body)
        assert answer["choices"][0]["finish_reason"] == "abort"
        assert answer["usage"]["completion_tokens"] == 0
        await post(session, "/fault", kind="error_event", after=1)
        events = await stream(session, "/v1/completions", **body)
        assert events[-2]["error"]["code"] == 500
        assert events[-1] == "[DONE]"
        await post(session, "/fault", kind="cut", after=1)
        with pytest.raises(aiohttp.ClientError):
            await stream(session, "/v1/completions", **body)
        await post(session, "/fault", kind="hang")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(post(session, "/v1/completions", **body), 0.2)
        assert (await post(session, "/v1/completions", **body))[0] == 200
        async with session.get("/load") as answer:
            assert await answer.json() == {"server_load": 0}
        assert await metric(session, "vllm:num_requests_running") == 0


async def test_refuse_closes_the_port_for_a_while() -> None:
    async with fake() as (engine, session):
        await post(session, "/fault", kind="refuse", seconds=0.3)
        await asyncio.sleep(0.05)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", engine.port)
        await asyncio.sleep(0.5)
        async with session.get("/health") as answer:
            assert answer.status == 200


@pytest.mark.parametrize("text", ["nope", "abort:x", "abort:1:2:3"])
def test_fault_switches_are_checked(text: str) -> None:
    with pytest.raises(ValueError):
        parse_fault(text)
    assert parse_fault("cut:3:5") == Fault(kind="cut", count=3, after=5)


async def test_a_client_that_leaves_frees_the_engine() -> None:
    async with fake(speed=1.0) as (engine, session):
        async with session.post(
            "/v1/completions", json={"prompt": "a", "max_tokens": 5000, "stream": True}
        ) as answer:
            await answer.content.readany()
        for _ in range(100):
            if not engine.engine.running:
                break
            await asyncio.sleep(0.01)
        assert not engine.engine.running
        assert engine.engine.pool.usage == 0.0
        assert engine.inference.in_flight == 0


async def test_pause_holds_requests_and_resume_serves_them() -> None:
    async with fake() as (_, session):
        async with session.post("/pause?mode=keep") as answer:
            assert await answer.json() == {"status": "paused"}
        waiting = asyncio.ensure_future(post(session, "/v1/completions", prompt="a"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        async with session.get("/health") as answer:
            assert answer.status == 200
        assert await metric(session, "vllm:num_requests_waiting") == 0
        async with session.post("/resume") as answer:
            assert answer.status == 200
        assert (await waiting)[0] == 200
        async with session.post("/sleep?level=1") as answer:
            assert await answer.json() == {"status": "sleeping", "level": 1}
        assert await metric(session, "vllm:engine_sleep_state") == 1
        async with session.post("/wake_up") as answer:
            assert answer.status == 200


async def test_stop_without_a_timeout_ends_streams_with_an_abort() -> None:
    async with fake(speed=1.0) as (engine, session):
        task = asyncio.ensure_future(
            stream(session, "/v1/completions", prompt="a", max_tokens=5000)
        )
        await running(engine)
        await asyncio.sleep(0.1)
        await engine.stop()
        events = await task
        assert events[-2]["choices"][0]["finish_reason"] == "abort"
        assert events[-1] == "[DONE]"
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", engine.port)


async def test_a_drain_lets_streams_end_and_aborts_new_requests() -> None:
    async with fake(speed=20.0, shutdown_timeout_s=10.0) as (engine, session):
        task = asyncio.ensure_future(stream(session, "/v1/completions", prompt="a", max_tokens=600))
        await running(engine)
        stopping = asyncio.ensure_future(engine.stop())
        await asyncio.sleep(0.02)
        _, late = await post(session, "/v1/completions", prompt="a")
        assert late["choices"][0]["finish_reason"] == "abort"
        events = await task
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        await stopping


async def test_the_openai_client_understands_it() -> None:
    async with fake() as (engine, _):
        client = openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0)
        async with client:
            models = await client.models.list()
            assert [model.id for model in models.data] == ["fake"]
            messages: Any = [{"role": "user", "content": "hello"}]
            answer = await client.chat.completions.create(model="fake", messages=messages)
            assert answer.choices[0].finish_reason == "stop"
            chunks = await client.chat.completions.create(
                model="fake", messages=messages, stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
            assert text == answer.choices[0].message.content
