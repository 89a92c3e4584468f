"""Each engine's numbers, from recorded scrapes (vLLM) and documented text (the others)."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from warmlane.router.feeds.dialects import BY_NAME, DIALECTS, Reading, detect, read
from warmlane.router.types import LoadSnapshot

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"


def recorded(name: str) -> bytes:
    return gzip.decompress((GOLDEN / f"{name}.txt.gz").read_bytes())


def reading(text: bytes, rank: int | None = None) -> Reading:
    dialect = detect(text)
    assert dialect is not None
    found = read(text, dialect, 12.5, rank)
    assert found is not None
    return found


def test_vllm_busy() -> None:
    found = reading(recorded("vllm-0.32.0-main-busy"))
    assert found.dialect == "vllm"
    assert found.epoch == 1795344201.855892
    assert found.snapshot == LoadSnapshot(
        taken_at=12.5,
        waiting=8,
        running=4,
        kv_usage=0.20125786163522008,
        block_size=32,
        num_blocks=160,
        prefix_queries=17356,
        prefix_hits=1344,
        max_lora=2,
    )


def test_vllm_of_an_older_release() -> None:
    load = reading(recorded("vllm-0.28.0-block16-busy")).snapshot
    assert (load.waiting, load.running, load.block_size, load.num_blocks) == (8, 4, 16, 320)


def test_vllm_idle_and_asleep_differ_in_one_flag() -> None:
    idle = reading(recorded("vllm-0.32.0-main-idle")).snapshot
    asleep = reading(recorded("vllm-0.32.0-main-asleep")).snapshot
    assert (idle.waiting, idle.running, idle.asleep) == (0, 0, False)
    assert (asleep.waiting, asleep.running, asleep.asleep) == (0, 0, True)


def test_vllm_adapters_come_from_the_newest_series() -> None:
    text = recorded("vllm-0.32.0-main-lora-busy")
    assert reading(text).snapshot.running_adapters == {"lora-0", "lora-1"}
    newer = (
        b'vllm:lora_requests_info{max_lora="2",running_lora_adapters="lora-1",'
        b'waiting_lora_adapters=""} 1.8e+09\n'
    )
    load = reading(text + newer).snapshot
    assert load.running_adapters == {"lora-1"}
    assert not load.waiting_adapters
    assert load.max_lora == 2


def test_vllm_ranks() -> None:
    text = recorded("vllm-0.32.0-dp2")
    text = text.replace(
        b'vllm:num_requests_waiting{engine="1",model_name="tiny"} 0.0',
        b'vllm:num_requests_waiting{engine="1",model_name="tiny"} 3.0',
    )
    whole, first, second = (reading(text, rank).snapshot for rank in (None, 0, 1))
    assert (whole.num_blocks, first.num_blocks, second.num_blocks) == (320, 160, 160)
    assert (whole.waiting, first.waiting, second.waiting) == (3, 0, 3)
    assert whole.prefix_queries == (first.prefix_queries or 0) + (second.prefix_queries or 0)


def test_vllm_names_before_0_12() -> None:
    text = (
        b"# TYPE vllm:num_requests_running gauge\n"
        b'vllm:num_requests_running{model_name="m"} 2.0\n'
        b'vllm:num_requests_waiting{model_name="m"} 1.0\n'
        b'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\n'
        b'vllm:gpu_prefix_cache_queries_total{model_name="m"} 100.0\n'
        b'vllm:gpu_prefix_cache_hits_total{model_name="m"} 40.0\n'
        b'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n'
    )
    load = reading(text).snapshot
    assert (load.kv_usage, load.prefix_queries, load.prefix_hits) == (0.5, 100, 40)
    assert (load.block_size, load.num_blocks, load.max_lora) == (16, None, None)


SGLANG = b"""\
# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="llama"} 8.128902e+06
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device",model_name="llama"} 60000.0
sglang:cached_tokens_total{cache_source="host",model_name="llama"} 1000.0
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="llama",pp_rank="0",tp_rank="0"} 0.28
sglang:token_usage{engine_type="unified",model_name="llama",pp_rank="0",tp_rank="1"} 0.28
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="llama",pp_rank="0",tp_rank="0"} 161.0
sglang:num_running_reqs{engine_type="unified",model_name="llama",pp_rank="0",tp_rank="1"} 161.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="llama",pp_rank="0",tp_rank="0"} 2826.0
sglang:num_queue_reqs{engine_type="unified",model_name="llama",pp_rank="0",tp_rank="1"} 2826.0
"""


@pytest.mark.parametrize(
    "capacity",
    [
        b'sglang:page_size{tp_rank="0"} 64.0\nsglang:num_pages{tp_rank="0"} 11147.0\n',
        b'sglang:cache_config_info{num_pages="11147",page_size="64"} 1.0\n',
    ],
    ids=["gauges of 0.5.11", "labels before"],
)
def test_sglang(capacity: bytes) -> None:
    found = reading(SGLANG + capacity)
    assert found.dialect == "sglang"
    assert found.snapshot == LoadSnapshot(
        taken_at=12.5,
        waiting=2826,
        running=161,  # tensor-parallel ranks repeat it
        kv_usage=0.28,
        block_size=64,
        num_blocks=11147,
        prefix_queries=8128902,
        prefix_hits=61000,
    )


TRTLLM = b"""\
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{engine_type="trtllm",model_name="llama"} 3.0
trtllm_num_requests_waiting{engine_type="trtllm",model_name="llama"} 5.0
trtllm_kv_cache_utilization{engine_type="trtllm",model_name="llama"} 0.62
trtllm_kv_cache_tokens_per_block{engine_type="trtllm",model_name="llama"} 32.0
trtllm_kv_cache_max_blocks{engine_type="trtllm",model_name="llama"} 6239.0
trtllm_kv_cache_reused_blocks_total{engine_type="trtllm",model_name="llama"} 75.0
trtllm_kv_cache_missed_blocks_total{engine_type="trtllm",model_name="llama"} 25.0
"""


def test_trtllm_serve_counts_blocks_and_we_count_tokens() -> None:
    found = reading(TRTLLM)
    assert found.dialect == "trtllm"
    assert found.snapshot == LoadSnapshot(
        taken_at=12.5,
        waiting=5,
        running=3,
        kv_usage=0.62,
        block_size=32,
        num_blocks=6239,
        prefix_queries=3200,
        prefix_hits=2400,
    )
    assert BY_NAME["trtllm"].paths[0] == "/prometheus/metrics"


TRITON = b"""\
# HELP nv_trt_llm_request_metrics TRT LLM request metrics
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="context",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 7
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm"} 1560
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm"} 6240
"""


def test_triton_with_and_without_the_fraction() -> None:
    found = reading(TRITON)
    assert found.dialect == "triton"
    load = found.snapshot
    assert (load.waiting, load.running, load.kv_usage) == (2, 7, 0.25)
    assert (load.block_size, load.num_blocks, load.prefix_queries) == (64, 6240, None)
    newer = b'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"} 0.5\n'
    assert reading(TRITON + newer).snapshot.kv_usage == 0.5


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"python_info 1\n",
        b"vllm:\n",
        b"vllm:num_requests_running NaN\nvllm:num_requests_waiting x\n",
        b'{"json": ["trtllm_"]}\n',
    ],
)
def test_a_text_without_queue_and_batch_is_no_reading(text: bytes) -> None:
    dialect = detect(text)
    assert dialect is None or read(text, dialect, 0.0) is None


def test_values_are_held_in_their_range() -> None:
    load = reading(
        b"vllm:num_requests_running -3\nvllm:num_requests_waiting 1e300\n"
        b'vllm:kv_cache_usage_perc 17\nvllm:cache_config_info{block_size="0",'
        b'num_gpu_blocks="99999999999999"} 1\n'
    ).snapshot
    assert (load.running, load.kv_usage, load.block_size, load.num_blocks) == (0, 1.0, None, None)


def test_dialects_are_told_apart_by_their_marker() -> None:
    assert len({dialect.marker for dialect in DIALECTS}) == len(DIALECTS)
    assert set(BY_NAME) == {"vllm", "sglang", "trtllm", "triton"}
