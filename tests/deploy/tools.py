"""Helm and the Kubernetes schemas, from PyPI, in environments of their own; loud skips without.

`make manifests` writes the plain manifests below `deploy/kubernetes/` anew.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.envoy_e2e import config
from tests.envoy_e2e.install import ROOT, UnavailableError, venv_with

Object = dict[str, Any]
CHART = ROOT / "deploy" / "helm" / "warmlane"
SIDECAR = CHART / "files" / "envoy.yaml"
PLAIN = ROOT / "deploy" / "kubernetes"
HELM = "helm-sdkpy==0.1.32"
SCHEMAS = "kubernetes-validate==1.37.0"
KUBERNETES = "1.34"

# The plain manifests are the chart, rendered with these values.
VARIANTS: dict[str, Object] = {
    "gateway-api": {"gateway": {"kind": "gateway-api"}},
    "istio": {"gateway": {"kind": "istio", "create": True}},
    "envoy-ai-gateway": {
        "gateway": {"kind": "envoy-ai-gateway", "create": True, "models": ["Qwen/Qwen3-32B"]}
    },
    "envoy-gateway": {
        "gateway": {"kind": "envoy-gateway", "create": True},
        "pool": {"failureMode": "FailOpen"},
        "picker": {"insecure": True},
    },
    "sidecar": {
        "gateway": {"kind": "sidecar"},
        "pool": {"create": False},
        "picker": {
            "insecure": True,
            "discovery": "config",
            "config": {"pools": [{"name": "llm", "discovery": {"dns": "llm", "dns_port": 8000}}]},
        },
    },
}
HEADER = """\
# Written from the chart by `make manifests`; change deploy/helm/warmlane instead.
# Its comments say why. In short: the picker, its rights, the pool, and the route of this gateway.
# Made for the namespace llm:  kubectl apply -n llm -f deploy/kubernetes/{name}.yaml
"""


def helm_library() -> tuple[Path, Path]:
    """Python of the environment, Helm's shared library in it."""
    try:
        # Its Python face wants 3.12; the library itself does not care, and only that is used.
        bin_folder = venv_with("helm", "--ignore-requires-python", "--no-deps", HELM)
    except UnavailableError as reason:
        pytest.skip(f"NO CHART RENDERED: Helm's engine cannot be had here: {reason}")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "")
    found = list(
        bin_folder.parent.glob(f"lib/*/site-packages/helm_sdkpy/_lib/linux-{machine}/*.so")
    )
    if not found:
        pytest.skip(f"NO CHART RENDERED: no Helm engine for {platform.platform()}")
    return bin_folder / "python", found[0]


def render(values: list[Object], namespace: str = "llm") -> list[list[Object] | str]:
    """What Helm creates for each of these values, or its reason to refuse them."""
    python, library = helm_library()
    script = Path(__file__).with_name("helm_install.py")
    command = [str(python), str(script), str(library), str(CHART), "warmlane", namespace]
    done = subprocess.run(
        command, input=json.dumps(values), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [
        each if isinstance(each, str) else [plain(one, namespace) for one in each]
        for each in json.loads(done.stdout)
    ]


def plain(created: Object, namespace: str) -> Object:
    """The object without what an install adds to it."""
    meta = created["metadata"]
    assert meta.pop("namespace", namespace) == namespace
    assert meta["labels"].pop("app.kubernetes.io/managed-by") == "Helm"
    for name in ("meta.helm.sh/release-name", "meta.helm.sh/release-namespace"):
        meta["annotations"].pop(name)
    if not meta["annotations"]:
        del meta["annotations"]
    return created


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks, so that a file in a ConfigMap can be read."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def plain_text(name: str, objects: list[Object]) -> str:
    """A plain manifest, byte for byte."""
    text = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=100)
    return HEADER.format(name=name) + text


def complaints(objects: list[Object]) -> list[str]:
    """What the schemas have against these objects; empty when nothing."""
    try:
        bin_folder = venv_with("kube", SCHEMAS)
    except UnavailableError as reason:
        pytest.skip(f"NO MANIFEST VALIDATED: the schemas cannot be had here: {reason}")
    here = Path(__file__).parent
    command = [str(bin_folder / "python"), str(here / "kube_check.py"), KUBERNETES]
    done = subprocess.run(
        [*command, str(here / "crds.yaml")],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [each for each in json.loads(done.stdout) if each]


def sidecar_config() -> str:
    """Envoy's config in the chart: ORIGINAL_DST, open to the cluster, the picker over loopback."""
    text = (config.DEPLOY / config.ORIGINAL_DST).read_text()
    lines = text[text.index("admin:") :].replace(
        "{address: 127.0.0.1, port_value: 8080}", "{address: 0.0.0.0, port_value: 8080}"
    )
    start = lines.index("      # The picker's certificate is its own by default.")
    head = "# deploy/envoy/original-dst.yaml for a sidecar, by `make manifests`.\n"
    return head + lines[:start] + lines[lines.index("      health_checks:") :]


if __name__ == "__main__":
    SIDECAR.write_text(sidecar_config())
    PLAIN.mkdir(exist_ok=True)
    for each, made in zip(VARIANTS, render(list(VARIANTS.values())), strict=True):
        assert not isinstance(made, str), made
        (PLAIN / f"{each}.yaml").write_text(plain_text(each, made))
        sys.stdout.write(f"deploy/kubernetes/{each}.yaml\n")
