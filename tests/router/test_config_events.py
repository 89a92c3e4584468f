"""Where events are to be had: what the config takes, and what it makes of it."""

from __future__ import annotations

import pytest

from warmlane.router.config_events import Endpoints, at_rank, check_events, endpoints, is_open
from warmlane.router.config_load import from_data, with_flags
from warmlane.router.errors import ConfigError
from warmlane.router.types import ReplicaSpec


@pytest.mark.parametrize(
    "text",
    [
        "off",
        "auto",
        "tcp://10.0.0.5:5557",
        "tcp://*:5557",
        "tcp://{host}:5557,tcp://{host}:5558",
        "tcp://[::1]:1,ipc:///tmp/replay",
        "http://{host}:8000/kv_cache_events",
    ],
)
def test_forms_that_are_taken(text: str) -> None:
    check_events(text, "here")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "on",
        "5557",
        "tcp://host",
        "tcp://h:0",
        "tcp://h:70000",
        "http://h:1",
        "a,b,c",
        "inproc://x",
    ],
)
def test_forms_that_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"here: .*off, auto"):
        check_events(text, "here")


def test_endpoints_of_a_replica() -> None:
    spec = ReplicaSpec(url="http://[fe80::1]:8000", rank=2)
    text = "tcp://{host}:5557,tcp://{host}:6557"
    assert endpoints(text, spec) == Endpoints("tcp://[fe80::1]:5559", "tcp://[fe80::1]:6559")
    assert endpoints("tcp://a:1", ReplicaSpec(url="http://h:8000")) == Endpoints("tcp://a:1")
    assert at_rank("ipc:///tmp/x", 1) == "ipc:///tmp/x_dp1"
    assert is_open("tcp://*:1") and is_open("ipc://x") and not is_open("tcp://10.0.0.5:5557")


def test_config_and_flags() -> None:
    config = from_data(with_flags({}, replicas=["http://a:1"], kv_events="auto"))
    assert config.pools[0].kv_events == "auto"
    with pytest.raises(ConfigError, match=r"pools\[0\]\.kv_events"):
        from_data({"pools": [{"kv_events": "yes"}]})
    bad = {"pools": [{"replicas": [{"url": "http://a:1", "kv_events": "tcp://a:2"}]}]}
    with pytest.raises(ConfigError, match="has events; say auto here"):
        from_data(bad)
    bad["pools"][0]["replicas"][0]["kv_events"] = "nonsense"  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"replicas\[0\]\.kv_events"):
        from_data(bad)
