from array import array
from collections.abc import Sequence
from typing import Any

from typing_extensions import Buffer

NEVER: float

class Fleet:
    """Modelled replicas on one virtual clock.

    replicas: one mapping each with the constants of `sim.timing.Timing` (`t0_s`, `weights_s`,
    `token_s`, `reduce_s`, `pair_s`, `kv_s`, `sequence_s`, `mixed`, `scale`), `adapter_step` (share
    by which a step is longer per distinct adapter), `adapter_load_s`, and the arguments of the
    engine as vLLM names them: `blocks` (num_gpu_blocks, one of them the null block),
    `block_size`, `max_num_seqs`, `max_num_batched_tokens`, `max_loras`; if there is slower memory
    behind the cache, `tier_blocks` (takes what is evicted, least recently used leaves) and
    `tier_token_s` (to load a token from it, in the step that lets the request in).
    record: keep the keys of stored and removed blocks for `take_stored` and `take_removed`.

    Cost: 5 ns a sequence and step that only decodes, 50 ns otherwise, 20 ns a block of a prompt.
    Raises ValueError for constants out of range, MemoryError.
    """

    now: float
    slot: int
    def __init__(self, replicas: Sequence[dict[str, Any]], *, record: bool = False) -> None: ...
    def __len__(self) -> int: ...
    def add(
        self,
        slot: int,
        number: int,
        prompt: int,
        output: int,
        keys: Buffer,
        now: float,
        *,
        adapter: int = 0,
    ) -> None:
        """A request arrives at `now` (not before the clock).

        keys: uint64 keys of the full blocks of prompt and output; those of the output may be
        missing (such blocks are not cached). adapter 0: none. ValueError when it could never run.
        """

    def advance(self, limit: float) -> bool:
        """Run until something is noticed, at most until `limit`.

        True: at `now`, the replica `slot` brought `first_tokens` or `finished` (or, with `record`,
        cache events). False: nothing up to `limit`, where the clock stands now.
        """

    @property
    def first_tokens(self) -> list[int]:
        """Requests whose first token came with the last plan of `slot`."""

    @property
    def finished(self) -> list[tuple[int, int]]:
        """Requests that ended with it: (number, prompt tokens taken from the cache)."""

    def held(self, keys: Buffer, out: Buffer, *, tier_worth: float = 0.0) -> int:
        """Leading blocks of a chain (uint64) that each replica holds now, into `out` (int32).

        The greatest. What an index fed by the replicas' events without delay would answer. Blocks
        behind them in the tier count `tier_worth` each (0..1).
        """

    def take_stored(self, slot: int) -> array[int]:
        """Keys stored since the last call. Removals of the same plan come before them."""

    def take_removed(self, slot: int) -> array[int]:
        """Keys evicted since the last call, oldest first."""

    def set_speed(self, slot: int, factor: float) -> None:
        """From the next step on the replica is `factor` times as fast as it is now."""

    def fail(self, slot: int) -> list[int]:
        """The replica dies and comes back empty: the requests that it held."""

    def clear_cache(self, slot: int) -> bool:
        """Forget the cache; False while a block is in use."""

    def next_at(self, slot: int) -> float:
        """When its present plan ends; NEVER while it is idle."""

    def load(self, slot: int) -> tuple[int, int, float]:
        """Waiting, running, and the share of blocks in use."""

    def counters(self, slot: int) -> dict[str, float]:
        """Totals: prefix_queries, prefix_hits, tier_hits, prompt_tokens, generated_tokens (tokens),
        preemptions, steps, busy_s."""

def block_keys(runs: Sequence[tuple[int, int]], ratio: int, limit: int) -> array[int]:
    """Keys of the first `limit` blocks of a prompt whose trace blocks hold `ratio` of them each.

    runs: (first id, count) of consecutive ids of the trace. Equal ids give equal keys, mixed like
    hashes (SplitMix64). 2 ns a key.
    """

def _fail_after(n: int) -> None: ...
