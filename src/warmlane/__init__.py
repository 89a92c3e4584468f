"""warmlane: cache-aware request routing for fleets of LLM inference replicas.

The public face. Names resolve on first use, so that `import warmlane` stays cheap and a program
that only needs the decision core never imports a network library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["Config", "ConfigError", "NoReplica", "RequestError", "Router", "RouterError", "__version__"]

if TYPE_CHECKING:
    from warmlane.router.config import Config
    from warmlane.router.core import Router
    from warmlane.router.errors import ConfigError, NoReplica, RequestError, RouterError

_WHERE = {
    "Config": "warmlane.router.config",
    "Router": "warmlane.router.core",
    "ConfigError": "warmlane.router.errors",
    "NoReplica": "warmlane.router.errors",
    "RequestError": "warmlane.router.errors",
    "RouterError": "warmlane.router.errors",
}


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'warmlane' has no attribute {name!r}")
    return getattr(import_module(where), name)


def __dir__() -> list[str]:
    return sorted(__all__)
