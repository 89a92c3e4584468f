"""Install a chart with Helm's own engine into an API server that only writes down what it gets.

Run by the Python of `.venvs/kube`, as a process of its own because the engine brings a Go runtime:
`python helm_install.py LIBRARY CHART RELEASE NAMESPACE < values.json` installs once for each values
tree of a JSON list, and prints a JSON list with, for each, the objects that Helm created or the
reason why it would not. Standard library only.

The engine is the shared library of the PyPI package `helm-sdkpy` (Helm 4), which has no offline
rendering: it installs. So it gets a server that answers discovery, says that nothing exists yet
and takes every object.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CREATED: list[Any] = []
# What the chart may hold: group, version, kind, name in paths, namespaced.
KINDS = [
    ("", "v1", "ConfigMap", "configmaps"),
    ("", "v1", "Secret", "secrets"),
    ("", "v1", "Service", "services"),
    ("", "v1", "ServiceAccount", "serviceaccounts"),
    ("aigateway.envoyproxy.io", "v1alpha1", "AIGatewayRoute", "aigatewayroutes"),
    ("apps", "v1", "Deployment", "deployments"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    ("gateway.envoyproxy.io", "v1alpha1", "BackendTrafficPolicy", "backendtrafficpolicies"),
    ("gateway.envoyproxy.io", "v1alpha1", "ClientTrafficPolicy", "clienttrafficpolicies"),
    ("gateway.envoyproxy.io", "v1alpha1", "EnvoyExtensionPolicy", "envoyextensionpolicies"),
    ("gateway.networking.k8s.io", "v1", "Gateway", "gateways"),
    ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
    ("inference.networking.k8s.io", "v1", "InferencePool", "inferencepools"),
    ("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects"),
    ("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors"),
    ("networking.istio.io", "v1", "DestinationRule", "destinationrules"),
    ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
]
VERBS = ["create", "delete", "get", "list", "patch", "update"]


def discovery(path: str) -> Any:
    """The answer to one of the discovery paths, or None."""
    versions = sorted({(group, version) for group, version, *_ in KINDS if group})
    if path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for group, version in versions:
            one = {"groupVersion": f"{group}/{version}", "version": version}
            groups.append({"name": group, "versions": [one], "preferredVersion": one})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    named = path.removeprefix("/apis/") if path != "/api/v1" else "v1"
    resources = [
        {"name": name, "kind": kind, "namespaced": True, "verbs": VERBS}
        for group, version, kind, name in KINDS
        if f"{group}/{version}".lstrip("/") == named
    ]
    listing = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": named}
    return {**listing, "resources": resources} if resources else None


class Api(BaseHTTPRequestHandler):
    """Nothing exists; whatever is created is taken and written down."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = discovery(path)
        if found is None and path.rpartition("/")[2] in {name for *_, name in KINDS}:
            found = {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": []}
        if found is None:
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            self.answer(404, json.dumps({**missing, "reason": "NotFound", "code": 404}).encode())
        else:
            self.answer(200, json.dumps(found).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if "/secrets" not in self.path:  # Helm's own record of the release
            CREATED.append(json.loads(body))
        self.answer(201, body, self.headers["content-type"])

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.answer(200, body, self.headers["content-type"])

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Silent: the standard output is the result."""


def kubeconfig(port: int) -> str:
    cluster = {"name": "t", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "t", "context": {"cluster": "t", "user": "t"}}
    told = {"apiVersion": "v1", "kind": "Config", "current-context": "t", "clusters": [cluster]}
    return json.dumps({**told, "contexts": [context], "users": [{"name": "t", "user": {}}]})


class Helm:
    """The engine, bound to the server."""

    def __init__(self, library: str, namespace: str, config: Path) -> None:
        self.library = ctypes.CDLL(library)
        self.library.helm_sdkpy_last_error.restype = ctypes.c_char_p
        self.handle = ctypes.c_ulonglong()
        made = self.library.helm_sdkpy_config_create(
            namespace.encode(), str(config).encode(), b"", b"{}", ctypes.byref(self.handle)
        )
        if made:
            raise OSError(self.reason())

    def reason(self) -> str:
        return (self.library.helm_sdkpy_last_error() or b"no reason told").decode()

    def install(self, chart: str, release: str, values: Any) -> Any:
        """The objects created, or the reason why not."""
        CREATED.clear()
        options = {"wait": False, "timeout_seconds": 30, "disable_openapi_validation": True}
        failed = self.library.helm_sdkpy_install(
            self.handle,
            release.encode(),
            chart.encode(),
            json.dumps(values).encode(),
            b"",
            json.dumps(options).encode(),
            ctypes.byref(ctypes.c_char_p()),
        )
        return self.reason() if failed else list(CREATED)


def main(library: str, chart: str, release: str, namespace: str) -> int:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "kubeconfig"
        config.write_text(kubeconfig(server.server_address[1]))
        helm = Helm(library, namespace, config)
        told = [helm.install(chart, release, values) for values in json.load(sys.stdin)]
    json.dump(told, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
