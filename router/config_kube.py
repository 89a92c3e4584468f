"""The Kubernetes part of the tree: flags to fields, and checks that need more than one field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmlane.router.config import Kubernetes, Leader
from warmlane.router.errors import ConfigError


def with_inference_pool(
    data: Mapping[str, Any],
    pool_name: str | None = None,
    pool_namespace: str | None = None,
    kubeconfig: str | None = None,
) -> dict[str, Any]:
    """Plain config data in which the first pool follows the InferencePool `pool_name`.

    For `--pool-name --pool-namespace --kubeconfig`, of `serve` and of `ext-proc`. None leaves a
    field alone; the pool is named after the InferencePool unless the data names it.
    """
    given = {"pool": pool_name, "namespace": pool_namespace, "kubeconfig": kubeconfig}
    fields = {name: value for name, value in given.items() if value is not None}
    merged = dict(data)
    if not fields:
        return merged
    pools = merged.get("pools") or [{}]
    if not isinstance(pools, list) or not isinstance(pools[0] or {}, Mapping):
        raise ConfigError("config: pools: must be a list of mappings")
    first = {**({"name": pool_name} if pool_name else {}), **(pools[0] or {})}
    discovery = dict(first.get("discovery") or {})
    discovery["kubernetes"] = {**(discovery.get("kubernetes") or {}), **fields}
    first["discovery"] = discovery
    merged["pools"] = [first, *pools[1:]]
    return merged


def check_kubernetes(config: Kubernetes | None, where: str) -> None:
    """ConfigError: not exactly one way to find pods, or ports that are missing."""
    if config is None:
        return
    given = [name for name in ("pool", "selector", "slices") if getattr(config, name)]
    if len(given) != 1:
        raise ConfigError(
            f"{where}: {', '.join(given) or 'nothing'}: set exactly one of pool, selector, slices"
        )
    if config.selector and not config.ports:
        raise ConfigError(f"{where}.ports: []: a selector needs the ports of the replicas")
    if config.pool and config.ports:
        raise ConfigError(f"{where}.ports: {config.ports}: the InferencePool tells its own")
    if len(set(config.ports)) != len(config.ports):
        raise ConfigError(f"{where}.ports: {config.ports}: a port is named twice")


def check_leader(config: Leader) -> None:
    """ConfigError: times that let two pickers lead at once."""
    if not config.lease:
        return
    if not config.retry_s < config.renew_s < config.lease_s:
        raise ConfigError(
            f"leader: retry_s {config.retry_s:g}, renew_s {config.renew_s:g}, lease_s"
            f" {config.lease_s:g}: each must be below the next"
        )
