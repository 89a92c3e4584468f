"""Exact views beside approximate ones: what decides for which replica, and what a burst sees."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
import pytest

from warmlane.router.config import Config, Index, PoolConfig
from warmlane.router.core import Router
from warmlane.router.exact import EXPECT_S, SETTLE_S
from warmlane.router.lane_exact import ExactLane, MixedView
from warmlane.router.types import Kind, LoadSnapshot, Outcome, ReplicaSpec, Request

pack = msgspec.msgpack.encode
PROMPT = list(range(1000, 1040))
MODEL = "m"


def stored(tokens: list[int], size: int = 4, *, first: int = 0, medium: str = "GPU") -> bytes:
    """Blocks of a prompt from block `first` on; the hash of a block is a number of its end."""
    count = len(tokens) // size
    names = [hash(tuple(tokens[: (i + 1) * size])) % 2**64 for i in range(count)]
    event = {
        "type": "BlockStored",
        "block_hashes": names[first:],
        "parent_block_hash": names[first - 1] if first else None,
        "token_ids": tokens[first * size : count * size],
        "block_size": size,
        "lora_id": None,
        "medium": medium,
        "lora_name": None,
    }
    return pack([0.0, [event], 0])


def removed(tokens: list[int], size: int = 4) -> bytes:
    """The same blocks leave, the last one first."""
    names = [hash(tuple(tokens[:end])) % 2**64 for end in range(len(tokens), 0, -size)]
    return pack([0.0, [{"type": "BlockRemoved", "block_hashes": names, "medium": "GPU"}], 0])


CLEARED = pack([0.0, [{"type": "AllBlocksCleared"}], 0])


class Fleet:
    """A router whose replicas' events are given by hand."""

    def __init__(self, replicas: int = 3, kv_events: str = "auto", **index: Any) -> None:
        specs = [ReplicaSpec(url=f"http://r{i}:8000", name=f"r{i}") for i in range(replicas)]
        pool = PoolConfig(replicas=specs, models=[MODEL], kv_events=kv_events)
        self.router = Router(Config(pools=[pool], index=Index(**index)))
        self.pool = self.router.pools["default"]
        lane = self.router.lanes["default"]
        assert isinstance(lane, ExactLane)
        self.view: MixedView = lane.mixed
        self.exact = self.view.exact
        self.now = 100.0

    def hear(self, slot: int, *payloads: bytes) -> None:
        if self.exact.why(slot) is None:
            self.exact.open(slot)
        for payload in payloads:
            self.exact.apply(slot, payload)
        self.exact.trust(slot)

    def request(self, tokens: list[int] | None = None, **more: Any) -> Request:
        ids = array("I", PROMPT if tokens is None else tokens).tobytes()
        return Request(kind=Kind.COMPLETIONS, model=MODEL, **{"tokens": ids, **more})

    def rows(self, **more: Any) -> dict[str, tuple[str, int]]:
        """Replica -> (view, hit tokens), by `explain`."""
        found = self.router.explain(self.request(**more), self.now)
        return {row.replica: (row.view, row.hit_tokens) for row in found.replicas}

    def send(self, slot: int, **more: Any) -> int:
        decision = self.router.decide(self.request(**more), self.now, 0)
        self.router.sent(decision.ticket, slot, self.now)
        return decision.ticket


def test_a_pool_without_events_has_a_plain_lane() -> None:
    router = Router(Config(pools=[PoolConfig(replicas=[ReplicaSpec(url="http://a:1")])]))
    assert not isinstance(router.lanes["default"], ExactLane)


def test_each_replica_has_its_own_view() -> None:
    fleet = Fleet()
    fleet.hear(0, stored(PROMPT[:24]))
    fleet.router.close(fleet.send(2), Outcome(), fleet.now)  # r2 is known by what was sent there
    fleet.hear(1)
    assert fleet.rows() == {
        "r0": ("exact", 24),
        "r1": ("exact", 0),
        "r2": ("approximate", 32),
    }
    decision = fleet.router.decide(fleet.request(), fleet.now, 0)
    assert decision.choices[0] == 2 and decision.view == "approximate"
    fleet.hear(2)
    decision = fleet.router.decide(fleet.request(), fleet.now, 0)
    assert (decision.choices[0], decision.view, decision.hit_tokens[0]) == (0, "exact", 24)
    assert decision.prompt_tokens == 40


