"""A sans-I/O model of one vLLM replica on a clock that the caller owns.

    engine.add(sequence, now)        a request arrives
    seconds = engine.begin_step(now) schedules a step; None when there is nothing to run
    output = engine.end_step(now)    the step's end: new tokens, finished sequences, cache events

The scheduler follows vLLM V1 (`v1/core/sched/scheduler.py`): running sequences first, in order,
then waiting ones first come first served, under a budget of tokens per step (chunked prefill);
a sequence enters only when its whole prompt fits (scheduler_reserve_full_isl); when a running one
cannot get a block the last running one is preempted, recomputes later from what is still cached,
and nobody enters in that step. A prefix hit covers full blocks and at most all tokens but one.
Blocks are told as stored when they are scheduled to be filled, so equal prompts in flight share.

A prompt is named by the keys of its full blocks (any 64-bit ids where equal means equal prefix):
token hashes in the server, block ids of a trace in a replay. Nothing here reads a clock, makes a
random choice or does I/O. Cost: about 1 us a running sequence and step, 0.3 us a block of a prompt.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence as SequenceOf

import msgspec

from warmlane.router.sim.blocks import BlockPool
from warmlane.router.sim.timing import Timing

ADAPTER_STEP = 0.035  # a step takes this much longer per distinct adapter (rank 16)
ADAPTER_LOAD_S = 0.005  # an adapter of 84 MB from host memory at 20 GB/s


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of the modelled replica, named as vLLM names them where it has a name.

    blocks: num_gpu_blocks, of which one is the null block. max_loras: adapters in one batch.
    tier_blocks: room of a slower tier that takes what is evicted; tier_token_s: to load a token.
    """

    timing: Timing
    blocks: int
    block_size: int = 16
    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192
    max_loras: int = 1
    tier_blocks: int = 0
    tier_token_s: float = 0.0
    events: bool = False


class Sequence:
    """One prompt and its answer inside the engine.

    prompt: tokens of the prompt; output: tokens to generate (0: a pooling request, done after
    prefill); keys: block keys of the full blocks of prompt and output, of which those of the
    output may be missing (such blocks are not cached); tokens: ids of prompt and output, needed
    only where events carry them. cached: prompt tokens that the first admission took from the
    cache, -1 before it. reason: "" while alive, then "stop", "length" or "abort".
    """

    __slots__ = (
        "adapter",
        "arrived",
        "blocks",
        "cached",
        "computed",
        "finish",
        "finished_at",
        "first_token_at",
        "keys",
        "output",
        "owner",
        "preemptions",
        "produced",
        "prompt",
        "read_cache",
        "reason",
        "scheduled_at",
        "stored",
        "tokens",
    )

    def __init__(
        self,
        prompt: int,
        output: int,
        keys: SequenceOf[int],
        *,
        tokens: array[int] | None = None,
        adapter: str = "",
        read_cache: bool = True,
        finish: str = "length",
        owner: object = None,
    ) -> None:
        self.prompt = prompt
        self.output = output
        self.keys = keys
        self.tokens = tokens
        self.adapter = adapter
        self.read_cache = read_cache
        self.finish = finish
        self.owner = owner
        self.blocks: list[int] = []
        self.cached = -1
        self.computed = 0
        self.produced = 0
        self.stored = 0
        self.preemptions = 0
        self.reason = ""
        self.arrived = 0.0
        self.scheduled_at = -1.0
        self.first_token_at = -1.0
        self.finished_at = -1.0


class Stored(msgspec.Struct, frozen=True):
    """Blocks first..last of a sequence are in the cache now."""

    sequence: Sequence
    first: int
    last: int


class Removed(msgspec.Struct, frozen=True):
    """The block with this key was handed out again."""

    key: int


class Cleared(msgspec.Struct, frozen=True):
    """The whole cache was reset."""


Event = Stored | Removed | Cleared


class StepOutput(msgspec.Struct, frozen=True):
    """What a step brought: sequences with one more token, those that ended, cache events."""

    advanced: list[Sequence]
    finished: list[Sequence]
    events: list[Event]


