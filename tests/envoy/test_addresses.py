"""Names of replicas become addresses; one that cannot does not keep the others from it."""

from __future__ import annotations

import pytest

from warmlane.envoy.addresses import Resolver
from warmlane.envoy.picker import Picker
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.types import ReplicaSpec

URLS = ["http://a..b:80", "http://localhost:8000", "http://10.0.0.1:8000"]


@pytest.fixture
def picker() -> Picker:
    config = from_data({"pools": [{"replicas": URLS}]})
    return Picker(Router(config), config)


def told(picker: Picker) -> list[str]:
    return [way.address for way in picker.ways("default").fresh() if way is not None]


async def test_names_are_looked_up_and_addresses_are_not(picker: Picker) -> None:
    resolver = Resolver(picker)
    assert told(picker) == ["a..b:80", "localhost:8000", "10.0.0.1:8000"]
    resolver.look(0.0)
    await resolver.resolved()
    assert told(picker) == ["a..b:80", "127.0.0.1:8000", "10.0.0.1:8000"]


async def test_a_name_that_nobody_knows_is_told_once(
    picker: Picker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "warmlane.envoy")
    resolver = Resolver(picker)
    for now in (0.0, 100.0, 200.0):
        resolver.look(now)
        await resolver.resolved()
    (line,) = caplog.messages
    assert line.startswith("event=not_resolved endpoint=a..b:80")
    pool = picker.router.pools["default"]
    assert pool.remove("a..b:80", 0.0)
    resolver.look(300.0)
    await resolver.resolved()
    pool.add(ReplicaSpec(url="http://a..b:80"), 0.0)  # it is told of anew
    resolver.look(400.0)
    await resolver.resolved()
    assert len(caplog.messages) == 2
