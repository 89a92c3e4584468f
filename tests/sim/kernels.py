"""Step-time constants from kernel profiles of a real engine (LLMServingSim's tables)."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from warmlane.router.sim.timing import Timing

# Calls per layer; what is not named runs once a step.
PER_LAYER = {
    **dict.fromkeys(("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "act_fn"), 1),
    **dict.fromkeys(("rotary_emb", "qk_norm"), 1),
    "layernorm": 2,
}


def rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") as lines:
        return list(csv.DictReader(lines))


def dense_s(folder: Path, run: str, layers: int) -> Callable[[int], float]:
    """Seconds of all matrix products and element-wise kernels of a step with m tokens."""
    tables: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows(folder / f"{run}.kernel_dense.csv.gz"):
        tokens, times = tables.setdefault(row["layer"], ([], []))
        tokens.append(int(row["tokens"]))
        times.append(float(row["time_us"]))
    return lambda m: sum(
        1e-6 * (layers if name in PER_LAYER else 1) * PER_LAYER.get(name, 1) * np.interp(m, *table)
        for name, table in tables.items()
    )


def fit(
    folder: Path, run: str, *, layers: int, blocks: int, seqs: int, cpu_s: float, reduce_s: float
) -> Timing:
    """Fit the model's constants to the tables; cpu_s and reduce_s are not in them.

    reduce_s: one token's all-reduces over all layers.
    """
    dense = dense_s(folder, run, layers)
    heads = {
        int(row["sequences"]): float(row["time_us"]) * 1e-6
        for row in rows(folder / f"{run}.kernel_per_sequence.csv.gz")
        if row["layer"] == "lm_head"
    }
    decode: list[tuple[float, float]] = []
    prefill: list[tuple[float, float]] = []
    for row in rows(folder / f"{run}.kernel_attention.csv.gz"):
        chunk, past, count, context = (
            int(row[name]) for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
        )
        seconds = float(row["time_us"]) * 1e-6 * layers
        if chunk == 0 and count >= 16 and context >= 256:
            decode.append((count * context, seconds))
        if count == 0 and chunk >= 512:
            prefill.append((chunk * (past + chunk / 2), seconds))
    kv_s, floor_s = np.polyfit(*np.array(decode).T, 1, w=1 / np.array(decode)[:, 1])
    pair_s, _ = np.polyfit(*np.array(prefill).T, 1, w=1 / np.array(prefill)[:, 1])
    return Timing(
        t0_s=cpu_s + heads[32] + max(0.0, float(floor_s)),
        weights_s=dense(32),
        token_s=dense(2048) / 2048,
        reduce_s=reduce_s,
        pair_s=float(pair_s),
        kv_s=float(kv_s),
        kv_tokens=blocks * 16,
        step_tokens=2048,
        max_seqs=seqs,
    )


def run_log(folder: Path, run: str) -> list[dict[str, Any]]:
    with gzip.open(folder / f"{run}.vllm_requests.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]
