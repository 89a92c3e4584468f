"""What the picker changes in a request on its way through a real Envoy, and what it must not."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from . import config
from .backend import Backend, Seen
from .client import Ask
from .config import Tree
from .stage import BUILT, CLIENTS, Stage, chat, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Modes in which the choice waits for the body, so that the model in it can be changed.
WHOLE = ("FULL_DUPLEX_STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "EARLY")
ALIAS = "a-much-longer-name-than-the-engine-has"
CONFIG = f"models: [{{name: {ALIAS}, pool: default, model: m}}]"


def listeners(tree: Tree, backends: list[Backend]) -> None:
    del backends
    for transport in BUILT:
        for mode in WHOLE:
            sent = "STREAMED" if mode == "EARLY" else mode
            added = config.add_listener(
                tree, f"{transport}-{mode}", transport, request_body_mode=sent
            )
            if mode == "EARLY":
                config.ext_proc(added)["send_body_without_waiting_for_header_response"] = True


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("changes")
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    pickers = {each: ("--config", str(path), "--transport", each) for each in BUILT}
    async with stage(folder, pickers=pickers, edit=listeners) as made:
        yield made


def last(bench: Stage, port: str) -> Seen:
    [backend] = [each for each in bench.backends if each.port == int(port)]
    return backend.seen[-1]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("mode", WHOLE)
async def test_an_alias_changes_body_and_length_together(
    bench: Stage, transport: str, mode: str, client: str
) -> None:
    """Of a short body and of one in many chunks; nothing else in it changes."""
    for length in (10, 10_000 if mode == "EARLY" else 200_000):
        body = chat("z" * length, model=ALIAS, temperature=0.25)
        answer = await bench.ask(Ask(body), client, f"{transport}-{mode}")
        assert answer.status == 200
        seen = last(bench, answer.headers["x-replica"])
        assert json.loads(seen.body) == {**json.loads(body), "model": "m"}
        told = seen.headers.get("content-length")
        assert told in (None, str(len(seen.body)))


@pytest.mark.parametrize("mode", WHOLE)
async def test_internal_headers_stay_inside(bench: Stage, transport: str, mode: str) -> None:
    """Neither may a client choose a replica, nor does an engine hear of the routing."""
    elsewhere = "10.1.2.3:4"
    headers = {
        "x-gateway-destination-endpoint": elsewhere,
        "x-gateway-destination-endpoint-subset": elsewhere,
        "x-llm-d-inference-fairness-id": "me",
        "x-prefiller-host-port": elsewhere,
        "x-data-parallel-rank": "7",
        "x-mine": "kept",
    }
    answer = await bench.ask(Ask(chat(), headers=headers), "http1", f"{transport}-{mode}")
    assert answer.status == 200
    seen = last(bench, answer.headers["x-replica"]).headers
    assert seen["x-mine"] == "kept"
    assert seen.pop("x-gateway-destination-endpoint") == f"127.0.0.1:{answer.headers['x-replica']}"
    assert not [name for name in seen if name.startswith(("x-gateway-", "x-llm-d-"))]
    assert not {"x-prefiller-host-port", "x-data-parallel-rank"} & seen.keys()


def watch(tree: Tree, backends: list[Backend]) -> None:
    del backends
    filtering = config.ext_proc(config.listener(tree))
    filtering["observability_mode"] = True
    filtering["response_attributes"] = ["upstream.address"]
    modes = {"request_body_mode": "STREAMED", "request_trailer_mode": "SKIP"}
    config.set_modes(config.listener(tree), **modes)


@pytest.mark.parametrize("how", ["observability_mode", "--shadow"])
async def test_a_watching_picker_changes_nothing(tmp_path: Path, transport: str, how: str) -> None:
    """Envoy balances by itself; the picker only says what it would have done."""
    options = ["--transport", transport, *(["--shadow"] if how == "--shadow" else [])]
    edit = watch if how == "observability_mode" else None
    name = config.OVERRIDE_HOST
    make = stage(tmp_path, name=name, pickers={"picker": tuple(options)}, edit=edit)
    async with make as made:
        answers = [await made.ask(Ask(chat("the same " * 200))) for _ in range(12)]
        assert {answer.status for answer in answers} == {200}
        # one prefix, yet both replicas: the choice was Envoy's
        assert {int(each.headers["x-replica"]) for each in answers} == {
            backend.port for backend in made.backends
        }
        for backend in made.backends:
            for seen in backend.seen:
                assert "x-gateway-destination-endpoint" not in seen.headers
        await made.picker.reaches("warmlane_shadow_decisions_total", 12)
        # Envoy told who served, so that each decision could be compared
        assert await made.picker.total("warmlane_shadow_decisions_total", agreed="unknown") == 0


async def test_replicas_with_ipv6_addresses(tmp_path: Path, transport: str) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"NO IPv6 TESTED: no loopback address of its kind here: {error}")
    options = {"picker": ("--transport", transport, "--policy", "round-robin")}
    async with stage(tmp_path, pickers=options, host="::1") as made:
        answers = [await made.ask(Ask(chat())) for _ in range(4)]
        assert {answer.status for answer in answers} == {200}
        assert len({answer.headers["x-replica"] for answer in answers}) == 2
        for backend in made.backends:
            assert backend.seen[-1].headers["x-gateway-destination-endpoint"] == backend.endpoint
