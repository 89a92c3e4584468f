"""Which adapter is where, what it costs, who gives way; and how a decision uses that."""

from __future__ import annotations

import io
from array import array
from typing import Any

import msgspec
import pytest
from rich.console import Console

from tests.router.fleet import chat, config_of, router_of
from warmlane.router.adapters import SWAP_S, AdapterTable
from warmlane.router.adapters_books import EVERYTHING
from warmlane.router.adapters_seat import FIRST_LOAD_S, Residency
from warmlane.router.config_adapters import Adapters, source_of
from warmlane.router.core import Router
from warmlane.router.errors import ConfigError, NoReplica, RequestError
from warmlane.router.explain_cli import show
from warmlane.router.types import LoadSnapshot, ModelList, Outcome

SOURCES = {"sources": {"a*": "/lora/a", "z": "/lora/z"}}


def fleet(replicas: int = 3, /, *, mode: str = "load", **more: Any) -> Router:
    """Replicas that list the model "m" and nothing else."""
    adapters = {"mode": mode, **SOURCES, **more}
    router = router_of(replicas, adapters=adapters)
    for slot in range(replicas):
        router.pools["default"].set_models(slot, ModelList(models=frozenset({"m"})))
    return router


def table_of(router: Router) -> AdapterTable:
    return router.pools["default"].adapters


def lists(router: Router, slot: int, *names: str) -> None:
    models = ModelList(models=frozenset({"m"}), adapters=dict.fromkeys(names, "m"))
    router.pools["default"].set_models(slot, models)


def ask(router: Router, adapter: str, now: float = 0.0) -> tuple[int, ...]:
    """Slots of one decision whose ticket is closed again."""
    decision = router.decide(chat(model=adapter), now, 0)
    router.close(decision.ticket, Outcome(), now)
    return decision.choices


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("z", "/lora/z"),
        ("a1", "/lora/a1"),
        ("a1.b-c_d", "/lora/a1.b-c_d"),
        ("a.b", ""),
        ("a", ""),  # nothing behind the beginning
        ("a../x", ""),
        ("a..", ""),
        ("a/x", ""),
        ("a%2e", ""),
        ("a-" + "x" * 200, ""),
        ("a*", ""),
        ("other", ""),
    ],
)
def test_only_what_the_list_allows_has_a_source(name: str, path: str) -> None:
    sources = {"a*": "/lora/a", "z": "/lora/z"}
    assert source_of(Adapters(mode="load", sources=sources), name) == path
    assert source_of(Adapters(sources=sources), name) == "", "read-only"


def test_the_longest_beginning_counts() -> None:
    rules = Adapters(mode="load", sources={"t-*": "/t/", "t-x-*": "s3://x/"})
    assert source_of(rules, "t-x-1") == "s3://x/1"
    assert source_of(rules, "t-y") == "/t/y"


@pytest.mark.parametrize(
    "adapters",
    [
        {"mode": "load"},
        {"mode": "load", "sources": {"*": "/lora/"}},  # whatever a client writes
        {"sources": {"a*b": "/lora/"}},
        {"sources": {"a": ""}},
        {"sources": {"a": "/a"}, "slots": 0},
        {"sources": {"a": "/a"}, "load_s": 0},
    ],
)
def test_bad_settings_are_refused(adapters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="adapters"):
        config_of(1, adapters=adapters)


def test_states_of_a_pair() -> None:
    router = fleet(1)
    table, pool = table_of(router), router.pools["default"]
    assert table.state(0, "a1") is Residency.ABSENT
    table.loading(0, "a1", 1.0)
    assert table.state(0, "a1") is Residency.LOADING
    table.loaded(0, "a1", 0.5)
    assert table.state(0, "a1") is Residency.REGISTERED
    assert pool.replicas[0] is not None and pool.replicas[0].models is not None
    assert pool.replicas[0].models.adapters == {"a1": "m"}
    table.opened(0, "a1", 2.0)
    assert table.state(0, "a1") is Residency.ACTIVE
    table.closed(0, "a1", 0.1)
    assert table.state(0, "a1") is Residency.REGISTERED
    pool.update_load(0, LoadSnapshot(taken_at=2.0, waiting_adapters=frozenset({"a1"})))
    assert table.state(0, "a1") is Residency.ACTIVE, "somebody else's request"
    table.unloaded(0, "a1")
    assert table.state(0, "a1") is Residency.ABSENT


