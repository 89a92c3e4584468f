"""The proxy's tests run on uvloop, as the proxy does; those with a rig on both of its paths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import uvloop

POLICIES = ("round-robin", "default")


def pytest_asyncio_loop_factories(
    config: object, item: object
) -> dict[str, Callable[[], uvloop.Loop]]:
    return {"uvloop": uvloop.new_event_loop}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a module that uses the rig runs once per path; test_straight names its own."""
    if hasattr(metafunc.module, "rig") and not hasattr(metafunc.module, "PLAIN"):
        metafunc.parametrize("way", POLICIES, indirect=True)


@pytest.fixture(autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy of rigs that do not say one."""
    policy = getattr(request, "param", None)
    if policy is not None:
        # Through the test's own module: this one may have another copy of `rig`.
        monkeypatch.setitem(request.module.rig.__wrapped__.__globals__, "POLICY", policy)
