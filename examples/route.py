"""The shortest use: one call picks a replica, the block says how long the request lives."""

from __future__ import annotations

import time

from warmlane import Router
from warmlane.router.config_load import from_data
from warmlane.router.types import Outcome

CONFIG = {"pools": [{"replicas": ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]}]}


def send(url: str, prompt: str) -> str:
    """Stands for your HTTP call to the engine at `url`."""
    return f"{url} answered {len(prompt)} characters"


def main() -> None:
    router = Router(from_data(CONFIG), clock=time.monotonic)
    system = "You are a patient assistant. " * 100
    for question in ("What is a cache?", "And a prefix?", "Why warm?"):
        prompt = system + question
        with router.route(model="llama", prompt=prompt) as route:
            print(send(route.url, prompt), f"({route.hit_tokens} tokens were there)")
            route.finish(Outcome(output_tokens=20))


if __name__ == "__main__":
    main()