def test_costs_rise_from_active_to_displacement() -> None:
    router = fleet(5, slots=2)
    table, pool = table_of(router), router.pools["default"]
    lists(router, 1, "a1")
    table.opened(1, "a1", 0.0)
    lists(router, 2, "a1")
    lists(router, 4, "a8", "a9")
    for _ in range(20):
        table.opened(0, "a8", 0.0)
        table.closed(0, "a8", None)
        table.opened(0, "a9", 0.0)
        table.closed(0, "a9", None)
    cost = array("d", bytes(8 * 5))
    table.costs("a1", 0.0, cost)
    assert cost[1] == 0.0
    assert cost[2] == SWAP_S
    assert cost[0] == cost[3] == pytest.approx(SWAP_S + FIRST_LOAD_S)
    assert cost[4] == pytest.approx(SWAP_S + 1.5 * FIRST_LOAD_S, rel=0.01), "a9 is wanted again"
    table.costs("a1", 100_000.0, cost)
    assert cost[4] == pytest.approx(SWAP_S + FIRST_LOAD_S, rel=0.01), "nobody asks for it now"
    # The engine runs max_loras at a time: whoever comes next waits for one to end.
    pool.update_load(2, LoadSnapshot(taken_at=0.0, max_lora=1))
    table.opened(2, "a2", 0.0)
    table.costs("a1", 0.0, cost)
    assert cost[2] > 0.5


def test_a_load_under_way_costs_what_is_left_of_it() -> None:
    table = table_of(fleet(1))
    table.loading(0, "a1", 10.0)
    assert table.cost(0, "a1", 10.1) == pytest.approx(FIRST_LOAD_S - 0.1)
    assert table.cost(0, "a1", 99.0) == 0.0
    assert table.cost(0, "a2", 10.1) == pytest.approx(SWAP_S + 2 * FIRST_LOAD_S), "one at a time"


def test_loads_teach_their_length() -> None:
    table = table_of(fleet(2))
    assert table.load_s(table.seat(0)) == FIRST_LOAD_S
    table.loaded(0, "a1", 4.0)
    assert table.load_s(table.seat(0)) == pytest.approx(4.0, rel=0.01)
    for _ in range(10):
        table.loaded(1, "a1", 1.0)
    assert 1.0 < table.load_s(table.seat(0)) < 3.0, "one slow load says little of a replica"
    assert table.load_s(table.seat(1)) == pytest.approx(1.0, rel=0.1)


def test_the_coldest_gives_way_and_nobody_in_use_does() -> None:
    router = fleet(2, slots=3)
    table, pool = table_of(router), router.pools["default"]
    lists(router, 0, "a1", "a2", "a3")
    for name, times in (("a1", 3), ("a2", 1), ("a3", 2)):
        for _ in range(times):
            table.opened(0, name, 0.0)
            table.closed(0, name, 0.1)
    assert table.full(0) and not table.full(1)
    assert table.victim(0, 1.0) == "a2"
    table.opened(0, "a2", 1.0)
    assert table.victim(0, 1.0) == "a3"
    pool.update_load(0, LoadSnapshot(taken_at=1.0, running_adapters=frozenset({"a3"})))
    assert table.victim(0, 1.0) == "a1"
    table.opened(0, "a1", 1.0)
    assert table.victim(0, 1.0) is None


def test_least_recently_used_among_the_equally_wanted() -> None:
    table = table_of(router := fleet(1, slots=2, cold_s=1e9))
    lists(router, 0, "a1", "a2")
    for name, now in (("a2", 1.0), ("a1", 2.0)):
        table.opened(0, name, now)
        table.closed(0, name, 0.1)
    assert table.victim(0, 3.0) == "a2"


def test_what_was_not_ours_to_load_is_not_ours_to_unload() -> None:
    table = table_of(router := fleet(1, slots=1))
    lists(router, 0, "built-in")
    assert table.full(0) and table.victim(0, 0.0) is None


def test_slots_are_the_engines_unless_they_are_given() -> None:
    router = fleet(1)
    table, pool = table_of(router), router.pools["default"]
    assert table.slots(0) == 4
    pool.update_load(0, LoadSnapshot(taken_at=0.0, max_lora=2))
    assert table.slots(0) == 2
    assert table_of(fleet(1, slots=7)).slots(0) == 7


