"""What the picker answers in an engine's place, as an HTTP client sees it; and subsets by Envoy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from . import config
from .backend import Backend
from .client import Answer, Ask
from .config import Tree
from .stage import BUILT, CLIENTS, Stage, chat, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

# One request a replica at a time, and small bodies, so that the bounds are quickly reached.
CONFIG = """
pools: [{name: default, filters: [{name: not_saturated, requests: 1}]}]
limits: {body_bytes: 100000}
"""
# How each listener's subset is written: as the gateway API says, and as a comma list.
SUBSETS = ("list", "text", "bare", "nobody", "empty")


def subset(kind: str, backends: list[Backend]) -> object:
    only = backends[1].endpoint
    return {
        "list": [only, "10.9.9.9:1"],
        "text": f"10.9.9.9:1,{only}",
        "bare": ["127.0.0.1"],
        "nobody": ["10.9.9.9:1"],
        "empty": [],
    }[kind]


def listeners(tree: Tree, backends: list[Backend]) -> None:
    for transport in BUILT:
        for mode in ("FULL_DUPLEX_STREAMED", "BUFFERED"):
            config.add_listener(tree, f"{transport}-{mode}", transport, request_body_mode=mode)
        for kind in SUBSETS:
            added = config.add_listener(tree, f"{transport}-{kind}", transport)
            config.add_subset(added, subset(kind, backends))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("refusals")
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    pickers = {each: ("--config", str(path), "--transport", each) for each in BUILT}
    async with stage(folder, pickers=pickers, edit=listeners) as made:
        yield made


def refused(answer: Answer, status: int, reason: str = "") -> None:
    """A whole answer with an error that OpenAI's clients can read."""
    assert (answer.status, answer.error) == (status, "")
    assert answer.headers["content-type"].startswith("application/json")
    error = answer.json["error"]
    assert error["message"] and error["type"]
    assert answer.headers.get("x-llm-d-request-dropped-reason", "") == reason


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("mode", ["FULL_DUPLEX_STREAMED", "BUFFERED"])
async def test_a_bad_request_is_the_clients_fault(
    bench: Stage, transport: str, mode: str, client: str
) -> None:
    for body in (b"{", b"[1]", b"\xff\xfe"):
        answer = await bench.ask(Ask(body), client, f"{transport}-{mode}")
        refused(answer, 400)
        assert answer.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_body_beyond_the_limit(bench: Stage, transport: str, client: str) -> None:
    listener = f"{transport}-FULL_DUPLEX_STREAMED"
    refused(await bench.ask(Ask(chat("x" * 200_000)), client, listener), 413)
    assert (await bench.ask(Ask(chat("x" * 50_000)), client, listener)).status == 200


async def test_an_unknown_model(bench: Stage, transport: str) -> None:
    listener = f"{transport}-FULL_DUPLEX_STREAMED"
    refused(await bench.ask(Ask(chat(model="nobody-has-this")), "http1", listener), 404)


@pytest.mark.parametrize("mode", ["FULL_DUPLEX_STREAMED", "BUFFERED"])
async def test_a_full_fleet_says_come_back(bench: Stage, transport: str, mode: str) -> None:
    listener = f"{transport}-{mode}"
    picker = bench.pickers[transport]
    bench.gate(opened=False)
    slow = Ask(chat(), headers={"x-answer": "held"})
    under_way = [asyncio.ensure_future(bench.ask(slow, "http1", listener)) for _ in range(2)]
    await picker.reaches("warmlane_open_tickets", 2)
    answer = await bench.ask(Ask(chat()), "http1", listener)
    refused(answer, 429, "rejected-saturated")
    assert int(answer.headers["retry-after"]) >= 1
    bench.gate(opened=True)
    assert [each.status for each in await asyncio.gather(*under_way)] == [200, 200]
    await picker.reaches("warmlane_open_tickets", 0)


@pytest.mark.parametrize("kind", SUBSETS)
async def test_a_subset_that_envoy_sets(bench: Stage, transport: str, kind: str) -> None:
    """Only those of the list; nobody there is 503, and so is a list that is empty."""
    listener = f"{transport}-{kind}"
    picker = bench.pickers[transport]
    answers = []
    for _ in range(6):
        answers.append(await bench.ask(Ask(chat()), "http1", listener))
        await picker.reaches("warmlane_open_tickets", 0)
    if kind in ("nobody", "empty"):
        for answer in answers:
            refused(answer, 503, "rejected-no-endpoints")
        return
    assert [answer.status for answer in answers] == [200] * 6
    served = {int(answer.headers["x-replica"]) for answer in answers}
    if kind == "bare":  # an address without a port means each of its ports
        assert served <= {backend.port for backend in bench.backends}
    else:
        assert served == {bench.backends[1].port}