def test_events_overrule_the_record_of_what_was_sent() -> None:
    """The engine evicted what was sent there; nobody but its events can know."""
    fleet = Fleet()
    fleet.router.close(fleet.send(0), Outcome(), fleet.now)
    fleet.now += SETTLE_S + 1
    fleet.router.maintain(fleet.now)
    fleet.hear(0)
    assert fleet.rows()["r0"] == ("exact", 0)
    fleet.exact.distrust(0, "a gap")
    assert fleet.rows()["r0"] == ("approximate", 32)
    assert fleet.exact.trust(0) and not fleet.exact.trust(0)


def test_a_hit_leaves_the_last_token_to_compute() -> None:
    fleet = Fleet()
    fleet.hear(0, stored(PROMPT))
    assert fleet.rows()["r0"] == ("exact", 36)
    assert fleet.rows(tokens=PROMPT[:4])["r0"] == ("exact", 0)
    assert fleet.rows(tokens=PROMPT[:5])["r0"] == ("exact", 4)
    assert fleet.rows(tokens=[])["r0"] == ("exact", 0)


def test_replicas_may_have_blocks_of_different_sizes() -> None:
    fleet = Fleet()
    fleet.hear(0, stored(PROMPT, 4))
    fleet.hear(1, stored(PROMPT, 16))
    assert {row[1] for row in fleet.rows().values()} == {36, 32, 0}


def test_slower_tiers_are_worth_less() -> None:
    fleet = Fleet(cpu_worth=0.5, disk_worth=0.25)
    fleet.hear(
        0,
        stored(PROMPT[:8]),
        stored(PROMPT[:16], first=2, medium="CPU"),
        stored(PROMPT[:32], first=4, medium="STORAGE"),
    )
    assert fleet.rows()["r0"] == ("exact", 8 + 4 + 4)
    row = fleet.router.explain(fleet.request(), fleet.now).replicas[0]
    assert row.view_note == "gpu 8, cpu 8, disk 16 tokens"


def test_salts_and_adapters_are_apart() -> None:
    fleet = Fleet()
    fleet.hear(0, stored(PROMPT))
    assert fleet.rows(salt="s")["r0"] == ("exact", 0)


def test_blocks_under_way_count_until_they_are_told() -> None:
    fleet = Fleet()
    for slot in range(3):
        fleet.hear(slot, stored([1, 2, 3, 4]))
    long = list(range(8001))
    for _ in range(3):
        first = fleet.router.decide(fleet.request(long), fleet.now, 0)
        assert first.hit_tokens[0] == 0
        fleet.router.close(first.ticket, Outcome(status="error"), fleet.now)
    ticket = fleet.send(1, tokens=long)
    again = fleet.router.decide(fleet.request(long), fleet.now, 0)
    assert (again.choices[0], again.hit_tokens[0]) == (1, 8000), "a burst stays together"
    fleet.router.close(again.ticket, Outcome(status="error"), fleet.now)
    fleet.router.close(ticket, Outcome(), fleet.now)
    ticket = fleet.send(1)
    assert fleet.rows()["r1"] == ("exact", 36)
    fleet.router.first_token(ticket, fleet.now)
    fleet.now += SETTLE_S / 2
    fleet.router.maintain(fleet.now)
    assert fleet.rows()["r1"] == ("exact", 36)
    fleet.now += SETTLE_S
    fleet.router.maintain(fleet.now)
    assert fleet.rows()["r1"] == ("exact", 0), "it never told: not there"
    fleet.router.close(ticket, Outcome(), fleet.now)


@pytest.mark.parametrize("told_first", [True, False])
def test_a_block_that_was_told_and_left_again_is_promised_no_more(told_first: bool) -> None:
    """A small cache evicts within moments what it has just computed."""
    fleet = Fleet()
    fleet.hear(0, stored([1, 2, 3, 4]))
    ticket = fleet.send(0)
    if told_first:
        fleet.hear(0, stored(PROMPT))
    fleet.router.close(ticket, Outcome(), fleet.now)
    if not told_first:
        assert fleet.rows()["r0"] == ("exact", 36), "it is about to be told"
        fleet.hear(0, stored(PROMPT))
        fleet.router.close(fleet.send(1), Outcome(), fleet.now)  # any decision looks
    fleet.hear(0, removed(PROMPT))
    assert fleet.rows()["r0"] == ("exact", 0)


def test_what_is_under_way_moves_with_its_request() -> None:
    fleet = Fleet()
    for slot in range(3):
        fleet.hear(slot, stored([1, 2, 3, 4]))
    ticket = fleet.send(1)
    fleet.router.sent(ticket, 2, fleet.now)
    assert [fleet.rows()[name][1] for name in ("r1", "r2")] == [0, 36]
    fleet.exact.apply(2, CLEARED)
    assert fleet.rows()["r2"] == ("exact", 0)
    fleet.router.close(ticket, Outcome(status="error"), fleet.now)
    fleet.now += SETTLE_S + EXPECT_S + 1
    fleet.router.maintain(fleet.now)
    assert fleet.rows()["r2"] == ("exact", 0)