def test_a_copy_elsewhere_makes_one_worth_less() -> None:
    table = table_of(router := fleet(2, slots=2))
    lists(router, 0, "a1", "a2")
    lists(router, 1, "a1")
    for name in ("a1", "a2"):
        table.opened(0, name, 0.0)
        table.closed(0, name, 0.1)
    assert table.victim(0, 0.0) == "a1"


def test_a_request_goes_where_its_adapter_is() -> None:
    router = fleet(4)
    lists(router, 2, "a1")
    assert ask(router, "a1")[0] == 2
    assert {ask(router, "a1")[0] for _ in range(8)} == {2}
    decision = router.decide(chat(model="a1"), 0.0, 0)
    assert decision.adapter == "a1" and len(decision.choices) == 4, "the others could load it"
    assert table_of(router).state(2, "a1") is Residency.ACTIVE
    router.close(decision.ticket, Outcome(), 1.0)
    assert table_of(router).state(2, "a1") is Residency.REGISTERED


def test_a_long_line_is_worth_a_load() -> None:
    """Replication of an adapter is a result of the price, as that of a prefix."""
    router = fleet(2)
    lists(router, 0, "a1")
    tickets, slots = [], []
    for number in range(12):
        request = chat(f"{number}" * 8000, model="a1", max_tokens=8)
        decision = router.decide(request, 0.0, 0)
        tickets.append(decision.ticket)
        slots.append(decision.choices[0])
    assert slots[:3] == [0, 0, 0] and 1 in slots
    for ticket in tickets:
        router.close(ticket, Outcome(), 1.0)
    assert not table_of(router).seat(0).busy and not table_of(router).seat(1).busy


def test_read_only_serves_where_it_is_and_loads_nowhere() -> None:
    router = fleet(3, mode="read-only")
    with pytest.raises(RequestError) as missing:
        ask(router, "a1")
    assert missing.value.status == 404
    lists(router, 1, "a1")
    assert ask(router, "a1") == (1,)


def test_a_name_that_may_be_loaded_is_a_model() -> None:
    router = fleet(2)
    assert [entry["id"] for entry in router.models()] == ["m", "z"]
    assert next(e for e in router.models() if e["id"] == "z")["parent"] == "m"
    assert set(ask(router, "a1")) == {0, 1}
    with pytest.raises(RequestError):
        ask(router, "b1")


def test_names_that_clients_make_up_grow_no_table() -> None:
    router = fleet(1)
    for number in range(5000):
        ask(router, f"a{number}", float(number))
    table, catalog = table_of(router), router.catalog
    assert len(table._heat) <= 4096 and len(table.seat(0).seen) == 0
    assert len(catalog._targets) + len(catalog._guesses) <= 257


def test_a_refusal_of_the_engine_is_remembered_for_a_while() -> None:
    router = fleet(2)
    table = table_of(router)
    table.failed(0, "a1", 0.0, "a1", found=False)
    assert ask(router, "a1") == (1,)
    assert set(ask(router, "a2")) == {0, 1}
    table.failed(1, "a1", 0.0, "a1", found=False)
    with pytest.raises(RequestError) as missing:
        ask(router, "a1")
    assert missing.value.status == 404, "every engine looked, and nobody found it"
    router.maintain(31.0)
    assert set(ask(router, "a1", 31.0)) == {0, 1}


def test_an_engine_that_loads_nothing_is_left_alone() -> None:
    router = fleet(2)
    table = table_of(router)
    table.failed(0, "a1", 0.0, EVERYTHING)
    assert ask(router, "a2") == (1,)
    table.failed(1, "a1", 0.0, EVERYTHING)
    with pytest.raises(NoReplica) as nobody:
        ask(router, "a2")
    assert nobody.value.status == 503, "the adapter may well be there"


def test_adapters_need_their_base() -> None:
    router = fleet(2)
    pool = router.pools["default"]
    pool.set_models(0, ModelList(models=frozenset({"other"})))
    assert table_of(router).base() == ""
    router = fleet(2, base="m")
    router.pools["default"].set_models(0, ModelList(models=frozenset({"other"})))
    assert ask(router, "a1") == (1,)


