"""Many models in one process: pools, an alias, an adapter, a split that keeps sessions whole."""

from __future__ import annotations

from collections import Counter

from warmlane import RequestError, Router
from warmlane.router.config_load import from_data

CONFIG = {
    "pools": [
        {"name": "small", "models": ["llama-8b"], "replicas": ["http://s1:8000", "http://s2:8000"]},
        {"name": "large", "models": ["llama-70b"], "replicas": ["http://l1:8000"]},
    ],
    "models": [
        {"name": "assistant", "pool": "small", "model": "llama-8b"},
        {"name": "legal", "pool": "large", "adapter": "legal-lora", "model": "llama-70b"},
        {
            "name": "trial",
            "split": [
                {"pool": "small", "model": "llama-8b", "weight": 9},
                {"pool": "large", "model": "llama-70b", "weight": 1},
            ],
        },
    ],
}


def main() -> None:
    router = Router(from_data(CONFIG))
    for name in ("llama-70b", "assistant", "legal"):
        with router.route(model=name, prompt="Hello") as route:
            decision = route.decision
            print(f"{name}: pool {decision.pool}, engine sees {decision.model or name!r}")
    arms: Counter[str] = Counter()
    for number in range(500):
        with router.route(model="trial", prompt="Hello", session=f"user {number}") as route:
            arms[route.decision.pool] += 1
    print("trial:", dict(sorted(arms.items())))
    try:
        with router.route(model="unknown", prompt="Hello"):
            pass
    except RequestError as error:
        print(error.status, error.code)


if __name__ == "__main__":
    main()
