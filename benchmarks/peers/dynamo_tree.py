"""The released `RadixTree` of ai-dynamo-runtime under the load of the index benchmark.

Runs in the peer's own venv: `python dynamo_tree.py BLOCKS PROMPT_BLOCKS REPLICAS QUERIES SEED`.
Prints one JSON line. CPU time is that of the whole process, since the tree runs on a thread of its
own. Events are encoded before the clock starts; a look-up takes a Python list, as its face does.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import index_load
from dynamo._core import RadixTree

EVENT_BLOCKS = 64


def events(keys: list[int]) -> list[bytes]:
    """Stored-events of EVENT_BLOCKS blocks each that hold the chain; block and local hash alike."""
    result = []
    for start in range(0, len(keys), EVENT_BLOCKS):
        part = keys[start : start + EVENT_BLOCKS]
        data = {
            "parent_hash": keys[start - 1] if start else None,
            "blocks": [{"block_hash": key, "tokens_hash": key} for key in part],
        }
        result.append(json.dumps({"event_id": start, "data": {"stored": data}}).encode())
    return result


def main() -> None:
    blocks, prompt_blocks, replicas, queries, seed = (int(value) for value in sys.argv[1:])
    tree, stored, distinct, spent = RadixTree(), 0, 0, 0.0
    chains: list[list[int]] = []
    for prompt, holders in index_load.prompts(prompt_blocks, replicas, seed):
        keys = [key >> 1 for key in prompt]  # its JSON hashes are signed in places: 63 bits
        chains.append(keys)
        distinct += prompt_blocks - index_load.FAMILY_BLOCKS
        for replica, depth in zip(holders, index_load.DEPTHS, strict=True):
            part = keys[: int(prompt_blocks * depth)]
            frames = events(part)
            start = time.process_time()
            for frame in frames:
                tree.apply_event(replica, frame)
            tree.find_matches([1])  # waits for its thread
            spent += time.process_time() - start
            stored += len(part)
        if distinct >= blocks:
            break
    source, samples, found = random.Random(seed), [], 0
    for _ in range(9):
        asked = [source.choice(chains) for _ in range(queries)]
        start = time.process_time()
        for keys in asked:
            found = max(found, max(tree.find_matches(keys).scores.values()))
        samples.append((time.process_time() - start) / queries)
    print(
        json.dumps(
            {
                "version": importlib.metadata.version("ai-dynamo-runtime"),
                "event_s_per_block": spent / stored,
                "match_s": statistics.median(samples),
                "complete": found == prompt_blocks,
            }
        )
    )


if __name__ == "__main__":
    main()
