"""The halves, for a program with its own event loop: every event of a ticket is a plain call."""

from __future__ import annotations

import random
import time

from warmlane import NoReplica, Router
from warmlane.router.config_load import from_data
from warmlane.router.types import Kind, Outcome, Request

CONFIG = {
    "pools": [{"replicas": [f"http://10.0.0.{i}:8000" for i in range(1, 5)]}],
    "timeouts": {"ticket_s": 600},
}


def send(url: str) -> bool:
    """Stands for your HTTP call; the first replica refuses the connection."""
    return not url.endswith("1:8000")


def serve(router: Router, request: Request) -> str:
    decision = router.decide(request, time.monotonic(), random.getrandbits(64))
    replicas = router.pools[decision.pool].replicas
    outcome, answered_by = Outcome(status="error"), ""
    try:
        for slot in decision.choices:  # best first; the work is reserved on the first
            replica = replicas[slot]
            assert replica is not None, "choices are members of the pool"
            router.sent(decision.ticket, slot, time.monotonic())
            if send(replica.spec.url):
                answered_by = replica.name
                break
        router.first_token(decision.ticket, time.monotonic())
        router.progress(decision.ticket, 12)
        outcome = Outcome(prompt_tokens=900, cached_tokens=880, output_tokens=40, text=b"Hello.")
    finally:
        router.close(decision.ticket, outcome, time.monotonic())  # exactly once, whatever happens
    return answered_by


def main() -> None:
    router = Router(from_data(CONFIG))
    request = Request(kind=Kind.CHAT, model="llama", prompt=b"Tell me a long story. " * 150)
    for _ in range(6):
        print("answered by", serve(router, request))
    for replica in list(router.pools["default"]):
        router.pools["default"].drain(replica.name)
    try:
        serve(router, request)
    except NoReplica as error:
        print(error.status, error.removed)
    router.maintain(time.monotonic())  # every second or so
    assert router.open_tickets == 0


if __name__ == "__main__":
    main()
