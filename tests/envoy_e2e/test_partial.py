"""Bodies of which Envoy shows the picker a part, or shows them only when it is asked.

Each listener has one way to come by the start of a long prompt. What begins alike goes where it
went, and every byte arrives, at each response level.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from . import config
from .backend import MODEL, Backend
from .client import Ask
from .config import Tree
from .stage import BUILT, Stage, chat, sha256, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

MB = 1 << 20
TALKS = 6
LEVELS = (0, 1, 2)
WAYS = {
    "early": ("STREAMED", {"send_body_without_waiting_for_header_response": True}),
    "asked-streamed": ("STREAMED", {"allow_mode_override": True}),
    "asked-none": ("NONE", {"allow_mode_override": True}),
    "partial": ("BUFFERED_PARTIAL", {}),
}
# A prompt of 100 KB in each: more than the 16 KB that are awaited of a stream, and than the 64 KiB
# that these listeners buffer.
LIMIT = 64 * 1024


def listeners(tree: Tree, backends: list[Backend]) -> None:
    del backends
    first = config.listener(tree)
    first["per_connection_buffer_limit_bytes"] = LIMIT
    for transport in BUILT:
        for level in LEVELS:
            modes = config.response_level(level)
            if level == 2:
                modes["response_body_mode"] = "STREAMED"  # full duplex heeds no other mode
            for way, (mode, options) in WAYS.items():
                name = f"{transport}-{level}"
                added = config.add_listener(
                    tree, f"{way}-{name}", name, request_body_mode=mode, **modes
                )
                config.ext_proc(added).update(options)
                if mode == "BUFFERED_PARTIAL" or "asked" in way:
                    config.set_modes(added, request_trailer_mode="SKIP")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("partial")
    options = folder / "options.yaml"
    options.write_text(
        yaml.safe_dump(
            {
                # predicted ends of level 0 come soon
                "ext_proc": {
                    "ask_for_body": True,
                    "prefill_tokens_per_s": 1e7,
                    "output_tokens_per_s": 1e4,
                },
                "models": [{"name": "nick-of-the-model", "pool": "default", "model": MODEL}],
            }
        )
    )
    pickers = {
        f"{transport}-{level}": (
            *("--transport", transport, "--response-level", str(level)),
            *("--config", str(options)),
        )
        for transport in BUILT
        for level in LEVELS
    }
    async with stage(folder, pickers=pickers, edit=listeners, replicas=3) as made:
        yield made


async def asked(bench: Stage, listener: str, body: bytes) -> str:
    """Who answered; nothing of the body is lost."""
    answer = await bench.ask(Ask(body), "http1", listener)
    assert (answer.status, answer.error) == (200, ""), answer.body
    assert answer.json["sha256"] == sha256(body)
    return answer.headers["x-replica"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("level", LEVELS)
async def test_what_begins_alike_goes_where_it_went(
    bench: Stage, transport: str, level: int, way: str
) -> None:
    listener = f"{way}-{transport}-{level}"
    texts = [f"{number} of {listener} " + f"word{number} " * 15_000 for number in range(TALKS)]
    served = [await asked(bench, listener, chat(text)) for text in texts]
    assert len(set(served)) > 1
    again = [await asked(bench, listener, chat(text + " go on")) for text in texts]
    assert again == served


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("level", LEVELS)
async def test_a_model_is_renamed_in_the_start_and_in_the_whole(
    bench: Stage, transport: str, level: int, way: str
) -> None:
    for client, size in (("http1", 300_000), ("http2", 300_000), ("http1", 10), ("http2", 10)):
        body = chat("x" * size, model="nick-of-the-model")
        wanted = body.replace(b"nick-of-the-model", MODEL.encode())
        answer = await bench.ask(Ask(body), client, f"{way}-{transport}-{level}")
        assert (answer.status, answer.error) == (200, ""), answer.body
        assert answer.json["sha256"] == sha256(wanted)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("level", LEVELS)
async def test_megabytes_of_both(bench: Stage, transport: str, level: int, way: str) -> None:
    """Also chunked, and with an answer of the same size: at level 0 the picker leaves early."""
    body = chat("y" * (4 * MB))
    listener = f"{way}-{transport}-{level}"

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 50_021):
            yield body[at : at + 50_021]
            await asyncio.sleep(0)

    for ask in (Ask(body), Ask(pieces=pieces())):
        answer = await bench.ask(ask, "http1", listener)
        assert (answer.status, answer.error) == (200, "")
        assert answer.json["sha256"] == sha256(body)


async def test_a_gateway_that_does_not_heed_is_noticed(tmp_path: Path) -> None:
    """It sends the request on without a choice: the operator has to allow the other mode."""
    options = tmp_path / "options.yaml"
    options.write_text("ext_proc: {ask_for_body: true}\n")

    def edit(tree: Tree, backends: list[Backend]) -> None:
        del backends
        config.set_modes(config.listener(tree), request_body_mode="NONE", response_body_mode="NONE")

    pickers = {"picker": ("--config", str(options))}
    async with stage(tmp_path, pickers=pickers, edit=edit, stays=False) as running:
        answer = await running.ask(Ask(chat()))
        assert answer.status == 503
        errors = "warmlane_ext_proc_protocol_errors_total"
        await running.picker.reaches(errors, 1, what="body_not_sent")
