"""What routing reads of Kubernetes objects, and how pods and slices become replicas. No network.

Only the fields named here are decoded; whatever else an object holds is skipped. Sources: core/v1
Pod and Node, discovery.k8s.io/v1 EndpointSlice, inference.networking.k8s.io/v1 InferencePool, and
llm-d.ai InferenceObjective and InferenceModelRewrite with their older groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import NamedTuple

import msgspec

from warmlane.router.config import Kubernetes
from warmlane.router.rewrites import Rewrite, Rule
from warmlane.router.types import ReplicaSpec

ZONE = "topology.kubernetes.io/zone"
MAX_PORTS = 8  # of an InferencePool v1
# Ports of a pod that serve now, a subset of the pool's: comma-separated numbers.
ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
KEPT_LABELS = ("llm-d.ai/role", "llm-d.ai/engine-type")
LWS_WORKER = "leaderworkerset.sigs.k8s.io/worker-index"
RAY_NODE = "ray.io/node-type"
GROUP_INDEX = "pod-group-index"  # AIBrix, under any prefix
_DONE = frozenset({"Succeeded", "Failed"})
_MAX_ADAPTERS = 256


class Meta(msgspec.Struct, rename="camel"):
    """metav1.ObjectMeta and ListMeta in one."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    continue_: str | None = msgspec.field(default=None, name="continue")


class Thing(msgspec.Struct):
    """Any object, for its metadata alone."""

    metadata: Meta


class _Condition(msgspec.Struct):
    type: str = ""
    status: str = ""


class _PodSpec(msgspec.Struct, rename="camel"):
    node_name: str | None = None


class _PodStatus(msgspec.Struct):
    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    conditions: list[_Condition] | None = None


class Pod(Thing):
    """core/v1 Pod."""

    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)

    def leaving(self) -> bool:
        """Deleted, done, or about to be evicted: it gets no new request."""
        return (
            self.metadata.deletion_timestamp is not None
            or self.status.phase in _DONE
            or self.condition("DisruptionTarget")
        )

    def condition(self, name: str) -> bool:
        return any(
            each.type == name and each.status == "True" for each in self.status.conditions or ()
        )


class Node(Thing):
    """core/v1 Node: its labels alone."""


class _Conditions(msgspec.Struct):
    ready: bool | None = None
    terminating: bool | None = None


class _Reference(msgspec.Struct):
    name: str = ""
    uid: str = ""


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: list[str] = []
    conditions: _Conditions = msgspec.field(default_factory=_Conditions)
    zone: str | None = None
    node_name: str | None = None
    target_ref: _Reference | None = None


class _SlicePort(msgspec.Struct):
    port: int | None = None
    protocol: str | None = None


class Slice(Thing, rename="camel"):
    """discovery.k8s.io/v1 EndpointSlice. A condition that is not told counts as ready."""

    address_type: str = ""
    endpoints: list[_Endpoint] | None = None
    ports: list[_SlicePort] | None = None


class _Selector(msgspec.Struct, rename="camel"):
    match_labels: dict[str, str] = {}


class _Number(msgspec.Struct):
    number: int


class _PoolSpec(msgspec.Struct, rename="camel"):
    selector: dict[str, str | dict[str, str]] = {}  # v1: {matchLabels: {...}}; v1alpha2: labels
    target_ports: list[_Number] | None = None
    target_port_number: int | None = None  # v1alpha2


class InferencePool(Thing):
    """InferencePool v1, or v1alpha2 of the older group."""

    spec: _PoolSpec = msgspec.field(default_factory=_PoolSpec)

    def selector(self) -> str:
        """As a query; "" for an empty one, which selects nothing."""
        inner = self.spec.selector.get("matchLabels")
        pairs = inner if isinstance(inner, dict) else self.spec.selector
        return ",".join(f"{key}={value}" for key, value in sorted(pairs.items()))

    def ports(self) -> tuple[int, ...]:
        numbers = [port.number for port in self.spec.target_ports or ()]
        if not numbers and self.spec.target_port_number:
            numbers = [self.spec.target_port_number]
        return tuple(dict.fromkeys(each for each in numbers if 0 < each < 65_536))[:MAX_PORTS]


class _PoolRef(msgspec.Struct):
    name: str = ""


class _ObjectiveSpec(msgspec.Struct, rename="camel"):
    pool_ref: _PoolRef = msgspec.field(default_factory=_PoolRef)
    priority: int | None = None


class Objective(Thing):
    """InferenceObjective."""

    spec: _ObjectiveSpec = msgspec.field(default_factory=_ObjectiveSpec)


class _ModelMatch(msgspec.Struct):
    value: str = ""


class _Match(msgspec.Struct):
    model: _ModelMatch = msgspec.field(default_factory=_ModelMatch)


class _Target(msgspec.Struct, rename="camel"):
    model_rewrite: str = ""
    weight: int | None = None


class _Rule(msgspec.Struct):
    matches: list[_Match] | None = None
    targets: list[_Target] | None = None


class _RewriteSpec(msgspec.Struct, rename="camel"):
    pool_ref: _PoolRef = msgspec.field(default_factory=_PoolRef)
    rules: list[_Rule] | None = None


class ModelRewrite(Thing):
    """InferenceModelRewrite."""

    spec: _RewriteSpec = msgspec.field(default_factory=_RewriteSpec)


