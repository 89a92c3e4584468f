"""Routers that tell each other of their work: what is told, heard, discounted and refused."""

from __future__ import annotations

import argparse
from types import ModuleType
from typing import Any

import msgspec
import pytest

from warmlane.router import ext_proc, serve
from warmlane.router.config import Config, Index, PoolConfig
from warmlane.router.config_load import from_data
from warmlane.router.config_share import Sharing
from warmlane.router.core import Router
from warmlane.router.errors import ConfigError
from warmlane.router.share import MAX_PEERS, Sharer
from warmlane.router.share_wire import Message, pack, unpack
from warmlane.router.types import Kind, LoadSnapshot, Outcome, ReplicaSpec, Request

URLS = [f"http://10.0.0.{n}:8000" for n in range(4)]
LONG = b"a long prompt that is worth a hit " * 300


def router(urls: list[str] = URLS, **index: Any) -> Router:
    specs = [ReplicaSpec(url=url) for url in urls]
    return Router(Config(pools=[PoolConfig(models=["m"], replicas=specs)], index=Index(**index)))


def sharer(name: str, urls: list[str] = URLS, **index: Any) -> Sharer:
    return Sharer(router(urls, **index), Sharing(interval_s=0.05, expire_s=2.0), name)


def pair() -> tuple[Sharer, Sharer]:
    """Two routers that know of each other."""
    a, b = sharer("a"), sharer("b")
    a.hear(b.tell(0.0), 0.0)
    b.hear(a.tell(0.0), 0.0)
    return a, b


def send(side: Sharer, prompt: bytes, now: float = 0.0, slot: int | None = None) -> int:
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=prompt, max_tokens=100)
    decision = side.router.decide(request, now, 1)
    side.router.sent(decision.ticket, decision.choices[0] if slot is None else slot, now)
    return decision.ticket


def troubles(side: Sharer) -> dict[tuple[str, ...], int]:
    return side.router.metrics.counts["warmlane_share_troubles_total"]


def test_a_peer_sees_the_work_until_it_ends() -> None:
    a, b = pair()
    ticket = send(a, LONG, slot=2)
    b.hear(a.tell(0.1), 0.1)
    own, foreign = a.router.pools["default"].ledger, b.router.pools["default"].foreign
    assert foreign.some and foreign.requests[2] == foreign.waiting[2] == 1
    assert foreign.tokens[2] == own.prefill_tokens[2] > 2000
    assert foreign.kv_tokens[2] == own.decode_tokens[2]
    a.router.first_token(ticket, 0.2)
    b.hear(a.tell(0.2), 0.2)
    assert (foreign.requests[2], foreign.waiting[2], foreign.tokens[2]) == (1, 0, 0)
    a.router.close(ticket, Outcome(), 0.3)
    b.hear(a.tell(0.3), 0.3)
    assert not foreign.some and not any(foreign.kv_tokens)


def test_the_decision_avoids_what_a_peer_filled() -> None:
    a, b = pair()
    for number in range(3):
        send(a, b"%d " % number + LONG, slot=number)
    b.hear(a.tell(0.1), 0.1)
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=b"nothing like it " * 200)
    assert b.router.decide(request, 0.1, 7).choices[0] == 3
    by_scorers = msgspec.structs.replace(request, subset=frozenset(url[7:] for url in URLS))
    assert b.router.decide(by_scorers, 0.1, 7).choices[0] == 3
    lines = b.router.explain(request, 0.1).replicas
    assert [line.foreign_requests for line in lines] == [1, 1, 1, 0]
    assert lines[0].foreign_prefill_tokens == lines[0].prefill_tokens > 2000


