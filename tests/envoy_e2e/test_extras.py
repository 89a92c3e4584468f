"""Through a real Envoy: the model's name put back, session tokens, metadata, 412, shares."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from . import config
from .backend import MODEL, Backend
from .client import Ask, Http1
from .config import Tree
from .stage import BUILT, CLIENTS, Stage, chat, sha256, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

NICK = "nick-of-the-model"
COST = "%DYNAMIC_METADATA(envoy.lb:x-gateway-inference-request-cost)%"
SCORES = "%DYNAMIC_METADATA(envoy.lb:x-gateway-destination-endpoint-scores)%"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("extras")
    options = folder / "options.yaml"
    names = ("session_token", "endpoint_scores", "request_cost", "conditional")
    tree = {
        "ext_proc": {**dict.fromkeys(names, True), "response_level": 2},
        "models": [{"name": NICK, "pool": "default", "model": MODEL}],
    }
    options.write_text(yaml.safe_dump(tree))
    pickers = {each: ("--transport", each, "--config", str(options)) for each in BUILT}

    def edit(tree: Tree, backends: list[Backend]) -> None:
        del backends
        for transport in BUILT:
            for mode in ("FULL_DUPLEX_STREAMED", "BUFFERED"):
                modes = {**config.response_level(2), "response_body_mode": mode}
                added = config.add_listener(tree, f"{transport}-{mode}", transport, **modes)
                told = {"text_format_source": {"inline_string": f"{COST} {SCORES}\n"}}
                log = {
                    "@type": "type.googleapis.com/"
                    "envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": str(folder / f"{transport}-{mode}.log"),
                    "log_format": told,
                }
                found = {"name": "envoy.access_loggers.file", "typed_config": log}
                config.manager(added)["access_log"] = [found]

    async with stage(folder, pickers=pickers, edit=edit, replicas=3) as made:
        made.folder = folder  # type: ignore[attr-defined]
        yield made


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("mode", ["FULL_DUPLEX_STREAMED", "BUFFERED"])
async def test_clients_see_the_name_that_they_asked_for(
    bench: Stage, transport: str, mode: str, client: str
) -> None:
    listener = f"{transport}-{mode}"
    body = chat(model=NICK)
    for how in ("", "trailers"):
        headers = {"x-answer": how} if how else {}
        answer = await bench.ask(Ask(body, headers=headers), client, listener)
        assert (answer.status, answer.error) == (200, "")
        told = answer.json
        assert told["model"] == NICK
        assert told["sha256"] == sha256(body.replace(NICK.encode(), MODEL.encode()))
    answer = await bench.ask(Ask(chat()), client, listener)
    assert answer.json["model"] == MODEL
    if mode == "BUFFERED":
        return
    stream = chat(model=NICK, stream=True)
    answer = await bench.ask(Ask(stream, headers={"x-answer": "sse:20:1"}), client, listener)
    assert (answer.status, answer.error) == (200, "")
    lines = [line[6:] for line in answer.body.split(b"\n") if line.startswith(b"data: {")]
    assert len(lines) >= 20
    assert {json.loads(line)["model"] for line in lines} == {NICK}


async def test_a_token_leads_back(bench: Stage, transport: str) -> None:
    listener = f"{transport}-FULL_DUPLEX_STREAMED"
    for number in range(3):
        first = await bench.ask(Ask(chat(f"{transport} {number} " * 20)), "http1", listener)
        token = {"x-session-token": first.headers["x-session-token"]}
        for other in range(4):
            ask = Ask(chat(f"another {transport} {number} {other} " * 20), headers=token)
            answer = await bench.ask(ask, "http1", listener)
            assert answer.headers["x-replica"] == first.headers["x-replica"]


async def test_a_conditional_request(bench: Stage, transport: str) -> None:
    listener, headers = f"{transport}-FULL_DUPLEX_STREAMED", {"prefer": "if-available"}
    body = chat(f"never seen by {transport} " * 100)
    assert (await bench.ask(Ask(body, headers=headers), "http1", listener)).status == 412
    assert (await bench.ask(Ask(body), "http1", listener)).status == 200
    assert (await bench.ask(Ask(body, headers=headers), "http1", listener)).status == 200


async def test_envoy_has_the_metadata(bench: Stage, transport: str) -> None:
    listener = f"{transport}-FULL_DUPLEX_STREAMED"
    answer = await bench.ask(Ask(chat("what does it cost")), "http1", listener)
    assert answer.status == 200
    usage = answer.json["usage"]
    path: Path = bench.folder / f"{listener}.log"  # type: ignore[attr-defined]
    for _ in range(300):  # Envoy flushes its logs every ten seconds, and when asked
        await bench.envoy.admin("/reopen_logs", "POST")
        lines = (await asyncio.to_thread(path.read_text)).splitlines()
        if lines and not lines[-1].startswith("-"):
            break
        await asyncio.sleep(0.05)
    cost, _, scores = lines[-1].partition(" ")
    assert float(cost) == usage["prompt_tokens"] + usage["completion_tokens"]
    told = json.loads(scores)
    assert set(told) == {backend.endpoint for backend in bench.backends}
    assert told[f"127.0.0.1:{answer.headers['x-replica']}"] == max(told.values())


@pytest.mark.parametrize("transport", BUILT)
async def test_from_a_share_to_all_and_one_switch_back(tmp_path: Path, transport: str) -> None:
    """1, 10 and 100 % of the traffic, then least in-flight, without a restart."""

    def edit(tree: Tree, backends: list[Backend]) -> None:
        del backends
        config.ext_proc(config.listener(tree))["response_attributes"] = ["upstream.address"]

    pickers = {"picker": ("--transport", transport, "--shadow")}
    async with stage(tmp_path, name=config.OVERRIDE_HOST, pickers=pickers, edit=edit) as running:
        picker = running.picker
        peer = await running.connect()

        async def switch(**wanted: object) -> None:
            admin = await Http1.connect(picker.metrics_port)
            body = json.dumps(wanted).encode()
            answer = await admin.ask(Ask(body, "/admin/v1/shadow", host="localhost"))
            admin.close()
            assert answer.status == 200, answer.body

        async def compared(count: int, text: str = "the same beginning ") -> float:
            """Of so many requests those that were left to somebody else."""
            before = await picker.total("warmlane_shadow_decisions_total")
            for _ in range(count):
                assert (await peer.ask(Ask(chat(text * 100)))).status == 200
            await picker.settled()
            return await picker.total("warmlane_shadow_decisions_total") - before

        assert await compared(20) == 20
        await switch(mode="active", share=0.01)
        assert 180 <= await compared(200) <= 200  # 198 by the mean, deviation 1.4
        await switch(share=0.1)
        assert 150 <= await compared(200) <= 198  # 180, deviation 4.2
        await switch(share=1.0)
        assert await compared(50) == 0
        seen = [len(backend.seen) for backend in running.backends]
        await compared(10, "another beginning ")
        grown = [len(each.seen) - n for each, n in zip(running.backends, seen, strict=True)]
        assert sorted(grown) == [0, 10], "the prefix stays where it is"
        await switch(mode="least-requests")
        assert await compared(10) == 10, "still compared"
        await switch(mode="active")
        assert await compared(10) == 0
        peer.close()
