"""What each engine calls the numbers that routing needs: one table, one reader.

Sources: vLLM 0.11 to 0.33 from recorded scrapes; SGLang, TensorRT-LLM (`trtllm-serve`) and Triton's
TensorRT-LLM backend from their documentation and exporters. A missing family leaves its field at
its default: an engine that does not tell a number is not punished for it. Cost: about 0.1 ms for
80 KB of vLLM text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from warmlane.router.feeds.prom_text import Sample, label, samples
from warmlane.router.types import LoadSnapshot


class Source(NamedTuple):
    """Where one number stands. `families` are tried in order (newest name first).

    where: only samples with this label value. from_label: the number is a label's value (an "info"
    metric). times: multiply by this field of the same dialect (block counters into tokens).
    """

    families: tuple[bytes, ...] = ()
    where: tuple[bytes, str] | None = None
    from_label: bytes | None = None
    times_block_size: bool = False


class Dialect(NamedTuple):
    """One engine. `marker` begins a line of every scrape; `paths` are tried in order."""

    name: str
    marker: bytes
    paths: tuple[str, ...]
    waiting: Source
    running: Source
    kv_usage: Source
    kv_used_blocks: Source = Source()
    block_size: tuple[Source, ...] = ()
    num_blocks: tuple[Source, ...] = ()
    prefix_queries: tuple[Source, ...] = ()
    prefix_hits: tuple[Source, ...] = ()
    epoch: tuple[Source, ...] = ()  # changes when the engine restarts
    lora: bytes = b""
    sleep: bytes = b""
    rank_label: bytes = b""
    blocks_are_total: bool = False  # each rank's series tells the blocks of all ranks together
    shard_labels: tuple[bytes, ...] = ()  # ranks that all report the same number: only "0" counts


def _s(*families: str) -> Source:
    return Source(tuple(family.encode() for family in families))


_VLLM = Dialect(
    name="vllm",
    marker=b"vllm:",
    paths=("/metrics",),
    waiting=_s("vllm:num_requests_waiting"),
    running=_s("vllm:num_requests_running"),
    kv_usage=_s("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    block_size=(Source((b"vllm:cache_config_info",), from_label=b"block_size"),),
    num_blocks=(Source((b"vllm:cache_config_info",), from_label=b"num_gpu_blocks"),),
    prefix_queries=(_s("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),),
    prefix_hits=(_s("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),),
    epoch=(_s("vllm:prefix_cache_queries_created"), _s("process_start_time_seconds")),
    lora=b"vllm:lora_requests_info",
    sleep=b"vllm:engine_sleep_state",
    rank_label=b"engine",
    # Recorded with two ranks of 160 blocks each: both series say 320 (tests/golden/metrics).
    blocks_are_total=True,
)

# Counters of SGLang: prompt_tokens_total counts all prompt tokens, cached_tokens_total those from
# cache by source (device, host, storage). Every tensor-parallel rank repeats the gauges.
_SGLANG = Dialect(
    name="sglang",
    marker=b"sglang:",
    paths=("/metrics",),
    waiting=_s("sglang:num_queue_reqs"),
    running=_s("sglang:num_running_reqs"),
    kv_usage=_s("sglang:token_usage"),
    block_size=(
        _s("sglang:page_size"),  # 0.5.11 and later
        Source((b"sglang:cache_config_info",), from_label=b"page_size"),
    ),
    num_blocks=(
        _s("sglang:num_pages"),
        Source((b"sglang:cache_config_info",), from_label=b"num_pages"),
    ),
    prefix_queries=(_s("sglang:prompt_tokens_total"),),
    prefix_hits=(_s("sglang:cached_tokens_total"),),
    epoch=(_s("process_start_time_seconds"),),
    rank_label=b"dp_rank",
    shard_labels=(b"tp_rank", b"pp_rank", b"moe_ep_rank"),
)

# trtllm-serve answers JSON on /metrics and Prometheus text on a path of its own.
_TRTLLM = Dialect(
    name="trtllm",
    marker=b"trtllm_",
    paths=("/prometheus/metrics", "/metrics"),
    waiting=_s("trtllm_num_requests_waiting"),
    running=_s("trtllm_num_requests_running"),
    kv_usage=_s("trtllm_kv_cache_utilization"),
    block_size=(_s("trtllm_kv_cache_tokens_per_block"),),
    num_blocks=(_s("trtllm_kv_cache_max_blocks"),),
    prefix_queries=(
        Source(
            (b"trtllm_kv_cache_reused_blocks_total", b"trtllm_kv_cache_reused_blocks"),
            times_block_size=True,
        ),
        Source(
            (b"trtllm_kv_cache_missed_blocks_total", b"trtllm_kv_cache_missed_blocks"),
            times_block_size=True,
        ),
    ),
    prefix_hits=(
        Source(
            (b"trtllm_kv_cache_reused_blocks_total", b"trtllm_kv_cache_reused_blocks"),
            times_block_size=True,
        ),
    ),
    epoch=(_s("process_start_time_seconds"),),
)


def _triton(family: bytes, key: bytes, value: str) -> Source:
    return Source((family,), where=(key, value))


_BLOCKS = b"nv_trt_llm_kv_cache_block_metrics"
_TRITON = Dialect(
    name="triton",
    marker=b"nv_trt_llm_",
    paths=("/metrics",),
    waiting=_triton(b"nv_trt_llm_request_metrics", b"request_type", "waiting"),
    running=_triton(b"nv_trt_llm_request_metrics", b"request_type", "scheduled"),
    kv_usage=_triton(_BLOCKS, b"kv_cache_block_type", "fraction"),
    kv_used_blocks=_triton(_BLOCKS, b"kv_cache_block_type", "used"),  # before "fraction" existed
    block_size=(_triton(_BLOCKS, b"kv_cache_block_type", "tokens_per"),),
    num_blocks=(_triton(_BLOCKS, b"kv_cache_block_type", "max"),),
)

DIALECTS: Final = (_VLLM, _SGLANG, _TRTLLM, _TRITON)
BY_NAME: Final = {dialect.name: dialect for dialect in DIALECTS}


class Reading(NamedTuple):
    """One scrape, read. `epoch` is None or a value that changes when the engine restarts."""

    dialect: str
    snapshot: LoadSnapshot
    epoch: float | None


def detect(text: bytes) -> Dialect | None:
    """The dialect whose marker begins a line; a comment line counts too."""
    for dialect in DIALECTS:
        marker = dialect.marker
        if text.startswith(marker) or b"\n" + marker in text or b"# TYPE " + marker in text:
            return dialect
    return None


def read(text: bytes, dialect: Dialect, now: float, rank: int | None = None) -> Reading | None:
    """A load snapshot out of a scrape; None when neither queue nor batch is told.

    rank: data-parallel rank whose series count (None: the sum of all; their mean for kv_usage).
    """
    reader = _Reader(text, dialect, None if rank is None else str(rank))
    waiting = reader.total(dialect.waiting)
    running = reader.total(dialect.running)
    if waiting is None and running is None:
        return None
    block_size = reader.first(dialect.block_size, reader.greatest)
    num_blocks = reader.first(dialect.num_blocks, reader.blocks)
    max_lora, running_adapters, waiting_adapters = _adapters(text, dialect)
    snapshot = LoadSnapshot(
        taken_at=now,
        waiting=max(0.0, waiting or 0.0),
        running=max(0.0, running or 0.0),
        kv_usage=min(1.0, max(0.0, reader.kv_usage(num_blocks))),
        block_size=_positive(block_size),
        num_blocks=_positive(num_blocks),
        prefix_queries=reader.counters(dialect.prefix_queries, block_size),
        prefix_hits=reader.counters(dialect.prefix_hits, block_size),
        max_lora=max_lora,
        running_adapters=running_adapters,
        waiting_adapters=waiting_adapters,
        asleep=_asleep(reader, dialect),
    )
    return Reading(dialect.name, snapshot, reader.first(dialect.epoch, reader.greatest))


class _Reader:
    """Numbers of one text under one rank; each method is None when nothing is told."""

    __slots__ = ("dialect", "rank", "text")

    def __init__(self, text: bytes, dialect: Dialect, rank: str | None) -> None:
        self.text = text
        self.dialect = dialect
        self.rank = rank

    def values(self, source: Source) -> list[float]:
        for family in source.families:
            found = [s for s in samples(self.text, family) if self.counts(s, source.where)]
            if not found:
                continue
            if source.from_label is None:
                return [sample.value for sample in found]
            numbers = (_number(label(s.labels, source.from_label)) for s in found)
            return [number for number in numbers if number is not None]
        return []

    def counts(self, sample: Sample, where: tuple[bytes, str] | None) -> bool:
        labels, dialect = sample.labels, self.dialect
        if where is not None and label(labels, where[0]) != where[1]:
            return False
        if self.rank is not None and dialect.rank_label:
            rank = label(labels, dialect.rank_label)
            if rank is not None and rank != self.rank:
                return False
        return all(label(labels, name) in (None, "", "0") for name in dialect.shard_labels)

    def total(self, source: Source) -> float | None:
        values = self.values(source)
        return sum(values) if values else None

    def greatest(self, source: Source) -> float | None:
        values = self.values(source)
        return max(values) if values else None

    def mean(self, source: Source) -> float | None:
        values = self.values(source)
        return sum(values) / len(values) if values else None

    def first(
        self, sources: tuple[Source, ...], how: Callable[[Source], float | None]
    ) -> float | None:
        for source in sources:
            value = how(source)
            if value is not None:
                return value
        return None

    def blocks(self, source: Source) -> float | None:
        """Blocks of the rank in question, or of all ranks when none is named."""
        if not self.dialect.blocks_are_total:
            return self.total(source)
        greatest = self.greatest(source)
        if greatest is None or self.rank is None:
            return greatest
        return greatest // len(samples(self.text, source.families[0]))

    def counters(self, sources: tuple[Source, ...], block_size: float | None) -> float | None:
        """Sum of all sources, in tokens; None if one of them is not told."""
        result = 0.0
        for source in sources:
            value = self.total(source)
            if value is None or (source.times_block_size and not block_size):
                return None
            result += value * (block_size or 1.0) if source.times_block_size else value
        return result if sources else None

    def kv_usage(self, num_blocks: float | None) -> float:
        value = self.mean(self.dialect.kv_usage)
        if value is None and num_blocks:
            used = self.total(self.dialect.kv_used_blocks)
            value = None if used is None else used / num_blocks
        return value or 0.0


def _adapters(text: bytes, dialect: Dialect) -> tuple[int | None, frozenset[str], frozenset[str]]:
    """LoRA slots and adapters with requests. The value is the time of the last update, and every
    label set ever seen stays: the newest one is the truth."""
    none: frozenset[str] = frozenset()
    found = samples(text, dialect.lora) if dialect.lora else []
    if not found:
        return None, none, none
    labels = max(found, key=lambda sample: sample.value).labels
    max_lora = _number(label(labels, b"max_lora"))
    return (
        None if max_lora is None else int(max_lora),
        _names(label(labels, b"running_lora_adapters")),
        _names(label(labels, b"waiting_lora_adapters")),
    )


def _asleep(reader: _Reader, dialect: Dialect) -> bool:
    if not dialect.sleep:
        return False
    awake = reader.greatest(Source((dialect.sleep,), where=(b"sleep_state", "awake")))
    return awake == 0.0


def _names(text: str | None) -> frozenset[str]:
    return frozenset(name for part in (text or "").split(",") if (name := part.strip()))


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:  # "None": the engine has not decided yet
        return None


def _positive(value: float | None) -> int | None:
    return int(value) if value is not None and 1 <= value < 2**31 else None