def test_prefixes_travel_with_the_next_turn() -> None:
    a, b = pair()
    ticket = send(a, LONG, slot=1)
    b.hear(a.tell(0.1), 0.1)
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=LONG + b"and more")
    decision = b.router.decide(request, 0.1, 1)
    assert decision.choices[0] == 1 and decision.hit_tokens[0] > 2000
    answer = b" an answer of some length" * 40
    outcome = Outcome(prompt_tokens=2600, output_tokens=250, text=answer)
    a.router.close(ticket, outcome, 0.2)
    b.hear(a.tell(0.2), 0.2)
    longer = msgspec.structs.replace(request, prompt=LONG + answer)
    before = decision.hit_tokens[0]
    assert b.router.decide(longer, 0.2, 1).hit_tokens[0] > before + 200


def test_slots_are_matched_by_address() -> None:
    """Another order, a replica that one side lacks, and names that differ."""
    a, b = sharer("a"), sharer("b", [URLS[3], "http://10.0.0.9:8000", URLS[1]])
    b.hear(a.tell(0.0), 0.0)
    for slot in range(4):
        send(a, b"%d " % slot + LONG, slot=slot)
    b.hear(a.tell(0.1), 0.1)
    pool = b.router.pools["default"]
    assert list(pool.foreign.requests) == [1, 0, 1]
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=b"3 " + LONG)
    assert b.router.decide(request, 0.1, 1).choices[0] == 0
    pool.add(ReplicaSpec(url=URLS[0]), 0.1)
    b.age(0.15)
    b.hear(a.tell(0.2), 0.2)
    assert list(pool.foreign.requests) == [1, 0, 1, 1]
    pool.remove("10.0.0.3:8000", 0.3)
    b.hear(a.tell(0.3), 0.3)
    assert list(pool.foreign.requests) == [0, 0, 1, 1]


def test_a_silent_peer_fades_and_expires() -> None:
    a, b = pair()
    for number in range(10):
        send(a, b"%d " % number + LONG, slot=0)
    b.hear(a.tell(1.0), 1.0)
    foreign, seen = b.router.pools["default"].foreign, []
    for now in (1.05, 1.5, 2.0, 2.9):
        b.age(now)
        seen.append(foreign.requests[0])
    assert seen[0] == 10 and seen == sorted(seen, reverse=True) and 0 < seen[-1] < 1
    b.age(3.0)
    assert not foreign.some and not b.peers
    assert troubles(b)[("peer_expired",)] == 1
    b.hear(a.tell(3.1), 3.1)
    assert foreign.requests[0] == 10


def test_a_good_bye_counts_at_once() -> None:
    a, b = pair()
    send(a, LONG)
    b.hear(a.tell(0.1), 0.1)
    assert b.router.pools["default"].foreign.some
    b.hear(a.tell(0.2, leaving=True), 0.2)
    assert not b.peers and not b.router.pools["default"].foreign.some
    b.hear(a.tell(0.3, leaving=True), 0.3)
    assert not b.peers


def test_rates_and_placements_of_all_routers() -> None:
    a, b = pair()
    for number in range(50):
        send(a, b"%d " % number + LONG)
    a.router.maintain(0.0)
    a.router.maintain(10.0)
    b.hear(a.tell(10.0), 10.0)
    placed = b.router.pools["default"].placed_tokens
    theirs = a.router.pools["default"].placed_tokens
    assert sum(theirs) > 100_000 and list(placed) == pytest.approx(list(theirs), rel=0.05)
    told = unpack(b.tell(10.1)).pools[0]
    assert not any(told.placed)  # what a peer placed is not told on
    ahead = b.router.lanes["default"].decider.price
    assert ahead is not None
    b.router.maintain(0.0)
    b.router.maintain(10.0)
    mine = a.router.lanes["default"].decider.price
    assert mine is not None and ahead.ahead == pytest.approx(mine.ahead)


def scrape(side: Sharer, now: float, waiting: float = 0, running: float = 0) -> float:
    """Replica 0 shows this; requests there that this side takes for others' right after."""
    pool = side.router.pools["default"]
    pool.update_load(0, LoadSnapshot(taken_at=now, waiting=waiting, running=running))
    return pool.foreign.requests[0]


