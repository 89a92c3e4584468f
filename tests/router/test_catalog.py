"""Model names: pools, aliases, adapters, splits, unknown ones, and no state between pools."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.router.fleet import TURN, chat, words
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.errors import RequestError
from warmlane.router.types import ModelList, Outcome, Request


def two_pools(**more: Any) -> Router:
    pools = [
        {"name": "small", "replicas": ["s0:1", "s1:1"], "models": ["m-small"]},
        {"name": "large", "replicas": ["l0:1", "l1:1"]},
    ]
    router = Router(from_data({"pools": pools, **more}))
    for replica in router.pools["large"]:
        models = ModelList(models=frozenset({"m-large"}), adapters={"lora-1": "m-large"})
        router.pools["large"].set_models(replica.slot, models)
    return router


def went(router: Router, model: str, **fields: Any) -> tuple[str, str, str]:
    decision = router.decide(chat(model=model, **fields), 0.0, 1)
    router.close(decision.ticket, Outcome(), 0.0)
    return decision.pool, decision.model, decision.adapter


def test_by_config_and_by_the_replicas_own_list() -> None:
    router = two_pools()
    assert went(router, "m-small") == ("small", "", "")
    assert went(router, "m-large") == ("large", "", "")
    assert went(router, "lora-1") == ("large", "", "lora-1")


def test_unknown_is_404_once_every_list_is_known() -> None:
    router = two_pools()
    with pytest.raises(RequestError) as caught:
        went(router, "nope")
    error = caught.value
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert went(router, "") == ("small", "", ""), "no model named: the default pool"


def test_unknown_goes_where_a_list_is_not_known_yet() -> None:
    router = Router(from_data({"pools": [{"name": "a", "models": ["m"]}, {"name": "b"}]}))
    router.pools["b"].add(_spec("b0:1"), 0.0)
    assert went(router, "new") == ("b", "", "")
    single = Router(from_data({"pools": [{"replicas": ["a:1"]}]}))
    assert went(single, "anything") == ("default", "", "")


def _spec(url: str) -> Any:
    return from_data({"pools": [{"replicas": [url]}]}).pools[0].replicas[0]


def test_aliases_and_adapters_of_the_config() -> None:
    router = two_pools(
        models=[
            {"name": "gpt", "pool": "large", "model": "m-large"},
            {"name": "legal", "adapter": "lora-1"},
            {"name": "direct", "model": "m-small"},
        ]
    )
    assert went(router, "gpt") == ("large", "m-large", "")
    assert went(router, "legal") == ("large", "lora-1", "lora-1")
    assert went(router, "direct") == ("small", "m-small", "")


def test_an_alias_shares_its_targets_prefixes_and_an_adapter_does_not() -> None:
    router = two_pools(models=[{"name": "gpt", "pool": "large", "model": "m-large"}])
    text = words(1000)
    first = router.decide(chat(text, model="m-large"), 0.0, 1)
    router.sent(first.ticket, first.choices[0], 0.0)
    assert max(router.decide(chat(text, model="gpt"), 0.0, 2).hit_tokens) > 900
    assert max(router.decide(chat(text, model="lora-1"), 0.0, 3).hit_tokens) == 0
    assert max(router.decide(chat(text, model="m-large", salt="x"), 0.0, 4).hit_tokens) == 0


def test_a_body_that_cannot_be_rewritten_needs_the_engines_name() -> None:
    router = two_pools(models=[{"name": "gpt", "pool": "large", "model": "m-large"}])
    with pytest.raises(RequestError) as caught:
        went(router, "gpt", rewrite_model=False)
    assert caught.value.status == 400
    assert went(router, "m-large", rewrite_model=False)[0] == "large"


def test_a_split_follows_its_weights_and_a_session_stays() -> None:
    arms = [
        {"pool": "small", "model": "m-small", "weight": 3},
        {"pool": "large", "model": "m-large", "weight": 1},
    ]
    router = two_pools(models=[{"name": "mix", "split": arms}])

    def pool_of(rand: int, session: str = "") -> str:
        return router.prepare(chat(model="mix", session=session), rand).target.pool

    seen = Counter(pool_of(turn * TURN % 2**64) for turn in range(4000))
    assert seen["small"] == pytest.approx(3000, abs=150)
    assert pool_of(77) == pool_of(77)
    for session in ("a", "b", "c", "d"):
        assert len({pool_of(turn * TURN % 2**64, session) for turn in range(50)}) == 1
    sessions = Counter(pool_of(0, f"s{i}") for i in range(2000))
    assert sessions["small"] == pytest.approx(1500, abs=120)


def test_targets_follow_the_replicas_lists() -> None:
    router = two_pools()
    assert went(router, "lora-1")[2] == "lora-1"
    for replica in router.pools["large"]:
        router.pools["large"].set_models(replica.slot, ModelList(models=frozenset({"m-large"})))
    with pytest.raises(RequestError):
        went(router, "lora-1")


def test_names_that_clients_make_up_are_not_kept() -> None:
    router = Router(from_data({"pools": [{"replicas": ["a:1"]}]}))
    for i in range(600):
        router.prepare(chat(model=f"made-up-{i}"))
        assert len(router.catalog._targets) == 0 and len(router.catalog._guesses) <= 256
    before = dict(router.catalog._guesses)
    assert router.prepare(chat(model="long" * 100)).target.engine_name == "long" * 100
    assert router.catalog._guesses == before


def test_a_guess_ends_when_the_lists_are_known() -> None:
    router = Router(from_data({"pools": [{"replicas": ["a:1"]}]}))
    for _ in range(2):
        assert went(router, "new") == ("default", "", "")
    router.pools["default"].set_models(0, ModelList(models=frozenset({"other"})))
    with pytest.raises(RequestError):
        went(router, "new")


def test_no_state_leaks_between_pools() -> None:
    router = two_pools()
    text = words(2000)
    first = router.decide(chat(text, model="m-small"), 0.0, 1)
    router.sent(first.ticket, first.choices[0], 0.0)
    small, large = router.lanes["small"], router.lanes["large"]
    assert small.view.blocks > 0 and large.view.blocks == 0
    assert small.pool.ledger.open_tickets == 1 and large.pool.ledger.open_tickets == 0
    other = router.decide(chat(text, model="m-large"), 0.0, 1)
    assert max(other.hit_tokens) == 0
    router.close(first.ticket, Outcome(prompt_tokens=5000, output_tokens=9), 1.0)
    assert small.view.bytes_per_token.value != large.view.bytes_per_token.value == 4.0
    assert router.open_tickets == 1
    assert not router.close(first.ticket, Outcome(), 1.0)
    assert large.pool.ledger.open_tickets == 1, "a late close of one pool hits no other"


def test_models_are_merged() -> None:
    router = two_pools(models=[{"name": "gpt", "pool": "large", "model": "m-large"}])
    entries = {entry["id"]: entry for entry in router.models()}
    assert list(entries) == ["gpt", "lora-1", "m-large", "m-small"]
    assert entries["lora-1"]["parent"] == "m-large" and entries["m-large"]["parent"] is None
    assert all(entry["object"] == "model" for entry in entries.values())


def test_a_pool_with_a_model_list_adds_adapters_but_no_models_of_its_replicas() -> None:
    router = two_pools()
    listed = ModelList(models=frozenset({"secret", "m-small"}), adapters={"lora-s": "m-small"})
    router.pools["small"].set_models(0, listed)
    assert went(router, "lora-s") == ("small", "", "lora-s")
    with pytest.raises(RequestError):
        router.prepare(Request(kind=chat().kind, model="secret"))
