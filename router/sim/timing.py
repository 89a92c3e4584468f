"""How long one step of a replica takes: a linear model with published constants.

    t = t0 + max(W, g m) + r m + A + k K + p B

m new tokens in the step, K the sum of decode context lengths, B sequences, A = q * the sum over
prefill chunks of n (ctx + n / 2). t0 is the fixed cost of a step (launches, CPU, sampler), W reads
the weights once, g is the compute of one token, r its all-reduce, q the attention of one
query-key pair, k the read of one cached token. In a step that also prefills, the K term costs
about 1.15 times as much (seen on real kernels: decodes next to a prefill chunk lose cache reuse).

The constants of PRESETS come from public kernel tables of vLLM (bf16, 90 % of the memory for the
engine): the GEMM, attention and all-reduce times of the aiconfigurator release for H100, H200 and
A100, and the profiles of LLMServingSim for the RTX cards. tests/sim/test_timing.py compares the
model with runs of real engines.
"""

from __future__ import annotations

import msgspec


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Step-time constants of one model on one kind of replica.

    Times are seconds. kv_tokens: KV cache size in tokens. step_tokens, max_seqs: vLLM's default
    max_num_batched_tokens and max_num_seqs on that device.
    scale: how many real prompt tokens one token of the engine stands for. Workloads with prompts
        shrunk by that factor keep the prefill and KV times of the full-length ones.
    """

    t0_s: float
    weights_s: float
    token_s: float
    reduce_s: float = 0.0
    pair_s: float
    kv_s: float
    sequence_s: float = 8e-6
    mixed: float = 1.15
    kv_tokens: int
    step_tokens: int = 8192
    max_seqs: int = 1024
    scale: float = 1.0

    def step_s(
        self, prefill: int, pairs: float, decodes: int, context: int, sequences: int
    ) -> float:
        """Seconds of one step.

        prefill: prompt tokens computed; pairs: sum over chunks of n (ctx + n / 2);
        decodes: sequences that get one more token; context: sum of their cached tokens.
        """
        scale = self.scale
        tokens = prefill * scale + decodes
        compute = self.token_s * tokens
        kv_s = self.kv_s * (self.mixed if prefill and decodes else 1.0)
        return (
            self.t0_s
            + (compute if compute > self.weights_s else self.weights_s)
            + self.reduce_s * tokens
            + self.pair_s * scale * scale * pairs
            + kv_s * scale * context
            + self.sequence_s * sequences
        )

    def prefill_s(self, prompt: int, cached: int = 0) -> float:
        """Seconds until the first token of a lone request on an idle replica."""
        seconds, done = 0.0, cached
        chunk_limit = max(1, int(self.step_tokens / self.scale))
        while done < prompt:
            chunk = min(chunk_limit, prompt - done)
            seconds += self.step_s(chunk, chunk * (done + chunk / 2), 0, 0, 1)
            done += chunk
        return seconds


def _preset(
    t0_ms: float,
    weights_ms: float,
    token_us: float,
    pair_ns: float,
    kv_ns: float,
    kv_tokens: int,
    reduce_us: float = 0.0,
    step_tokens: int = 8192,
    max_seqs: int = 1024,
) -> Timing:
    return Timing(
        t0_s=t0_ms * 1e-3,
        weights_s=weights_ms * 1e-3,
        token_s=token_us * 1e-6,
        reduce_s=reduce_us * 1e-6,
        pair_s=pair_ns * 1e-9,
        kv_s=kv_ns * 1e-9,
        kv_tokens=kv_tokens,
        step_tokens=step_tokens,
        max_seqs=max_seqs,
    )


# The all-reduce share r of a token is what exceeds the compute of a single-GPU replica divided by
# the number of GPUs (Qwen3-32B: 83.9 us on one H200; Llama-3.1-70B: 176 us at 800 TFLOP/s).
# A100: vLLM's API server takes a step budget of 2048 tokens and 256 sequences there.
PRESETS: dict[str, Timing] = {
    "llama-3.1-8b/h100": _preset(4.0, 4.8, 19.3, 0.89, 43.0, 392_000),
    "llama-3.1-8b/h200": _preset(3.9, 3.4, 19.3, 0.90, 30.5, 811_000),
    "llama-3.1-8b/a100": _preset(4.3, 9.2, 52.9, 3.05, 80.9, 392_000, 0, 2048, 256),
    "qwen3-32b/2xh100": _preset(5.2, 10.8, 42.0, 1.78, 43.0, 265_000, 8.9),
    "qwen3-32b/4xh100": _preset(5.1, 5.4, 21.0, 0.89, 21.5, 780_000, 12.4),
    "qwen3-32b/h200": _preset(4.7, 15.4, 83.9, 3.58, 61.0, 217_000),
    "qwen3-32b/2xh200": _preset(5.1, 7.7, 42.0, 1.79, 30.5, 684_000, 9.2),
    "qwen3-32b/2xa100": _preset(5.4, 20.5, 115.0, 6.10, 80.9, 265_000, 15.7, 2048, 256),
    "llama-3.1-70b/4xh100": _preset(5.6, 11.8, 44.1, 1.11, 26.9, 393_000, 26.6),
    "llama-3.1-70b/8xh100": _preset(5.5, 5.9, 22.1, 0.56, 13.4, 1_217_000, 24.6),
    "llama-3.1-70b/4xh200": _preset(5.5, 8.5, 44.1, 1.12, 19.1, 1_063_000, 26.5),
    "llama-3.1-70b/4xa100": _preset(5.7, 22.5, 124.0, 3.81, 50.6, 393_000, 44.0, 2048, 256),
}

DEFAULT_PRESET = "llama-3.1-8b/h100"