def test_a_scrape_shows_only_what_nobody_told() -> None:
    a, b = pair()
    for number in range(3):
        send(a, b"%d " % number + LONG, slot=0)
    b.hear(a.tell(0.1), 0.1)
    foreign = b.router.pools["default"].foreign
    assert scrape(b, 0.11, waiting=3) == 3
    b.hear(a.tell(0.2), 0.2)
    assert foreign.requests[0] == 3
    scrape(b, 0.21, waiting=5)
    b.hear(a.tell(0.3), 0.3)  # now it is known that the peer has no more than three
    assert foreign.requests[0] == foreign.waiting[0] == 5
    b.age(2.5)  # the peer is gone: what the scrape showed beyond it stays
    assert foreign.requests[0] == 2
    assert scrape(b, 2.6, waiting=4) == 4  # nobody is left whose word to wait for


def test_what_a_peer_sent_just_now_never_counts_twice() -> None:
    """A scrape is ahead of the peer's word by up to an interval."""
    a, b = pair()
    foreign = b.router.pools["default"].foreign
    b.hear(a.tell(0.1), 0.1)
    ticket = send(a, LONG, slot=0)
    assert scrape(b, 0.12, waiting=1) <= 1
    for now in (0.15, 0.2, 0.25):
        b.hear(a.tell(now), now)
        assert (foreign.requests[0], foreign.waiting[0]) == (1, 1)
        assert foreign.tokens[0] == a.router.pools["default"].ledger.prefill_tokens[0]
    a.router.first_token(ticket, 0.26)
    a.router.close(ticket, Outcome(), 0.27)
    b.hear(a.tell(0.3), 0.3)  # over, and no scrape since the one that showed it
    assert not foreign.some and not foreign.requests[0]


def test_what_ended_at_a_peer_just_now_leaves_nothing_behind() -> None:
    a, b = pair()
    foreign = b.router.pools["default"].foreign
    ticket = send(a, LONG, slot=0)
    b.hear(a.tell(0.1), 0.1)
    scrape(b, 0.12, waiting=1)
    a.router.close(ticket, Outcome(), 0.13)
    b.hear(a.tell(0.15), 0.15)
    b.hear(a.tell(0.2), 0.2)
    assert not foreign.some


def test_scrapes_that_come_faster_than_words_are_believed_all_the_same() -> None:
    a, b = pair()
    foreign = b.router.pools["default"].foreign
    for step in range(1, 40):  # scrapes every 10 ms, messages every 50
        scrape(b, step * 0.01, running=4)
        if step % 5 == 0:
            b.hear(a.tell(step * 0.01), step * 0.01)
    assert foreign.requests[0] == 4
    scrape(b, 0.4)
    for now in (0.45, 0.5):
        b.hear(a.tell(now), now)
    assert not foreign.some
    scrape(b, 0.51, running=3)
    b.router.pools["default"].remove("10.0.0.0:8000", 0.52)
    for now in (0.55, 0.6):
        b.hear(a.tell(now), now)
    assert not foreign.some


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"x" * 100, pack(Message(2, "z", 1, 0.05, False, []))],
    ids=["nothing", "no type", "text", "another version"],
)
def test_garbage_changes_nothing(data: bytes) -> None:
    a, b = pair()
    send(a, LONG)
    b.hear(a.tell(0.1), 0.1)
    before = list(b.router.pools["default"].foreign.requests)
    b.hear(data, 0.15)
    assert list(b.router.pools["default"].foreign.requests) == before
    assert troubles(b)[("unreadable",)] == 1


def test_every_cut_and_every_changed_byte_is_survived() -> None:
    a, b = pair()
    send(a, LONG)
    data = a.tell(0.1)
    for at in range(len(data)):
        b.hear(data[:at], 0.1)
    for at in range(0, len(data), 3):
        b.hear(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :], 0.1)
    send(b, LONG)
    foreign = b.router.pools["default"].foreign
    assert all(0 <= value < 2**41 for value in (*foreign.requests, *foreign.tokens))