class Found(NamedTuple):
    """One possible replica. key: what it is, so that a reused address is not the same one."""

    spec: ReplicaSpec
    key: str
    ready: bool


def of_pods(
    pods: Iterable[Pod],
    ports: tuple[int, ...],
    config: Kubernetes,
    zones: Mapping[str, str],
) -> list[Found]:
    """Replicas of pods that run and stay. zones: by node name."""
    found: dict[str, Found] = {}
    for pod in pods:
        labels = pod.metadata.labels or {}
        address = pod.status.pod_ip or ""
        if not _is_address(address) or pod.leaving():
            continue
        if config.leaders_only and not is_leader(labels):
            continue
        ready = pod.condition("Ready")
        zone = labels.get(ZONE) or zones.get(pod.spec.node_name or "", "")
        kept = kept_labels(labels, config) | {
            "pod": pod.metadata.name,
            "uid": pod.metadata.uid,
        }
        for port in _active(pod, ports):
            each = Found(_spec(address, port, zone, kept, config), pod.metadata.uid, ready)
            _merge(found, each)
    return list(found.values())


def of_slices(slices: Iterable[Slice], config: Kubernetes) -> list[Found]:
    """Replicas of EndpointSlices. An endpoint in two slices is ready if one of them says so."""
    found: dict[str, Found] = {}
    for slice_ in slices:
        if slice_.address_type not in ("IPv4", "IPv6"):
            continue
        ports = [each.port for each in slice_.ports or () if each.protocol in (None, "TCP")]
        kept = kept_labels(slice_.metadata.labels or {}, config)
        for endpoint in slice_.endpoints or ():
            # All addresses of one endpoint are the same replica: the first is enough.
            address = next(iter(endpoint.addresses), "")
            if endpoint.conditions.terminating or not _is_address(address):
                continue
            ready = endpoint.conditions.ready is not False
            pod = endpoint.target_ref or _Reference()
            named = kept | {"pod": pod.name, "uid": pod.uid} if pod.name else kept
            for port in ports:
                if port is None or (config.ports and port not in config.ports):
                    continue
                spec = _spec(address, port, endpoint.zone or "", named, config)
                _merge(found, Found(spec, pod.uid or address, ready))
    return list(found.values())


def is_leader(labels: Mapping[str, str]) -> bool:
    """Does it serve HTTP for its group? True for a pod that is in none."""
    if labels.get(LWS_WORKER, "0") != "0" or labels.get(RAY_NODE) == "worker":
        return False
    groups = (value for key, value in labels.items() if key.rpartition("/")[2] == GROUP_INDEX)
    return all(value == "0" for value in groups)


def kept_labels(labels: Mapping[str, str], config: Kubernetes) -> dict[str, str]:
    """Labels of a replica: those that the config keeps, `model`, `adapters`, `metrics_port`.

    All others are left out: controllers change labels at run time, and a replica is not to be
    touched for that.
    """
    kept = {name: labels[name] for name in (*KEPT_LABELS, *config.labels) if name in labels}
    model = labels.get(config.model_label, "") if config.model_label else ""
    if model:
        kept["model"] = model
    prefix = config.adapter_label_prefix
    names = sorted(key[len(prefix) :] for key in labels if prefix and key.startswith(prefix))
    if names:
        kept["adapters"] = ",".join(names[:_MAX_ADAPTERS])
    if config.metrics_port:
        kept["metrics_port"] = str(config.metrics_port)
    return kept


def objectives_of(found: Iterable[Objective], pool: str) -> dict[str, int]:
    """Priority by objective name; one that sets none has 0."""
    mine = (each for each in found if each.spec.pool_ref.name == pool)
    return {each.metadata.name: each.spec.priority or 0 for each in mine}


def rewrites_of(found: Iterable[ModelRewrite], pool: str) -> list[Rewrite]:
    """Rewrites of one pool. A rule without a usable target is left out."""
    result = []
    for each in found:
        if each.spec.pool_ref.name != pool:
            continue
        rules = []
        for rule in each.spec.rules or ():
            targets = [(t.model_rewrite, t.weight or 1) for t in rule.targets or ()]
            targets = [(name, weight) for name, weight in targets if name and weight > 0]
            if targets:
                models = [match.model.value for match in rule.matches or ()]
                rules.append(Rule(models=models, targets=targets))
        created = each.metadata.creation_timestamp or ""
        result.append(Rewrite(name=each.metadata.name, created=created, rules=rules))
    return result


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _active(pod: Pod, ports: tuple[int, ...]) -> tuple[int, ...]:
    notes = pod.metadata.annotations or {}
    told = next((notes[name] for name in ACTIVE_PORTS if name in notes), None)
    if told is None:
        return ports
    active = {word.strip() for word in told.split(",")}
    return tuple(port for port in ports if str(port) in active)


def _spec(
    address: str, port: int, zone: str, labels: dict[str, str], config: Kubernetes
) -> ReplicaSpec:
    host = f"[{address}]" if ":" in address else address
    return ReplicaSpec(url=f"{config.scheme}://{host}:{port}", zone=zone, labels=labels)


def _merge(found: dict[str, Found], each: Found) -> None:
    """Of two on one address the ready one counts: the other is leaving or has not begun."""
    other = found.get(each.spec.url)
    if other is None or (each.ready, each.key) > (other.ready, other.key):
        found[each.spec.url] = each