def test_a_promise_ends_even_if_nobody_tells() -> None:
    fleet = Fleet()
    fleet.hear(0, stored([1, 2, 3, 4]))
    fleet.send(0)
    fleet.now += EXPECT_S + 1
    fleet.router.maintain(fleet.now)
    assert fleet.rows()["r0"] == ("exact", 0)
    fleet.now += fleet.router.config.timeouts.ticket_s
    fleet.router.maintain(fleet.now)
    assert fleet.exact._soon == {}


def test_cleared_engines_are_empty_in_both_views() -> None:
    fleet = Fleet()
    fleet.hear(0, stored(PROMPT))
    fleet.router.close(fleet.send(0), Outcome(), fleet.now)
    fleet.exact.apply(0, CLEARED)
    assert fleet.rows()["r0"] == ("exact", 0)
    fleet.exact.distrust(0, "a gap")
    assert fleet.rows()["r0"] == ("approximate", 0)


def test_sleep_empties_a_cache_before_its_event_comes() -> None:
    fleet = Fleet()
    fleet.hear(0, stored(PROMPT))
    awake = LoadSnapshot(taken_at=fleet.now, block_size=4)
    fleet.pool.update_load(0, awake)
    assert fleet.rows()["r0"][1] == 36
    fleet.pool.update_load(0, msgspec.structs.replace(awake, asleep=True))
    assert fleet.rows()["r0"] == ("exact", 0)


def test_another_life_of_the_engine_begins_empty() -> None:
    fleet = Fleet()
    fleet.hear(0, stored(PROMPT))
    fleet.router.close(fleet.send(0), Outcome(), fleet.now)
    fleet.exact.reset(0, restarted=True)
    assert fleet.rows()["r0"] == ("exact", 0)
    fleet.exact.distrust(0, "joining")
    assert fleet.rows()["r0"] == ("approximate", 0)
    fleet.hear(0, stored(PROMPT, 8))
    assert fleet.rows()["r0"] == ("exact", 32)


def test_text_keeps_its_own_record_beside_the_ids() -> None:
    fleet = Fleet(block_bytes=16)
    text = b"0123456789abcdef" * 20
    fleet.hear(0, stored(PROMPT[:8]))
    fleet.router.close(fleet.send(1, prompt=text), Outcome(), fleet.now)
    rows = fleet.rows(prompt=text)
    assert rows["r0"] == ("exact", 8)
    assert rows["r1"][0] == "approximate" and rows["r1"][1] > 0
    plain = Request(kind=Kind.COMPLETIONS, model=MODEL, prompt=text)
    found = fleet.router.explain(plain, fleet.now).replicas
    assert [row.view for row in found] == ["approximate"] * 3
    assert found[0].view_note == "token ids are not known"


def test_ids_count_only_where_the_tokenizer_was_proven() -> None:
    fleet = Fleet()
    fleet.hear(0, stored(PROMPT))
    fleet.hear(1, stored(PROMPT))
    fleet.pool.set_token_features(1, 0b11)
    rows = fleet.rows(token_features=0b10)
    assert rows["r0"] == ("approximate", 0) and rows["r1"] == ("exact", 36)
    assert fleet.rows(token_features=0b100)["r1"] == ("approximate", 0)


def test_a_replica_that_leaves_frees_its_slot() -> None:
    fleet = Fleet()
    fleet.hear(0, stored(PROMPT))
    ticket = fleet.send(0)
    fleet.pool.remove("r0", fleet.now)
    fleet.router.close(ticket, Outcome(), fleet.now)
    for _ in range(1000):
        if not fleet.router.maintain(fleet.now + 10):
            break
    fleet.router.maintain(fleet.now + 11)
    assert fleet.pool.replicas[0] is None
    assert fleet.exact.why(0) is None and fleet.exact.trusted == 0
    slot = fleet.pool.add(ReplicaSpec(url="http://new:1", name="new"), fleet.now)
    assert slot == 0
    fleet.hear(0)
    assert fleet.rows()["new"] == ("exact", 0)


