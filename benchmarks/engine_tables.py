"""Step-time constants from public kernel tables of vLLM, for `bench_engine_model`.

`fit` reads the whole profile of one machine and model (LLMServingSim); `dense` makes the constants
of a dense model on any number of H100 or H200 from its shape and the rates that the aiconfigurator
tables of those GPUs show.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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


class Gpu(NamedTuple):
    """What a GPU's kernels reach in the public tables (vLLM's own; rates a second, bytes).

    gemm, gemm_flop: of matrix products, bounded by memory (up to 128 tokens) and by compute
    (from 512 on, element-wise kernels included). attention_flop: prefill attention from 2,048
    tokens on. kv: reading of cached tokens. memory: of the device.
    """

    gemm: float
    gemm_flop: float
    attention_flop: float
    kv: float
    memory: float


GPUS = {
    "h100_sxm": Gpu(2.9e12, 743e12, 590e12, 3.05e12, 80e9),
    "h200_sxm": Gpu(4.05e12, 743e12, 585e12, 4.30e12, 141e9),
}


class Shape(NamedTuple):
    """A dense model: layers, width, heads, heads of KV, all of 128; parameters in its layers."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    parameters: float
    vocabulary: int


SHAPES = {
    "Qwen/Qwen3-32B": Shape(64, 5120, 64, 8, 31.2e9, 151_936),
    "meta-llama/Llama-3.1-70B": Shape(80, 8192, 64, 8, 68.5e9, 128_256),
}
HOST_S = 3e-3  # a step's CPU, sampler and detokeniser: fitted by hand to these tables
LAYER_S, REDUCE_S = 20e-6, 5e-6  # launches of a layer; an all-reduce of a few tokens
# A token's way out through detokeniser and HTTP, which a client's TPOT contains and an engine's own
# log does not: inference-sim's published fit.
SERVED_TOKEN_S = 46e-6
MIXED = 1.15  # fitted by hand: attention of decodes beside a prefill
RESERVE = 4.5e9  # bytes a GPU for activations and graphs
LARGE = 8192  # tokens of a step for which an all-reduce is bounded by bandwidth


def reduce_s(folder: Path, gpu: str, count: int, size_bytes: float) -> float:
    """An all-reduce over `count` GPUs (CUDA graph), seconds."""
    if count == 1:
        return 0.0
    table = [
        (float(row["message_size"]), float(row["latency_ms"]) * 1e-3)
        for row in rows(folder / f"kernels_{gpu}_allreduce_graph.csv.gz")
        if int(row["num_gpus"]) == count
    ]
    return float(np.interp(size_bytes, *zip(*sorted(table), strict=True)))


def dense(folder: Path, model: str, gpu: str, count: int, weight_bytes: int) -> Timing:
    """The model's constants from shapes and kernel rates; weight_bytes 1: FP8, 2: bf16."""
    shape, rate = SHAPES[model], GPUS[gpu]
    head = shape.vocabulary * shape.width * 2 / count
    layers = shape.layers * (LAYER_S + (2 * REDUCE_S if count > 1 else 0.0))
    weights = shape.parameters * weight_bytes / count
    kv = 2 * shape.kv_heads * 128 * 2 * shape.layers / count
    room = 0.9 * rate.memory - weights - 2 * head - RESERVE
    reduce = reduce_s(folder, gpu, count, LARGE * shape.width * 2) / LARGE * 2 * shape.layers
    return Timing(
        t0_s=HOST_S + layers + head / rate.gemm,
        weights_s=weights / rate.gemm,
        token_s=2 * shape.parameters / count / rate.gemm_flop * (weight_bytes / 2),
        reduce_s=reduce,
        pair_s=4 * shape.heads * 128 * shape.layers / count / rate.attention_flop,
        kv_s=kv / rate.kv,
        sequence_s=SERVED_TOKEN_S,
        mixed=MIXED,
        kv_tokens=int(room / kv),
    )
