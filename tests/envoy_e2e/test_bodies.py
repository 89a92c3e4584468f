"""Request bodies through a real Envoy and the picker: each mode, each client, byte for byte.

One Envoy with a listener for each transport and body mode, two pickers, two replicas that hash.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from . import config
from .backend import Backend, noise
from .client import Ask
from .config import Tree
from .stage import BUILT, CLIENTS, Stage, chat, sha256, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

KB, MB = 1 << 10, 1 << 20
# 62,000 bytes is the largest piece that a picker gives back in full duplex.
SIZES = (0, 1, 4 * KB, 62_000, 62_001, 400_000)
LARGEST = 16 * MB
# More than the thousand resets after which HTTP/2 servers hang up by default.
MANY, AT_ONCE = 2500, 50
# Only these modes ask Envoy to hold a body: the listener's buffer must have room for it.
HELD = ("BUFFERED", "BUFFERED_PARTIAL")
UPLOAD = "/any/upload"  # a path that is routed by load, whatever is in the body


def listeners(tree: Tree, backends: list[Backend]) -> None:
    del backends
    first = BUILT[0]
    config.add_listener(tree, "small-buffer", first, request_body_mode="BUFFERED")
    config.listener(tree)["per_connection_buffer_limit_bytes"] = 2 * LARGEST
    for transport in BUILT:
        for mode in config.BODY_MODES:
            config.add_listener(tree, f"{transport}-{mode}", transport, request_body_mode=mode)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    pickers = {each: ("--transport", each, "--policy", "round-robin") for each in BUILT}
    folder = tmp_path_factory.mktemp("bodies")
    async with stage(folder, pickers=pickers, edit=listeners) as made:
        yield made


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("mode", config.BODY_MODES)
async def test_every_byte_arrives(bench: Stage, transport: str, mode: str, client: str) -> None:
    peer = await bench.connect(client, f"{transport}-{mode}")
    for size in SIZES:
        body = noise(size)
        answer = await peer.ask(Ask(body, UPLOAD))
        assert (answer.status, answer.error) == (200, ""), size
        assert answer.json["size"] == size
        assert answer.json["sha256"] == sha256(body)
    peer.close()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("mode", config.BODY_MODES)
async def test_sixteen_megabytes(bench: Stage, transport: str, mode: str, client: str) -> None:
    body = noise(LARGEST)
    answer = await bench.ask(Ask(body, UPLOAD), client, f"{transport}-{mode}")
    assert (answer.status, answer.error) == (200, "")
    assert answer.json["sha256"] == sha256(body)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("mode", config.BODY_MODES)
async def test_chunked_uploads(bench: Stage, transport: str, mode: str, client: str) -> None:
    """No length is told; pieces of odd sizes; with trailers and without."""
    body = chat("x" * 300_000)
    for trailers in ({}, {"x-checksum": "none"}):
        ask = Ask(pieces=pieces(body, 7919), trailers=trailers)
        answer = await bench.ask(ask, client, f"{transport}-{mode}")
        assert (answer.status, answer.error) == (200, ""), trailers
        assert answer.json["sha256"] == sha256(body)


@pytest.mark.parametrize("mode", config.BODY_MODES)
async def test_a_request_without_a_body(bench: Stage, transport: str, mode: str) -> None:
    for client in CLIENTS:
        ask = Ask(method="GET", path="/v1/models")
        answer = await bench.ask(ask, client, f"{transport}-{mode}")
        assert answer.status == 200
        assert answer.json["data"]


async def test_a_buffer_that_is_too_small_says_so(bench: Stage) -> None:
    """Envoy's own answer, with the buffer of 1 MiB that it has without being told."""
    answer = await bench.ask(Ask(noise(2 * MB), UPLOAD), "http1", "small-buffer")
    assert answer.status == 413


async def test_thousands_of_streams_on_one_connection(bench: Stage, transport: str) -> None:
    """Envoy ends each stream to the picker with a reset, and keeps its connection all the same.

    Fifty at a time, each with a body of its own: none gets another one's.
    """
    listener = f"{transport}-FULL_DUPLEX_STREAMED"
    peer = await bench.connect("http2", listener)
    await peer.ask(Ask(b"first", UPLOAD))
    counter = f"cluster.{transport}.upstream_cx_total"
    before = await bench.envoy.stat(counter)
    for batch in range(MANY // AT_ONCE):
        bodies = [
            noise(100 + 37 * number, seed=batch * AT_ONCE + number) for number in range(AT_ONCE)
        ]
        answers = await asyncio.gather(*(peer.ask(Ask(body, UPLOAD)) for body in bodies))
        assert [answer.status for answer in answers] == [200] * AT_ONCE
        assert [answer.json["sha256"] for answer in answers] == [sha256(body) for body in bodies]
    assert await bench.envoy.stat(counter) == before
    peer.close()
