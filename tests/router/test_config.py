"""The tree: defaults, refusals that name field and value, flags, and the printed reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmlane.router.cli import main
from warmlane.router.config import Config, PoolConfig
from warmlane.router.config_cli import reference, render
from warmlane.router.config_load import (
    from_data,
    load,
    normal_spec,
    replica_specs,
    split_url,
    with_flags,
)
from warmlane.router.errors import ConfigError
from warmlane.router.types import ReplicaSpec

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_empty_is_all_defaults() -> None:
    assert from_data({}) == Config()
    assert [pool.name for pool in Config().pools] == ["default"]
    assert Config().pools is not Config().pools  # no shared mutable default


def test_everything_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().listen.port = 1  # type: ignore[misc]


def test_short_and_long_replicas() -> None:
    config = from_data(
        {"pools": [{"replicas": ["http://a:8000", {"url": "b:9", "rank": 1, "zone": "z"}]}]}
    )
    first, second = config.pools[0].replicas
    assert (first.name, first.url) == ("a:8000", "http://a:8000")
    assert (second.name, second.url, second.zone) == ("b:9#1", "http://b:9", "z")


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        ({"listen": {"port": "x"}}, "listen.port", "'x'"),
        ({"listen": {"port": 70000}}, "listen.port", "70000"),
        ({"lisen": {}}, "lisen", "did you mean 'listen'"),
        ({"pools": [{"replica": []}]}, "pools[0].replica", "did you mean 'replicas'"),
        ({"pools": []}, "pools", "[]"),
        ({"pools": [{"name": ""}]}, "pools[0].name", "''"),
        ({"pools": [{}, {}]}, "pools[].name", "'default'"),
        ({"pools": [{"replicas": ["http://a", "http://a:80"]}]}, "replicas[].name", "'a:80'"),
        ({"pools": [{"replicas": ["ftp://a"]}]}, "pools[0].replicas[0].url", "'ftp://a'"),
        ({"pools": [{"replicas": ["http://a/v1"]}]}, "pools[0].replicas[0].url", "http://a/v1"),
        ({"pools": [{"replicas": ["http://a:99999"]}]}, "replicas[0].url", "99999"),
        ({"pools": [{"replicas": [{"url": "a", "nme": 3}]}]}, "replicas[0].nme", "3"),
        ({"pools": [{"engine": "vlm"}]}, "pools[0].engine", "'vlm'"),
        ({"pools": [{"policy": "random", "scorers": ["zone"]}]}, "pools[0].scorers", "random"),
        (
            {"pools": [{"engine_api_key_file": "f", "engine_api_key_env": "E"}]},
            "pools[0].engine_api_key_env",
            "'E'",
        ),
        (
            {"limits": {"replicas": 1}, "pools": [{"replicas": ["a", "b"]}]},
            "pools[0].replicas",
            "2",
        ),
        ({"models": [{"name": "m", "pool": "zz"}]}, "models[0].pool", "'zz'"),
        ({"models": [{"name": "m"}, {"name": "m"}]}, "models[].name", "'m'"),
        ({"models": [{"name": "m", "split": [{"pool": "q"}]}]}, "models[0].split[0].pool", "'q'"),
        (
            {"models": [{"name": "m", "pool": "default", "split": [{"pool": "default"}]}]},
            "models[0].split",
            "'m'",
        ),
        ({"default_pool": "q"}, "default_pool", "'q'"),
        ({"listen": {"tls_cert": "c"}}, "listen.tls_key", "''"),
        ({"index": {"block_bytes": 300}}, "index.block_bytes", "300"),
        ({"timeouts": {"connect_s": 0}}, "timeouts.connect_s", "0"),
        ([], "config", "[]"),
    ],
)
def test_a_refusal_names_field_and_value(data: Any, field: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_data(data)
    text = str(caught.value)
    assert field in text and value in text
    assert "\n" not in text


def test_long_values_are_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        from_data({"zone": ["x" * 5000]})
    assert len(str(caught.value)) < 200


def test_yaml_and_json_files(tmp_path: Path) -> None:
    tree = {"listen": {"port": 9}, "pools": [{"replicas": ["http://a:1"]}]}
    (tmp_path / "c.json").write_text(json.dumps(tree))
    (tmp_path / "c.yaml").write_text("listen: {port: 9}\npools:\n- replicas: [http://a:1]\n")
    assert load(tmp_path / "c.json") == load(tmp_path / "c.yaml") == from_data(tree)
    (tmp_path / "empty.yaml").write_text("")
    assert load(tmp_path / "empty.yaml") == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("listen: {port: 1}\nlisten: {port: 2}\n", ["line 2", "'listen'"]),
        ("listen: {port: 1, port: 2}\n", ["'port'", "twice"]),
        ("a: [", ["not YAML or JSON"]),
        ("? [1, 2]\n: 3\n", ["not a word"]),
        ("- 1\n", ["mapping"]),
    ],
)
def test_broken_files(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert all(word in str(caught.value) for word in [*words, "bad.yaml"])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.yaml")


def test_flags_over_file() -> None:
    data = {"listen": {"port": 1, "host": "h"}, "pools": [{"name": "a"}, {"name": "b"}]}
    merged = with_flags(data, replicas=["http://x:1"], port=7, admin_port=8, policy="random")
    config = from_data(merged)
    assert (config.listen.host, config.listen.port, config.admin.port) == ("h", 7, 8)
    assert [pool.policy for pool in config.pools] == ["random", "random"]
    assert [len(pool.replicas) for pool in config.pools] == [1, 0]
    assert data == {"listen": {"port": 1, "host": "h"}, "pools": [{"name": "a"}, {"name": "b"}]}
    assert from_data(with_flags({})) == Config()
    with pytest.raises(ConfigError, match="pools"):
        with_flags({"pools": 3}, policy="random")
    with pytest.raises(ConfigError, match="listen"):
        with_flags({"listen": 3}, port=1)


def test_replica_files() -> None:
    assert [spec.name for spec in replica_specs(["a:1", {"url": "b:2"}], where="f")] == [
        "a:1",
        "b:2",
    ]
    assert replica_specs({"replicas": []}, where="f") == []
    with pytest.raises(ConfigError, match=r"f: \[0\]: 3"):
        replica_specs([3], where="f")
    with pytest.raises(ConfigError, match="list of replicas"):
        replica_specs("a:1", where="f")


@given(
    st.sampled_from(["", "http://", "https://"]),
    st.sampled_from(["h", "h.example", "10.0.0.1", "[::1]", "[fe80::1]", "A-b.C"]),
    st.none() | st.integers(0, 65535),
)
def test_origins(scheme: str, host: str, port: int | None) -> None:
    url = scheme + host + ("" if port is None else f":{port}")
    found = split_url(url)
    expected_scheme = scheme.removesuffix("://") or "http"
    default = 443 if expected_scheme == "https" else 80
    assert found == (host.lower(), default if port is None else port, expected_scheme)
    spec = normal_spec(ReplicaSpec(url=url))
    assert normal_spec(spec) == spec


@given(st.text(max_size=30))
def test_any_text_as_url_is_an_origin_or_refused(text: str) -> None:
    try:
        host, port, scheme = split_url(text)
    except ConfigError:
        return
    assert split_url(f"{scheme}://{host}:{port}") == (host, port, scheme)
    assert not any(char.isspace() or char in "/?#@" for char in host)


def test_check_config_prints_the_whole_tree(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("pools: [{replicas: [http://a:1], scorers: [{name: queue_depth, limit: 8}]}]\n")
    assert main(["check-config", str(path)]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    assert load(tmp_path / "again.yaml") == load(path)
    for field in msgspec.structs.fields(Config):
        assert f"\n{field.name}:" in f"\n{printed}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("listen: {port: x}", ["listen.port", "'x'"]),
        ("pools: [{scorers: [qeue]}]", ["pools[0].scorers[0]", "'qeue'"]),
        ("pools: [{scorers: [{name: queue_depth, limt: 3}]}]", ["limt", "did you mean 'limit'"]),
        ("pools: [{policy: nope}]", ["pools[0].policy", "'nope'"]),
    ],
)
def test_check_config_refuses(tmp_path: Path, capsys: Any, text: str, words: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert main(["check-config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in [*words, str(path)])


def test_the_reference_is_up_to_date() -> None:
    """`warmlane check-config --reference > docs/config.md` after a change of the tree."""
    assert (DOCS / "config.md").read_text() == reference()


def test_every_field_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    # ReplicaSpec lives on floor 1 and is described in its docstring.
    described = reference().split("## ReplicaSpec")[0]
    assert [line for line in described.splitlines() if line.endswith("|  |")] == []


def test_render_is_stable() -> None:
    config = from_data({"pools": [{"replicas": ["http://a:1"]}]})
    assert "http://a:1" in render(config)
    assert PoolConfig() == Config().pools[0]