class Counters(msgspec.Struct):
    """Totals since the start, in tokens where the name does not say otherwise."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    tier_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0  # times
    steps: int = 0
    busy_s: float = 0.0


class Engine:
    """Scheduler and cache of one replica. Not thread-safe; one owner drives it."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.blocks, config.tier_blocks)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.counters = Counters()
        self.deferred = 0  # of the waiting, those that wait for an adapter slot
        self.adapters: list[str] = []  # resident adapters, least recently used first
        self._step: list[tuple[Sequence, int]] | None = None
        self._events: list[Event] = []
        self._fetching = 0.0  # seconds that loads from the tier add to the step

    @property
    def stepping(self) -> bool:
        """Between begin_step and end_step."""
        return self._step is not None

    @property
    def context_tokens(self) -> int:
        """Tokens that fit in the cache: the longest prompt plus answer that can ever run."""
        return self.pool.usable * self.config.block_size

    def add(self, sequence: Sequence, now: float) -> None:
        """A request arrives. ValueError when it could never run."""
        if sequence.prompt < 1:
            raise ValueError("an empty prompt")
        if sequence.prompt + sequence.output > self.context_tokens:
            total = f"{sequence.prompt} + {sequence.output}"
            raise ValueError(f"{total} tokens exceed the cache of {self.context_tokens}")
        sequence.arrived = now
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence, now: float) -> None:
        """The client left or the engine stops: blocks are free at once."""
        if sequence.reason:
            return
        if sequence in self.running:
            self.running.remove(sequence)
            self.pool.release(sequence.blocks)
        else:
            self.waiting.remove(sequence)
        sequence.blocks = []
        sequence.reason = "abort"
        sequence.finished_at = now

    def reset_cache(self) -> bool:
        """Forget the cache unless a block is held; the event travels with the next step."""
        done = self.pool.clear()
        if done and self.config.events:
            self._events.append(Cleared())
        return done

    def begin_step(self, now: float) -> float | None:
        """Schedule the next step. Returns its length in seconds, or None when nothing can run."""
        assert self._step is None, "a step is under way"
        if not self.running and not self.waiting:
            return None
        step: list[tuple[Sequence, int]] = []
        budget, preempted = self._schedule_running(step)
        loading, self.deferred, self._fetching = 0, 0, 0.0
        if self.waiting and not preempted:
            loading = self._admit(step, budget, now)
        if not step:
            return None
        self._step = step
        loading_s = loading * ADAPTER_LOAD_S + self._fetching * self.config.timing.scale
        seconds = self._seconds(step) + loading_s
        self.counters.steps += 1
        self.counters.busy_s += seconds
        return seconds

    def end_step(self, now: float) -> StepOutput:
        """The step that begin_step scheduled has ended at `now`."""
        step, self._step = self._step, None
        assert step is not None, "no step is under way"
        advanced: list[Sequence] = []
        finished: list[Sequence] = []
        for sequence, count in step:
            if sequence.reason:
                continue
            sequence.computed += count
            if sequence.computed < sequence.prompt + sequence.produced:
                continue
            if sequence.first_token_at < 0:
                sequence.first_token_at = now
                self.counters.prompt_tokens += sequence.prompt
            if sequence.output:
                sequence.produced += 1
                advanced.append(sequence)
            if sequence.produced >= sequence.output:
                sequence.reason = sequence.finish
                sequence.finished_at = now
                self.pool.release(sequence.blocks)
                sequence.blocks = []
                finished.append(sequence)
        if finished:
            self.running = [sequence for sequence in self.running if not sequence.reason]
        self.counters.generated_tokens += len(advanced)
        events, self._events = self._events, []
        return StepOutput(advanced, finished, events)

    def _schedule_running(self, step: list[tuple[Sequence, int]]) -> tuple[int, bool]:
        """Give running sequences their tokens; preempt from the end when blocks run out."""
        budget = self.config.max_num_batched_tokens
        size = self.config.block_size
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            count = min(sequence.prompt + sequence.produced - sequence.computed, budget)
            end = sequence.computed + count
            missing = (end + size - 1) // size - len(sequence.blocks)
            while missing > self.pool.free:
                preempted = True
                if self._preempt() is sequence:
                    return budget, preempted
            if missing > 0:
                self._grow(sequence, missing)
            if end // size > sequence.stored:
                self._store(sequence, end // size)
            step.append((sequence, count))
            budget -= count
            index += 1
        return budget, preempted

    def _preempt(self) -> Sequence:
        """The last running sequence gives its blocks back and starts over, first in the queue."""
        victim = self.running.pop()
        self.pool.release(victim.blocks)
        victim.blocks = []
        victim.computed = 0
        victim.stored = 0
        victim.preemptions += 1
        self.counters.preemptions += 1
        self.waiting.appendleft(victim)
        return victim

    def _admit(self, step: list[tuple[Sequence, int]], budget: int, now: float) -> int:
        """Let waiting sequences in while everything fits. Returns adapters that must be loaded."""
        in_batch = {sequence.adapter for sequence, _ in step if sequence.adapter}
        skipped: list[Sequence] = []
        loading = 0
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            sequence = self.waiting[0]
            adapter = sequence.adapter
            if adapter and adapter not in in_batch and len(in_batch) >= self.config.max_loras:
                skipped.append(self.waiting.popleft())
                continue
            count = self._enter(sequence, budget, now)
            if count == 0:
                break
            self.waiting.popleft()
            self.running.append(sequence)
            step.append((sequence, count))
            budget -= count
            if adapter:
                in_batch.add(adapter)
                loading += self._use_adapter(adapter)
        self.waiting.extendleft(reversed(skipped))
        self.deferred = len(skipped)
        return loading

    def _enter(self, sequence: Sequence, budget: int, now: float) -> int:
        """Blocks for a waiting sequence: hits, then new ones. Returns its tokens in this step."""
        size, pool = self.config.block_size, self.pool
        total = sequence.prompt + sequence.produced
        hits: list[int] = []
        if sequence.read_cache:
            hits = pool.lookup(sequence.keys, (total - 1) // size)
        idle_hits = pool.idle(hits)
        if (total + size - 1) // size - len(hits) > pool.free - idle_hits:
            return 0
        fetched = 0
        if sequence.read_cache:
            fetched = pool.lookup_tier(sequence.keys, len(hits), (total - 1) // size)
            self._fetching += fetched * size * self.config.tier_token_s
        cached = (len(hits) + fetched) * size
        if sequence.preemptions == 0:
            # vLLM counts lookups of preempted requests apart
            self.counters.prefix_queries += total
            self.counters.prefix_hits += len(hits) * size
            self.counters.tier_hits += fetched * size
            sequence.cached = cached
            sequence.scheduled_at = now
        pool.take(hits)
        sequence.blocks = hits
        sequence.stored = len(hits)
        sequence.computed = cached
        count = min(total - cached, budget)
        end = cached + count
        self._grow(sequence, (end + size - 1) // size - len(hits))
        if end // size > sequence.stored:
            self._store(sequence, end // size)
        return count

    def _grow(self, sequence: Sequence, count: int) -> None:
        removed: list[int] = []
        sequence.blocks.extend(self.pool.allocate(count, removed))
        if removed and self.config.events:
            self._events.extend(map(Removed, removed))

    def _store(self, sequence: Sequence, full: int) -> None:
        """Blocks up to `full` will be full after this step: others may hit them from now on."""
        first = sequence.stored
        last = min(full, len(sequence.keys))
        if last <= first:
            return
        keys, blocks, store = sequence.keys, sequence.blocks, self.pool.store
        for index in range(first, last):
            store(blocks[index], keys[index])
        sequence.stored = last
        if self.config.events:
            self._events.append(Stored(sequence, first, last))

    def _use_adapter(self, adapter: str) -> int:
        """1 when the adapter had to be loaded into a slot, 0 when it was there."""
        missing = adapter not in self.adapters
        if not missing:
            self.adapters.remove(adapter)
        self.adapters.append(adapter)
        if len(self.adapters) > self.config.max_loras:
            del self.adapters[0]
        return int(missing)

    def _seconds(self, step: list[tuple[Sequence, int]]) -> float:
        prefill = decodes = context = 0
        pairs = 0.0
        adapters = set()
        for sequence, count in step:
            if count == 1 and sequence.computed >= sequence.prompt:
                decodes += 1
                context += sequence.computed
            else:
                prefill += count
                pairs += count * (sequence.computed + count / 2)
            if sequence.adapter:
                adapters.add(sequence.adapter)
        seconds = self.config.timing.step_s(prefill, pairs, decodes, context, len(step))
        return seconds * (1.0 + ADAPTER_STEP * len(adapters))
