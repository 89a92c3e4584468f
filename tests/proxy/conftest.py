"""The proxy's tests run on uvloop, as the proxy does."""

from __future__ import annotations

from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories(
    config: object, item: object
) -> dict[str, Callable[[], uvloop.Loop]]:
    return {"uvloop": uvloop.new_event_loop}