def test_both_ways_of_deciding_agree() -> None:
    """The compiled mix and the scorers one by one (a subset takes that way) see equal hits."""
    fleet = Fleet()
    fleet.hear(0, stored(PROMPT[:24]))
    fleet.hear(1, stored(PROMPT[:12]))
    decision = fleet.router.decide(fleet.request(subset=frozenset({"r0", "r1"})), fleet.now, 0)
    quick = fleet.router.decide(fleet.request(), fleet.now, 0)
    assert dict(zip(decision.choices, decision.hit_tokens, strict=True)) == {0: 24, 1: 12}
    assert dict(zip(quick.choices, quick.hit_tokens, strict=True)) == {0: 24, 1: 12, 2: 0}


def answers(fleet: Fleet, slot: int, count: int, cached: int, tokens: list[int]) -> None:
    for _ in range(count):
        ticket = fleet.send(slot, tokens=tokens)
        usage = {"prompt_tokens": len(tokens), "cached_tokens": cached, "output_tokens": 1}
        fleet.router.close(ticket, Outcome(**usage), fleet.now)
    fleet.now += SETTLE_S + 1
    fleet.router.maintain(fleet.now)


def test_what_left_while_a_request_waited_takes_nothing_off_what_events_say() -> None:
    fleet = Fleet(1)
    fleet.hear(0, stored(PROMPT))
    answers(fleet, 0, 20, 0, PROMPT)
    assert fleet.rows()["r0"] == ("exact", 36)
    assert fleet.view.trust.factors[0] == 1.0  # of what was sent nothing was learned here
    fleet.exact.distrust(0, "a gap")
    answers(fleet, 0, 200, 0, PROMPT)
    assert fleet.view.trust.factors[0] < 0.7
    booked = fleet.rows()["r0"]
    assert booked[0] == "approximate" and 0 < booked[1] < 0.7 * 36
    fleet.exact.trust(0)
    assert fleet.rows()["r0"] == ("exact", 36)


def test_events_that_lastingly_promise_what_is_not_there_are_not_believed() -> None:
    long = list(range(4001))
    fleet = Fleet(1)
    fleet.hear(0, stored(long))
    answers(fleet, 0, 20, 0, long)
    found = fleet.rows(tokens=array("I", long).tobytes())["r0"]
    assert found[0] == "exact" and 400 <= found[1] < 1000
    fleet.hear(0, CLEARED, stored(long))  # another cache: nothing is known against it
    assert fleet.rows(tokens=array("I", long).tobytes())["r0"] == ("exact", 4000)


def test_answers_to_promises_of_a_cache_that_was_cleared_since_teach_nothing() -> None:
    long = list(range(4001))
    fleet = Fleet(1)
    fleet.hear(0, stored(long))
    tickets = [fleet.send(0, tokens=long) for _ in range(20)]
    fleet.hear(0, CLEARED, stored(long))
    for ticket in tickets:
        outcome = Outcome(prompt_tokens=4001, cached_tokens=0, output_tokens=1)
        fleet.router.close(ticket, outcome, fleet.now)
    assert fleet.rows(tokens=array("I", long).tobytes())["r0"] == ("exact", 4000)


def test_a_request_that_reads_no_cache_is_promised_nothing() -> None:
    fleet = Fleet(1)
    fleet.hear(0, stored(PROMPT))
    assert fleet.rows()["r0"] == ("exact", 36)
    plain = fleet.request(reads_cache=False)
    decision = fleet.router.decide(plain, fleet.now, 0)
    assert (decision.view, decision.hit_tokens) == ("none", (0,))
    fleet.router.close(decision.ticket, Outcome(prompt_tokens=40, cached_tokens=0), fleet.now)
    assert fleet.rows()["r0"] == ("exact", 36)


def test_usage_of_several_samples_teaches_nothing() -> None:
    """It is that of the last one, which finds the first one's blocks."""
    long = list(range(4001))
    fleet = Fleet(1)
    fleet.hear(0)
    for samples in (4, 1):
        for _ in range(20):
            asked = fleet.request(tokens=array("I", long).tobytes(), samples=samples)
            decision = fleet.router.decide(asked, fleet.now, 0)
            fleet.router.sent(decision.ticket, 0, fleet.now)
            outcome = Outcome(prompt_tokens=4001, cached_tokens=4000, output_tokens=1)
            fleet.router.close(decision.ticket, outcome, fleet.now)
            fleet.now += 1.0  # what was promised by the one before is over
            fleet.router.maintain(fleet.now)
        for _ in range(3):
            fleet.now += 11.0
            fleet.router.maintain(fleet.now)
        replica = fleet.pool.replicas[0]
        assert replica is not None
        assert (replica.doubt is None) == (samples == 4)
        fleet.view.exact.clear(0)
