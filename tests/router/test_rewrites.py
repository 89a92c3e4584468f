"""Rewrites and priorities: exact beats generic, the oldest wins, weights, sessions, pools."""

from __future__ import annotations

from collections import Counter

import pytest

from warmlane.router.config import Config, ModelConfig, PoolConfig
from warmlane.router.core import Router
from warmlane.router.errors import RequestError
from warmlane.router.rewrites import Arms, Rewrite, Rewrites, Rule
from warmlane.router.types import Kind, ModelList, ReplicaSpec, Request


def rule(*targets: tuple[str, int], models: tuple[str, ...] = ()) -> Rule:
    return Rule(models=list(models), targets=list(targets))


def router_of(*pools: str, models: list[ModelConfig] | None = None) -> Router:
    """One replica a pool, which lists a model of the pool's name."""
    config = Config(pools=[PoolConfig(name=name) for name in pools], models=models or [])
    router = Router(config)
    for number, name in enumerate(pools):
        pool = router.pools[name]
        slot = pool.add(ReplicaSpec(url=f"http://10.0.0.{number}:80"), 0.0)
        pool.set_models(slot, ModelList(models=frozenset([name])))
    return router


def ask(model: str, **more: object) -> Request:
    return Request(kind=Kind.CHAT, model=model, **more)  # type: ignore[arg-type]


def test_exact_beats_generic_and_the_oldest_wins() -> None:
    young = Rewrite(
        name="a", created="2026-02-01T00:00:00Z", rules=[rule(("young", 1), models=("m",))]
    )
    old = Rewrite(
        name="b",
        created="2026-01-01T00:00:00Z",
        rules=[rule(("all", 1)), rule(("old", 1), models=("m",)), rule(("late", 1), models=("m",))],
    )
    twin = Rewrite(name="c", created="2026-01-01T00:00:00Z", rules=[rule(("twin", 1))])
    table = Rewrites([young, twin, old])
    assert table.exact["m"].choose(0) == "old"
    assert table.generic is not None and table.generic.choose(0) == "all"


def test_weights_over_the_whole_range() -> None:
    arms = Arms([("a", 1), ("b", 3)])
    step = (1 << 32) // 1024
    seen = Counter(arms.choose(n * step) for n in range(1024))
    assert seen == {"a": 256, "b": 768}
    assert arms.choose((1 << 64) - 1) == "b"
    assert Arms([("x", 1_000_000), ("y", 1)]).choose((1 << 32) - 1) == "y"


def test_a_rewrite_chooses_the_name_that_the_engine_sees() -> None:
    router = router_of("base")
    request = ask("alias")
    with pytest.raises(RequestError):
        router.prepare(request)
    router.catalog.set_rewrites(
        "base", [Rewrite(name="r", rules=[rule(("base", 1), models=("alias",))])]
    )
    target = router.prepare(request).target
    assert (target.pool, target.engine_name) == ("base", "base")
    assert [entry["id"] for entry in router.models()] == ["alias", "base"]
    router.catalog.set_rewrites("base", [])
    with pytest.raises(RequestError):
        router.prepare(request)


def test_a_generic_rule_rules_its_own_pool_alone() -> None:
    router = router_of("one", "two")
    router.catalog.set_rewrites("two", [Rewrite(name="r", rules=[rule(("canary", 1))])])
    assert router.prepare(ask("one")).target.engine_name == "one"
    assert router.prepare(ask("two")).target == ("two", "canary", "", "canary")
    # A name that nobody serves goes to the pool that takes all names.
    assert router.prepare(ask("never-heard-of")).target.pool == "two"


def test_the_configs_own_entry_comes_first() -> None:
    router = router_of("base", models=[ModelConfig(name="alias", pool="base", model="base")])
    router.catalog.set_rewrites(
        "base", [Rewrite(name="r", rules=[rule(("other", 1), models=("alias",))])]
    )
    assert router.prepare(ask("alias")).target.engine_name == "base"


def test_shares_follow_the_weights_and_a_session_stays() -> None:
    router = router_of("base")
    split = [Rewrite(name="r", rules=[rule(("v1", 3), ("v2", 1), models=("base",))])]
    router.catalog.set_rewrites("base", split)
    step = (1 << 32) // 1024
    seen = Counter(router.prepare(ask("base"), n * step).target.engine_name for n in range(1024))
    assert seen == {"v1": 768, "v2": 256}
    for session in ("a", "b", "c"):
        names = {
            router.prepare(ask("base", session=session), n * step).target.engine_name
            for n in range(50)
        }
        assert len(names) == 1


def test_names_from_clients_fill_no_table() -> None:
    router = router_of("base")
    router.catalog.set_rewrites("base", [Rewrite(name="r", rules=[rule(("base", 1))])])
    for number in range(2000):
        router.prepare(ask(f"name-{number}"))
    assert len(router.catalog._ruled) <= 256
    assert not router.catalog._guesses


def test_the_same_rewrites_again_change_nothing() -> None:
    router = router_of("base")
    found = [Rewrite(name="r", rules=[rule(("v", 1), models=("base",))])]
    router.catalog.set_rewrites("base", found)
    router.prepare(ask("base"))
    router.catalog.set_rewrites("base", list(found))
    assert router.catalog._ruled


def test_an_objective_gives_its_priority_in_its_pool() -> None:
    router = router_of("one", "two")
    router.catalog.set_objectives("one", {"gold": 10, "batch": -5})
    assert router.prepare(ask("one", objective="gold")).request.priority == -10
    assert router.prepare(ask("one", objective="batch", priority=3)).request.priority == 5
    assert router.prepare(ask("two", objective="gold", priority=3)).request.priority == 3
    assert router.prepare(ask("one", objective="unknown", priority=3)).request.priority == 3
    router.catalog.set_objectives("one", {})
    assert router.prepare(ask("one", objective="gold")).request.priority == 0
