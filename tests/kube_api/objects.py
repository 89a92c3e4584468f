"""Manifests that tests write to the server: pods, pools, slices, objectives, rewrites."""

from __future__ import annotations

from typing import Any

from tests.kube_api.store import Json

DELETED_AT = "2026-01-01T00:10:00Z"


def pod(
    name: str,
    ip: str = "10.0.0.1",
    *,
    ready: bool = True,
    labels: dict[str, str] | None = None,
    node: str = "node-1",
    phase: str = "Running",
    **meta: Any,
) -> Json:
    """A pod labelled app=llm unless told otherwise."""
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"app": "llm"} if labels is None else labels, **meta},
        "spec": {"nodeName": node, "containers": [{"name": "engine", "image": "vllm"}]},
        "status": {
            "phase": phase,
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True" if ready else "False"},
            ],
        },
    }


def inference_pool(name: str, *ports: int, **labels: str) -> Json:
    return {
        "kind": "InferencePool",
        "apiVersion": "inference.networking.k8s.io/v1",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "targetPorts": [{"number": port} for port in ports],
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
        },
    }


def endpoint(ip: str, **more: Any) -> Json:
    conditions = {
        "ready": True,
        "serving": True,
        "terminating": False,
        **more.pop("conditions", {}),
    }
    return {"addresses": [ip], "conditions": conditions, **more}


def endpoint_slice(name: str, service: str, port: int, *endpoints: Json, **more: Any) -> Json:
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        **more,
    }


def objective(name: str, pool: str, priority: int | None) -> Json:
    spec: Json = {"poolRef": {"name": pool}}
    if priority is not None:
        spec["priority"] = priority
    return {"metadata": {"name": name}, "spec": spec}


def rewrite(name: str, pool: str, *rules: Json, created: str = "2026-01-01T00:00:00Z") -> Json:
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"poolRef": {"name": pool}, "rules": list(rules)},
    }


def rule(*targets: tuple[str, int], models: tuple[str, ...] = ()) -> Json:
    found: Json = {"targets": [{"modelRewrite": name, "weight": n} for name, n in targets]}
    if models:
        found["matches"] = [{"model": {"type": "Exact", "value": name}} for name in models]
    return found