def test_wrong_numbers_are_refused_whole() -> None:
    a, b = pair()
    good = unpack(a.tell(0.1))
    for value in (-1.0, float("nan"), float("inf"), 1e300):
        bad = msgspec.structs.replace(good.pools[0], tokens=[value] * 4)
        b.hear(pack(msgspec.structs.replace(good, pools=[bad])), 0.1)
    short = msgspec.structs.replace(good.pools[0], placed=[1.0])
    b.hear(pack(msgspec.structs.replace(good, pools=[short])), 0.1)
    broken = msgspec.structs.replace(good.pools[0], journal=b"1234567")
    b.hear(pack(msgspec.structs.replace(good, pools=[broken])), 0.1)
    assert troubles(b)[("unreadable",)] == 6 and not b.router.pools["default"].foreign.some


def test_late_repeated_and_own_messages() -> None:
    a, b = pair()
    first, second = a.tell(0.1), a.tell(0.2)
    send(a, LONG)
    third = a.tell(0.3)
    for data in (first, third, second, third):
        b.hear(data, 0.4)
    assert b.router.pools["default"].foreign.some
    assert troubles(b)[("out_of_order",)] == 2
    a.hear(third, 0.4)
    assert not a.router.pools["default"].foreign.some


def test_pools_and_block_sizes_that_differ() -> None:
    a, b = sharer("a"), sharer("b", block_bytes=64)
    a.hear(b.tell(0.0), 0.0)
    send(b, LONG, slot=0)
    a.hear(b.tell(0.1), 0.1)
    assert troubles(a)[("block_size",)] == 1
    assert a.router.pools["default"].foreign.requests[0] == 1  # work counts all the same
    other = unpack(b.tell(0.2))
    named = [msgspec.structs.replace(other.pools[0], name="elsewhere")]
    a.hear(pack(msgspec.structs.replace(other, pools=named)), 0.2)
    assert not a.router.pools["default"].foreign.some


def test_peers_are_bounded() -> None:
    b = sharer("b")
    for number in range(MAX_PEERS + 3):
        b.hear(pack(Message(1, f"peer-{number}", 0, 0.05, False, [])), 0.0)
    assert len(b.peers) == MAX_PEERS and troubles(b)[("too_many_peers",)] == 3


def test_prefixes_beyond_the_bound_are_dropped_and_counted() -> None:
    small = Sharer(router(), Sharing(prefix_bytes=400), "a")
    small.tell(0.0)
    for number in range(4):
        send(small, b"%d " % number + LONG, slot=0)
    message = unpack(small.tell(0.1))
    assert len(message.pools[0].journal) <= 400
    assert troubles(small)[("dropped",)] == 1
    off = Sharer(router(), Sharing(prefixes=False), "a")
    off.tell(0.0)
    send(off, LONG)
    assert unpack(off.tell(0.1)).pools[0].journal == b""


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("url", "redis://:secret@host", "holds a password"),
        ("url", "http://host", "must be redis://"),
        ("url", "redis://host:port", "share.url"),
        ("url", "redis://host?db=1", "query"),
        ("namespace", "two words", "must be a word"),
        ("expire_s", 0.06, "two intervals"),
        ("routers", 0, "routers"),
    ],
)
def test_bad_config(field: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        from_data({"share": {field: value}})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("command", [serve, ext_proc], ids=["serve", "ext-proc"])
def test_flags_of_both_commands(command: ModuleType) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["--replica", URLS[0], "--routers", "3", "--share-url", "redis://valkey:6379"]
    config = command.config_from(parser.parse_args([*words, "--record", "r.jsonl", "--share", "1"]))
    assert (config.share.routers, config.share.url) == (3, "redis://valkey:6379")
    assert config.record.file == "r.jsonl" and config.shadow.share == 1
