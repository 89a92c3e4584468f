"""What a user of the library writes; mypy --strict must accept it, and refuse `refused.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_type

from warmlane import Config, NoReplica, Router
from warmlane.router.config_load import from_data
from warmlane.router.core import Route
from warmlane.router.explain import Explanation
from warmlane.router.interfaces import Candidates, Scorer
from warmlane.router.types import Decision, Kind, Outcome, Request


class Cheapest:
    """A scorer without a base class."""

    def __init__(self, *, label: str = "price") -> None:
        self.label = label

    def score(self, request: Request, candidates: Candidates) -> Sequence[float]:
        return [
            0.0 if each is None else 1.0 / (1.0 + float(each.spec.labels.get(self.label, "1")))
            for each in candidates.replicas
        ]


def use(config: Config) -> str:
    scorer: Scorer = Cheapest(label="eur")
    assert isinstance(scorer, Scorer)
    router = Router(config)
    try:
        with router.route(model="m", prompt="hello") as route:
            assert_type(route, Route)
            assert_type(route.decision, Decision)
            assert_type(route.endpoint, str)
            route.first_token()
            route.finish(Outcome(output_tokens=3))
    except NoReplica as error:
        assert_type(error.removed, dict[str, int])
    request = Request(kind=Kind.CHAT, prompt=b"hello")
    decision = router.decide(request, 0.0, 1)
    assert_type(decision.choices, tuple[int, ...])
    assert_type(router.explain(request, 0.0), Explanation)
    assert_type(router.first_token(decision.ticket, 1.0), float)
    assert_type(router.close(decision.ticket, Outcome(), 2.0), bool)
    return route.url


if __name__ == "__main__":
    use(from_data({"pools": [{"replicas": ["http://127.0.0.1:8000"]}]}))
