"""The recorded engines of tests/golden/kv_events, and how their requests are asked for."""

from __future__ import annotations

import base64
import gzip
import json
from array import array
from pathlib import Path
from typing import Any

from warmlane._core.hashing import root_key, token_keys
from warmlane._core.kv_events import Intake

GOLDEN = Path(__file__).parents[1] / "golden" / "kv_events"
# What makes an engine's KV cache empty without an event until its next step.
CLEARING = ("/reset_prefix_cache", "/pause", "/sleep")


def steps(name: str) -> list[dict[str, Any]]:
    with gzip.open(GOLDEN / f"{name}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def payload(batch: dict[str, Any]) -> bytes:
    return base64.b64decode(batch["payload"])


def predicted(intake: Intake, request: dict[str, Any], replica: int = 0) -> int:
    """Prompt tokens that the replica has cached, by the events so far."""
    prompt, size = request["prompt"], intake.block_size(replica)
    if not size:
        return 0
    adapter = "" if request["model"] in ("tiny", "hybrid") else request["model"]
    root = root_key("", adapter, request.get("cache_salt", ""))
    hits = array("i", [0] * 8)
    intake.tree.match_one_tier(token_keys(root, array("I", prompt), size), hits)
    # The engine computes the last token of a prompt in any case.
    return min(hits[replica], (len(prompt) - 1) // size) * size


def exception(request: dict[str, Any], *, clear_is_late: bool) -> str:
    """Why the engine's own count may differ from what its events say; "" if it must not."""
    if request.get("prompt_logprobs") is not None:
        return "prompt_logprobs"  # reads no cache
    if request.get("n", 1) > 1:
        return "n"  # the usage is that of the last sample, which hits the first one's blocks
    return "late clear" if clear_is_late else ""
