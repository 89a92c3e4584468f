"""From a file, plain data or command-line flags to a checked `Config`.

Every refusal is a `ConfigError` of one line that names the field (dotted path) and the value.
Reads the file it is given and nothing else; key files are read by whoever uses the keys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from warmlane.router.config import Config, ModelConfig, PoolConfig
from warmlane.router.config_adapters import check_adapters
from warmlane.router.config_events import check_events
from warmlane.router.config_kube import check_kubernetes, check_leader
from warmlane.router.config_share import check_share
from warmlane.router.errors import ConfigError
from warmlane.router.types import ReplicaSpec

_SHOWN = 60  # characters of an offending value that a message repeats
_SCHEME_PORT = {"http": 80, "https": 443}
_ORIGIN = re.compile(
    r"(?:(?P<scheme>https?)://)?"
    r"(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe subset; a key written twice is an error, not silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a key is not a word")
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: {key!r} is written twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: str | Path) -> Config:
    """The checked tree of a YAML or JSON file. Raises ConfigError; its message names the file."""
    return from_data(read(path), where=str(path))


def read(path: str | Path) -> Any:
    """Plain data of a YAML or JSON file (JSON is YAML). An empty file is an empty tree."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML or JSON: {_one_line(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return {} if data is None else data


def from_data(data: Any, *, where: str = "config") -> Config:
    """The checked tree of plain data (dicts, lists, words, numbers)."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: must be a mapping of fields, not {_show(data)}")
    plain = _normal(data)
    try:
        config = msgspec.convert(plain, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain_error(error, plain, Config)}") from error
    try:
        return checked(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def with_flags(
    data: Any,
    *,
    replicas: Sequence[str] = (),
    host: str | None = None,
    port: int | None = None,
    admin_host: str | None = None,
    admin_port: int | None = None,
    policy: str | None = None,
    api_key_file: str | None = None,
    engine_api_key_file: str | None = None,
    tokenizer: str | None = None,
    kv_events: str | None = None,
) -> dict[str, Any]:
    """`data` with command-line flags laid over it; None and () leave a field alone.

    Replicas join the first pool; policy, engine key, tokenizer and events apply to every pool, as
    the command line knows none by name.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"config: must be a mapping of fields, not {_show(data)}")
    merged: dict[str, Any] = dict(data)
    for node, fields in (
        ("listen", {"host": host, "port": port, "api_key_file": api_key_file}),
        ("admin", {"host": admin_host, "port": admin_port}),
    ):
        given = {name: value for name, value in fields.items() if value is not None}
        if given:
            merged[node] = {**_mapping(merged.get(node), node), **given}
    for_pools = {
        "policy": policy,
        "engine_api_key_file": engine_api_key_file,
        "tokenizer": tokenizer,
        "kv_events": kv_events,
    }
    given = {name: value for name, value in for_pools.items() if value is not None}
    if given or replicas:
        pools = merged.get("pools") or [{}]
        if not isinstance(pools, list):
            raise ConfigError(f"config: pools: must be a list, not {_show(pools)}")
        pools = [{**_mapping(pool, "pools"), **given} for pool in pools]
        if replicas:
            pools[0]["replicas"] = [*(pools[0].get("replicas") or []), *replicas]
        merged["pools"] = pools
    return merged


def replica_specs(items: Any, *, where: str) -> list[ReplicaSpec]:
    """Checked specs of a list of URLs or mappings, as a watched file holds them."""
    if isinstance(items, Mapping) and set(items) == {"replicas"}:
        items = items["replicas"]
    if not isinstance(items, list):
        raise ConfigError(f"{where}: must be a list of replicas, not {_show(items)}")
    plain = [{"url": item} if isinstance(item, str) else item for item in items]
    try:
        specs = msgspec.convert(plain, list[ReplicaSpec])
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain_error(error, plain, ReplicaSpec)}") from error
    return [normal_spec(spec, f"{where}[{i}]") for i, spec in enumerate(specs)]


def normal_spec(spec: ReplicaSpec, where: str = "replica") -> ReplicaSpec:
    """`spec` with its default name ("host:port", "#rank" appended) and a bare origin as URL."""
    host, port, scheme = split_url(spec.url, f"{where}.url")
    endpoint = f"{host}:{port}"
    if spec.kv_events:
        check_events(spec.kv_events, f"{where}.kv_events")
    name = spec.name or (endpoint if spec.rank is None else f"{endpoint}#{spec.rank}")
    return msgspec.structs.replace(spec, url=f"{scheme}://{endpoint}", name=name)


def split_url(url: str, where: str = "url") -> tuple[str, int, str]:
    """(host with brackets round IPv6, port, scheme) of an origin URL. Raises ConfigError."""
    found = _ORIGIN.fullmatch(url)
    if not found:
        raise ConfigError(f"{where}: {_show(url)}: must be http(s)://host[:port] and nothing else")
    scheme = found["scheme"] or "http"
    port = int(found["port"]) if found["port"] else _SCHEME_PORT[scheme]
    if port > 65_535:
        raise ConfigError(f"{where}: {_show(url)}: port {port} is above 65535")
    return found["host"].lower(), port, scheme


