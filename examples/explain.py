"""Why does a request go where it goes? The same parts as a decision, each step written down."""

from __future__ import annotations

from warmlane import Router
from warmlane.router.config_load import from_data
from warmlane.router.types import Kind, Request

CONFIG = {
    "pools": [{"replicas": [{"url": f"http://r{i}:8000", "name": f"r{i}"} for i in range(3)]}]
}


def main() -> None:
    router = Router(from_data(CONFIG))
    request = Request(kind=Kind.CHAT, model="llama", prompt=b"The same beginning. " * 200)
    with router.route(request):
        pass
    found = router.explain(request, now=0.0)
    print(f"pool {found.pool}, policy {found.policy}, {found.prompt_tokens} prompt tokens")
    for line in found.replicas:
        scores = " ".join(f"{one.scorer} {one.product:.3f}" for one in line.scores)
        print(f"{line.replica}: order {line.order}, {line.hit_tokens} hit tokens; {scores}")


if __name__ == "__main__":
    main()
