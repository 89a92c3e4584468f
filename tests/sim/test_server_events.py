"""KV events of the fake engine over real ZMQ sockets, live and replayed."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from tests.sim.rig import fake, post


@pytest.mark.parametrize("form", ["map", "array", "array-0.11"])
async def test_kv_events_and_replay(form: str) -> None:
    context = zmq.asyncio.Context()
    options = {
        "kv_events": "tcp://127.0.0.1:*",
        "replay_endpoint": "tcp://127.0.0.1:*",
        "kv_events_form": form,
        "kv_events_topic": "kv@here",
        "loras": ("red",),
    }
    try:
        async with fake(**options) as (engine, session):
            assert engine.events is not None
            subscriber = context.socket(zmq.SUB)
            subscriber.connect(engine.events.endpoint)
            subscriber.subscribe(b"kv@")
            await asyncio.sleep(0.2)
            prompt = "q" * 4 * 40
            await post(session, "/v1/completions", prompt=prompt, max_tokens=1, cache_salt="s")
            await post(session, "/v1/completions", prompt=prompt, max_tokens=1, model="red")
            batches = [await asyncio.wait_for(subscriber.recv_multipart(), 5) for _ in range(2)]
            subscriber.close()
            assert [frames[0] for frames in batches] == [b"kv@here"] * 2
            assert [int.from_bytes(frames[1], "big") for frames in batches] == [0, 1]
            decoded = [msgspec.msgpack.decode(frames[2]) for frames in batches]
            assert [batch[2] for batch in decoded] == [0, 0]
            check_stored(form, decoded[0][1][0], decoded[1][1][0])

            dealer = context.socket(zmq.DEALER)
            dealer.connect(engine.events.replay_endpoint)
            await dealer.send_multipart([b"", (1).to_bytes(8, "big")])
            first = await asyncio.wait_for(dealer.recv_multipart(), 5)
            marker = await asyncio.wait_for(dealer.recv_multipart(), 5)
            dealer.close()
            assert first[-2:] == batches[1][1:]
            assert len(first) == (4 if form == "map" else 3)
            assert marker[-2:] == [b"\xff" * 8, b""]
    finally:
        context.destroy(linger=0)


def check_stored(form: str, salted: Any, adapted: Any) -> None:
    """Two blocks of 16 tokens each, told in the form that was asked for."""
    if form == "map":
        assert salted["type"] == "BlockStored"
        assert len(salted["block_hashes"]) == 2
        assert salted["parent_block_hash"] is None
        assert salted["token_ids"] == [0x71717171] * 32
        assert salted["block_size"] == 16
        assert salted["extra_keys"] == [["s"], None]
        assert (adapted["lora_name"], adapted["lora_id"]) == ("red", 1)
        assert adapted["extra_keys"] == [["red"], ["red"]]
        assert adapted["block_hashes"] != salted["block_hashes"]
    else:
        assert salted[0] == "BlockStored"
        assert len(salted) == (12 if form == "array" else 7)
        assert salted[3:5] == [[0x71717171] * 32, 16]
