"""Requests must not leave reference cycles: `warmlane serve` lets the collector run rarely."""

from __future__ import annotations

import gc

from .engine import GOOD, STREAM, Engine, chat_body, says, streams, whole
from .rig import post, rig


async def test_requests_leave_no_reference_cycles() -> None:
    scripts = [GOOD, streams(*STREAM), GOOD, says(whole(b"{}", 503))]
    async with rig(Engine(*scripts, GOOD), Engine(GOOD, streams(*STREAM), GOOD)) as running:
        peer = await running.connect()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for turn in range(24):
                await peer.send(post(chat_body(stream=turn % 3 == 1)))
                assert (await peer.reply()).status == 200
            gc.collect()
            cycles = {type(each) for each in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert not [kind for kind in cycles if kind.__module__.startswith("warmlane.")]
