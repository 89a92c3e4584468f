"""The Helm chart, installed by Helm's own engine, and the plain manifests that are made from it.

Judged by Kubernetes' published schemas, strictly, and for custom objects by `crds.yaml`. What no
test here shows: a cluster that runs it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.envoy_e2e import test_configs
from tests.envoy_e2e.install import ROOT
from warmlane.router import ext_proc
from warmlane.router.config_load import from_data
from warmlane.router.metrics import FAMILIES

from .tools import (
    CHART,
    PLAIN,
    SIDECAR,
    VARIANTS,
    Object,
    complaints,
    plain_text,
    render,
    sidecar_config,
)

SCALING = {
    kind: {"autoscaling": {"kind": kind}, "serviceMonitor": {"enabled": True}}
    for kind in ("hpa", "keda")
}
ELECTED: Object = {"picker": {"replicas": 2, "leaderElection": True, "config": {"zone": "a"}}}
SHARED: Object = {
    "picker": {
        "replicas": 3,
        "share": {"url": "redis://warmlane@valkey:6379", "passwordSecret": "valkey"},
        "config": {"share": {"interval_s": 0.1}},
    }
}
APART: Object = {"picker": {"replicas": 2}}
EVERY = {
    "defaults": {},
    "elected": ELECTED,
    "shared": SHARED,
    "apart": APART,
    **VARIANTS,
    **SCALING,
}


REFUSED: list[tuple[Object, str]] = [
    ({"pool": {"targetPorts": list(range(8000, 8009))}}, "targetPorts"),
    ({"picker": {"responseLevel": 3}}, "responseLevel"),
    ({"picker": {"share": {"url": "http://valkey"}}}, "share"),
    ({"pikcer": {}}, "pikcer"),
    ({"gateway": {"kind": "envoy-gateway"}}, "picker.insecure"),
    ({"gateway": {"kind": "sidecar"}}, "picker.insecure"),
    ({"gateway": {"kind": "envoy-ai-gateway"}}, "gateway.models"),
    ({"gateway": {"create": True}}, "gateway.className"),
]


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Object]]:
    made = dict(zip(EVERY, render(list(EVERY.values())), strict=True))
    assert {name: each for name, each in made.items() if isinstance(each, str)} == {}
    return {name: each for name, each in made.items() if not isinstance(each, str)}


def of_kind(objects: list[Object], kind: str) -> Any:
    [found] = [each for each in objects if each["kind"] == kind]
    return found


@pytest.mark.parametrize("name", EVERY)
def test_kubernetes_would_take_it(name: str, rendered: dict[str, list[Object]]) -> None:
    assert complaints(rendered[name]) == []


def test_a_wrong_object_is_not_taken(rendered: dict[str, list[Object]]) -> None:
    """Both judges see a field that does not exist, and a value that may not be."""
    deployment, pool = (
        of_kind(rendered["defaults"], kind) for kind in ("Deployment", "InferencePool")
    )
    wrong = [
        {**deployment, "spec": {**deployment["spec"], "replica": 1}},
        {**pool, "spec": {**pool["spec"], "extensionRef": {"name": "warmlane"}}},
        {**pool, "spec": {**pool["spec"], "targetPorts": [{"number": n} for n in range(1, 10)]}},
    ]
    assert len(complaints(wrong)) == len(wrong)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_plain_manifest_is_the_chart(name: str, rendered: dict[str, list[Object]]) -> None:
    """`make manifests` writes it anew."""
    assert (PLAIN / f"{name}.yaml").read_text() == plain_text(name, rendered[name])


def test_every_plain_manifest_is_valid() -> None:
    files = sorted(PLAIN.glob("*.yaml"))
    assert {path.stem for path in files} >= set(VARIANTS)
    objects = [each for path in files for each in yaml.safe_load_all(path.read_text())]
    assert complaints(objects) == []


def test_the_sidecar_runs_the_plain_config(tmp_path: Path) -> None:
    assert SIDECAR.read_text() == sidecar_config()
    done = test_configs.validate(SIDECAR)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", EVERY)
def test_its_parts_meet(name: str, rendered: dict[str, list[Object]]) -> None:
    """Services reach pods, routes reach pools and Services, mounts have their volumes."""
    objects = rendered[name]
    pod = of_kind(objects, "Deployment")["spec"]["template"]
    ports = {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container["ports"]
    }
    services = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Service"}
    own = services["warmlane"]["spec"]
    assert own["selector"].items() <= pod["metadata"]["labels"].items()
    assert {port["targetPort"] for port in own["ports"]} <= set(ports)
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    for container in pod["spec"]["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    for each in objects:
        if each["kind"] in ("HTTPRoute", "AIGatewayRoute"):
            for rule in each["spec"]["rules"]:
                for ref in rule["backendRefs"]:
                    assert (ref.get("kind", "Service"), ref["name"]) in names
        if each["kind"] == "InferencePool":
            assert ("Service", each["spec"]["endpointPickerRef"]["name"]) in names


def test_a_picker_that_needs_no_rights_has_none(rendered: dict[str, list[Object]]) -> None:
    sidecar = rendered["sidecar"]
    assert not {each["kind"] for each in sidecar} & {"Role", "ClusterRole", "InferencePool"}
    spec = of_kind(sidecar, "Deployment")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False


def test_the_chart_asks_for_the_rights_that_are_written_down(
    rendered: dict[str, list[Object]],
) -> None:
    """deploy/kubernetes/rbac.yaml is the reference: no right more, none less."""
    written = {
        each["metadata"]["name"]: each.get("rules")
        for each in yaml.safe_load_all((PLAIN / "rbac.yaml").read_text())
        if each["kind"] == "Role"
    }
    assert of_kind(rendered["defaults"], "Role")["rules"] == written["warmlane"]
    both = written["warmlane"] + written["warmlane-leader"]
    assert of_kind(rendered["elected"], "Role")["rules"] == both


def test_an_elected_picker_knows_its_lease(rendered: dict[str, list[Object]]) -> None:
    [text] = of_kind(rendered["elected"], "ConfigMap")["data"].values()
    config = from_data(yaml.safe_load(text), where="chart")
    assert (config.leader.lease, config.zone) == ("warmlane", "a")


def test_wrong_values_are_refused_with_a_reason() -> None:
    said = render([values for values, _ in REFUSED])
    for (values, why), reason in zip(REFUSED, said, strict=True):
        assert isinstance(reason, str) and why in reason, values


def test_metrics_that_scaling_reads_exist() -> None:
    known = {family.name for family in FAMILIES}
    sources = [
        ROOT / "deploy" / "prometheus" / "adapter.yaml",
        CHART / "templates" / "autoscaling.yaml",
    ]
    for path in sources:
        text = path.read_text()
        given = set(re.findall(r"as: (\w+)", text)) | set(re.findall(r"name: (warmlane_\w+)", text))
        read = set(re.findall(r"\bwarmlane_\w+", text)) - given
        assert read and read <= known, path


def test_the_adapter_gives_what_the_scaler_asks_for(rendered: dict[str, list[Object]]) -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "adapter.yaml").read_text())
    given = {rule["name"]["as"] for rule in rules["externalRules"]}
    scaler = of_kind(rendered["hpa"], "HorizontalPodAutoscaler")
    assert {each["external"]["metric"]["name"] for each in scaler["spec"]["metrics"]} == given


@pytest.mark.parametrize("name", EVERY)
def test_the_picker_knows_its_arguments(name: str, rendered: dict[str, list[Object]]) -> None:
    """The very command line, but for the rest of the cluster."""
    pod = of_kind(rendered[name], "Deployment")["spec"]["template"]["spec"]
    [picker] = [each for each in pod["containers"] if each["name"] == "picker"]
    assert picker["command"] == ["warmlane", "ext-proc"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    ext_proc.add_arguments(parser)
    args = parser.parse_args(picker["args"])
    assert (args.port, args.health_port, args.metrics_port) == (9002, 9003, 9090)
    assert args.response_level == 1


def test_several_pickers_are_told_of_each_other(rendered: dict[str, list[Object]]) -> None:
    """With a service they share; without one each knows how many they are; elected ones are one."""

    def config_of(name: str) -> Any:
        data = of_kind(rendered[name], "ConfigMap")["data"]["config.yaml"]
        return from_data(yaml.safe_load(data))

    shared = config_of("shared").share
    assert shared.url == "redis://warmlane@valkey:6379" and shared.routers == 3
    assert shared.password_env == "SHARE_PASSWORD" and shared.interval_s == 0.1
    (picker,) = of_kind(rendered["shared"], "Deployment")["spec"]["template"]["spec"]["containers"]
    (word,) = [each for each in picker["env"] if each["name"] == "SHARE_PASSWORD"]
    assert word["valueFrom"]["secretKeyRef"] == {"name": "valkey", "key": "password"}
    assert config_of("apart").share.routers == 2 and not config_of("apart").share.url
    assert config_of("elected").share.routers == 1
    assert not [each for each in rendered["defaults"] if each["kind"] == "ConfigMap"]
