"""Exact hits through Envoy: engines that publish events, ids of their own tokenizers, real streams.

The first turn of a talk is stored, the second is predicted to the block. A request waits for its
ids, so clients that leave at once must leave nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from tests.e2e.test_exact_serve import BLOCK, command

from . import config
from .client import Ask, Http1
from .envoy_process import Envoy
from .picker_process import Picker, free_port
from .stage import BUILT

TALKS = 3
TOKENS = "warmlane_token_requests_total"
EXACT = ("--kv-events", "auto", "--tokenizer", "engine")


def engine(stack: contextlib.ExitStack) -> str:
    """A running fake engine with events and replays; its endpoint."""
    port = free_port()
    words = ["fake-engine", "--port", str(port), "--model", "fake", "--speed", "20"]
    words += ["--kv-events", f"tcp://*:{free_port()}"]
    words += ["--replay-endpoint", f"tcp://*:{free_port()}"]
    stack.enter_context(command(*words))
    return f"127.0.0.1:{port}"


class Through:
    """A client that talks through one listener, and the picker behind it."""

    def __init__(self, envoy: Envoy, name: str, picker: Picker) -> None:
        self.envoy, self.name, self.picker = envoy, name, picker

    async def says(self, messages: list[dict[str, str]], tokens: int = 4) -> int:
        """Tokens of the prompt that the engine had."""
        body = {"model": "fake", "messages": messages, "max_tokens": tokens}
        peer = await Http1.connect(self.envoy.ports[self.name])
        answer = await peer.ask(Ask(json.dumps(body).encode()))
        peer.close()
        assert answer.status == 200, answer.body
        return int(json.loads(answer.body)["usage"]["prompt_tokens_details"]["cached_tokens"])

    async def leaves(self, text: str) -> None:
        """A client that goes away as soon as its request is written."""
        body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": text}]})
        reader, writer = await asyncio.open_connection("127.0.0.1", self.envoy.ports[self.name])
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        writer.write((head + "content-type: application/json\r\n\r\n" + body).encode())
        await writer.drain()
        writer.close()
        del reader

    async def proven(self) -> None:
        """Wait until both replicas' events are trusted and their tokenizers are proven."""
        await self.picker.reaches("warmlane_replica_exact", 2)
        for _ in range(200):
            await self.says([{"role": "user", "content": "hi"}], tokens=1)
            if await self.picker.total(TOKENS, result="exact"):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(self.picker.log.read_text()[-2000:])

    async def known(self) -> float:
        """Requests that were decided with their token ids."""
        return await self.picker.total(TOKENS, result="exact")

    async def predicted(self) -> float:
        return await self.picker.total("warmlane_predicted_hit_tokens_total")


async def turn(client: Through, number: int, level: int) -> bool:
    """Two turns of a talk. False: the second one's ids came too late, as may be on a busy machine,
    and it was routed on the approximate view."""
    talk = [{"role": "user", "content": f"{number} " + "word " * 700}]
    assert await client.says(talk) == 0
    await asyncio.sleep(0.3)  # the events of the answer arrive a little after it
    talk += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "go"}]
    before, known = await client.predicted(), await client.known()
    cached = await client.says(talk)
    if await client.known() == known:
        return False
    assert cached > 500
    if level == 2:  # usage is read, and compared with what was predicted
        assert abs(await client.predicted() - before - cached) <= BLOCK
    return True


@pytest.mark.parametrize(("transport", "level"), [*[(each, 2) for each in BUILT], (BUILT[-1], 0)])
async def test_text_prompts_are_predicted_to_the_block(
    tmp_path: Path, transport: str, level: int
) -> None:
    with contextlib.ExitStack() as stack:
        endpoints = [engine(stack) for _ in range(2)]
        options = ["--transport", transport, "--response-level", str(level)]
        picker = Picker(endpoints, tmp_path, "--insecure", *EXACT, *options)
        tree = config.load(config.ORIGINAL_DST)
        config.picker_at(tree, picker.port, tls=False)
        config.set_modes(config.listener(tree), **config.response_level(level))
        envoy = Envoy(tree, tmp_path)
        try:
            await asyncio.gather(picker.start(), envoy.start())
            client = Through(envoy, "inference", picker)
            await client.proven()
            exact = 0
            for number in range(4 * TALKS):
                exact += await turn(client, number, level)
                if exact == TALKS:
                    break
            assert exact == TALKS
            await asyncio.gather(*[client.leaves(f"{n} " + "gone " * 2000) for n in range(40)])
            await picker.settled()
            await picker.reaches("warmlane_ext_proc_open_streams", 0)
            assert await picker.total("warmlane_ext_proc_buffered_bytes") == 0
        finally:
            await envoy.stop()
            await picker.stop()