def checked(config: Config) -> Config:
    """`config` with normal replica names, after the checks that need more than one field."""
    _distinct((pool.name for pool in config.pools), "pools[].name")
    _distinct((model.name for model in config.models), "models[].name")
    pools = [
        msgspec.structs.replace(
            pool,
            replicas=[
                normal_spec(spec, f"pools[{i}].replicas[{j}]")
                for j, spec in enumerate(pool.replicas)
            ],
        )
        for i, pool in enumerate(config.pools)
    ]
    _distinct((spec.name for pool in pools for spec in pool.replicas), "pools[].replicas[].name")
    names = [pool.name for pool in pools]
    for i, pool in enumerate(pools):
        _check_pool(pool, f"pools[{i}]", config)
    for i, model in enumerate(config.models):
        _check_model(model, f"models[{i}]", names)
    check_leader(config.leader)
    check_share(config.share)
    if config.default_pool and config.default_pool not in names:
        raise ConfigError(f"default_pool: {_show(config.default_pool)}: {_known(names)}")
    if bool(config.listen.tls_cert) != bool(config.listen.tls_key):
        missing = "tls_key" if config.listen.tls_cert else "tls_cert"
        raise ConfigError(f"listen.{missing}: '': TLS needs both tls_cert and tls_key")
    return msgspec.structs.replace(config, pools=pools)


def _check_pool(pool: PoolConfig, where: str, config: Config) -> None:
    if not pool.name:
        raise ConfigError(f"{where}.name: '': must not be empty")
    if pool.scorers and pool.policy != "default":
        raise ConfigError(
            f"{where}.scorers: {_show(pool.scorers)}: policy {pool.policy!r} brings its own;"
            " set one of the two"
        )
    check_events(pool.kv_events, f"{where}.kv_events")
    check_adapters(pool.adapters, f"{where}.adapters")
    for spec in pool.replicas if pool.kv_events == "off" else ():
        if spec.kv_events not in ("", "off"):
            raise ConfigError(
                f"{where}.kv_events: 'off': replica {spec.name!r} has events; say auto here"
            )
    if pool.engine_api_key_file and pool.engine_api_key_env:
        raise ConfigError(
            f"{where}.engine_api_key_env: {_show(pool.engine_api_key_env)}:"
            " engine_api_key_file is set too"
        )
    check_kubernetes(pool.discovery.kubernetes, f"{where}.discovery.kubernetes")
    if len(pool.replicas) > config.limits.replicas:
        raise ConfigError(
            f"{where}.replicas: {len(pool.replicas)} replicas: limits.replicas is"
            f" {config.limits.replicas}"
        )


def _check_model(model: ModelConfig, where: str, pools: list[str]) -> None:
    if not model.name:
        raise ConfigError(f"{where}.name: '': must not be empty")
    if model.pool and model.pool not in pools:
        raise ConfigError(f"{where}.pool: {_show(model.pool)}: {_known(pools)}")
    if model.split and (model.pool or model.model or model.adapter):
        raise ConfigError(
            f"{where}.split: {_show(model.name)}: a split takes pool, model and adapter in its arms"
        )
    for i, arm in enumerate(model.split):
        if arm.pool not in pools:
            raise ConfigError(f"{where}.split[{i}].pool: {_show(arm.pool)}: {_known(pools)}")


def explain_error(error: msgspec.ValidationError, data: Any, of: Any) -> str:
    """One line for a msgspec error: dotted field, offending value, what was wanted."""
    text = _one_line(error)
    wanted, _, path = text.partition(" - at `")
    steps = re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", path.rstrip("`").removeprefix("$"))
    value, dotted = data, ""
    for name, place in steps:
        dotted += f"[{place}]" if place else f".{name}"
        try:
            value = value[int(place)] if place else value[name]
        except (KeyError, IndexError, TypeError):
            break
    dotted = dotted.lstrip(".")
    unknown = re.search(r"unknown field `([^`]*)`", wanted)
    if unknown:
        field = unknown.group(1)
        dotted = f"{dotted}.{field}" if dotted else field
        shown = value.get(field) if isinstance(value, Mapping) else value
        known = _fields_at(of, [name for name, _ in steps if name])
        close = difflib.get_close_matches(field, known, 1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        return f"{dotted}: {_show(shown)}: unknown field{hint}"
    return f"{dotted or 'value'}: {_show(value)}: {wanted[:1].lower()}{wanted[1:]}"


def _fields_at(of: Any, names: list[str]) -> list[str]:
    """Field names of the struct that lies below `of` along `names`; [] when it is no struct."""
    for name in names:
        found = next((f.type for f in _struct_fields(of) if f.encode_name == name), None)
        if found is None:
            return []
        of = found
    return [field.encode_name for field in _struct_fields(of)]


def _struct_fields(of: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    while not (isinstance(of, type) and issubclass(of, msgspec.Struct)):
        inner = getattr(of, "__args__", None) or getattr(of, "__origin__", None)
        if inner is None:
            return ()
        of = inner[0] if isinstance(inner, tuple) else inner
    return msgspec.structs.fields(of)


def _normal(data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with short forms written out: a replica may be a bare URL."""
    plain = dict(data)
    if isinstance(plain.get("pools"), list):
        plain["pools"] = [_normal_pool(pool) for pool in plain["pools"]]
    return plain


def _normal_pool(pool: Any) -> Any:
    if not isinstance(pool, Mapping) or not isinstance(pool.get("replicas"), list):
        return pool
    specs = [{"url": item} if isinstance(item, str) else item for item in pool["replicas"]]
    return {**pool, "replicas": specs}


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"config: {where}: must be a mapping, not {_show(value)}")
    return value


def _distinct(values: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"{where}: {_show(value)}: used twice")
        seen.add(value)


def _known(names: Iterable[str]) -> str:
    return "unknown; known: " + ", ".join(sorted(names))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
