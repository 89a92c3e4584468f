"""What the router answers itself: its own health and the models of all pools.

Everything else, known or not, goes to a replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import msgspec

from warmlane.router.errors import RequestError
from warmlane.router.problems import problem
from warmlane.router.proxy.replies import JSON
from warmlane.router.types import ReplicaState

if TYPE_CHECKING:
    from warmlane.router.proxy.request_head import RequestHead
    from warmlane.router.proxy.state import State

Answer = tuple[int, Mapping[str, str], bytes]

_READING: Final = frozenset({b"GET", b"HEAD"})
_MODELS: Final = "/v1/models"


def local_answer(state: State, head: RequestHead) -> Answer | None:
    """Status, headers and body, or None when a replica is to answer."""
    if head.method not in _READING:
        return None
    path = head.path
    if path == "/health":
        return _health(state)
    if path == _MODELS:
        return 200, JSON, msgspec.json.encode({"object": "list", "data": state.router.models()})
    if path.startswith("/v1/models/"):
        return _one_model(state, unquote(path[len(_MODELS) + 1 :]))
    return None


def _health(state: State) -> Answer:
    """200 while at least one replica is ready, as an engine's own /health: no body."""
    ready = any(
        replica.state is ReplicaState.READY
        for pool in state.router.pools.values()
        for replica in pool
    )
    return (200 if ready and not state.draining else 503), {}, b""


def _one_model(state: State, name: str) -> Answer:
    for model in state.router.models():
        if model["id"] == name:
            return 200, JSON, msgspec.json.encode(model)
    error = RequestError(
        404, f"The model `{name}` does not exist.", kind="NotFoundError", code="model_not_found"
    )
    return problem(error)