def test_ranks_of_one_engine_share_its_adapters() -> None:
    urls = [{"url": "http://r0:8000", "rank": rank} for rank in (0, 1)]
    router = Router(config_of(0, replicas=urls, adapters={"mode": "load", **SOURCES, "slots": 1}))
    for slot in range(2):
        router.pools["default"].set_models(slot, ModelList(models=frozenset({"m"})))
    table = table_of(router)
    table.loading(0, "a1", 0.0)
    assert table.state(1, "a1") is Residency.LOADING
    table.loaded(0, "a1", 0.1)
    assert table.state(1, "a1") is Residency.REGISTERED
    table.opened(1, "a1", 1.0)
    assert table.victim(0, 1.0) is None, "in use by the other rank"


def test_a_restart_is_told_once_and_a_single_loss_is_not_one() -> None:
    router = fleet(1, slots=2)
    table, pool = table_of(router), router.pools["default"]
    replica = pool.replicas[0]
    assert replica is not None
    table.loaded(0, "a1", 0.1)
    table.loaded(0, "a2", 0.1)
    for name, now in (("a1", 2.0), ("a2", 1.0)):
        table.opened(0, name, now)
        table.closed(0, name, 0.1)
    lists(router, 0, "a1")
    assert table.lost(replica) == [], "somebody unloaded a2"
    lists(router, 0)
    assert table.lost(replica) == ["a1", "a2"]
    assert table.lost(replica) == []
    table.loaded(0, "a1", 0.1)
    lists(router, 0, "built-in-1", "built-in-2")
    assert table.lost(replica) == [], "no room"


def test_a_newcomer_in_an_old_slot_begins_anew() -> None:
    router = fleet(1)
    table, pool = table_of(router), router.pools["default"]
    table.loaded(0, "a1", 9.0)
    pool.remove("r0", 0.0)
    router.maintain(1.0)
    from_config = config_of(1).pools[0].replicas[0]
    assert pool.add(from_config, 2.0) == 0
    assert table.seat(0).loads == 0 and not table.seat(0).ours


def test_a_move_takes_the_request_along() -> None:
    router = fleet(2)
    lists(router, 0, "a1")
    lists(router, 1, "a1")
    table = table_of(router)
    decision = router.decide(chat(model="a1"), 0.0, 0)
    first, second = decision.choices
    router.moved(decision.ticket, second, 0.0)
    assert not table.seat(first).busy and table.seat(second).busy == {"a1": 1}
    router.close(decision.ticket, Outcome(status="error"), 1.0)
    assert not table.seat(second).busy


def test_a_forgotten_ticket_holds_no_adapter() -> None:
    router = fleet(1)
    router.decide(chat(model="a1"), 0.0, 0)
    router.maintain(10_000.0)
    assert not table_of(router).seat(0).busy


def test_a_reload_counts_at_once() -> None:
    router = fleet(2, mode="read-only")
    lists(router, 0, "a1")
    assert ask(router, "a1") == (0,)
    router.reload(config_of(2, adapters={"mode": "load", **SOURCES}))
    assert set(ask(router, "a1")) == {0, 1}
    assert set(ask(router, "a2")) == {0, 1}
    router.reload(config_of(2, adapters={"mode": "load", "sources": {"b": "/b"}}))
    assert ask(router, "a1") == (0,)


def test_explain_says_state_and_seconds() -> None:
    router = fleet(2)
    lists(router, 1, "a1")
    told = router.explain(chat(model="a1"), 0.0)
    assert [line.adapter for line in told.replicas] == ["absent", "registered"]
    assert [line.adapter_s for line in told.replicas] == [SWAP_S + FIRST_LOAD_S, SWAP_S]
    assert router.explain(chat(model="m"), 0.0).replicas[0].adapter == ""
    page = io.StringIO()
    show(msgspec.to_builtins(told), Console(file=page, width=160))
    assert "adapter absent 0.305 s" in page.getvalue()
    assert "adapter registered 0.005 s" in page.getvalue()


def test_demand_is_counted_by_the_state_that_it_met() -> None:
    router = fleet(1)
    lists(router, 0, "a1")
    ask(router, "a1")
    ask(router, "a2")
    counts = router.metrics.counts["warmlane_adapter_requests_total"]
    assert counts == {("default", "registered"): 1, ("default", "absent"): 1}
