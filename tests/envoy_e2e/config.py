"""The Envoy configs of `deploy/`, changed where a test must: ports, modes, where things run.

What a test runs is the file that a user gets: only the named values differ.
"""

from __future__ import annotations

import copy
from typing import Any

import yaml

from .install import ROOT

Tree = dict[str, Any]
DEPLOY = ROOT / "deploy" / "envoy"
ORIGINAL_DST, OVERRIDE_HOST = "original-dst.yaml", "override-host.yaml"
BODY_MODES = ("FULL_DUPLEX_STREAMED", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "NONE")


def load(name: str) -> Tree:
    """A config with free ports instead of the fixed ones."""
    tree: Tree = yaml.safe_load((DEPLOY / name).read_text())
    tree["admin"]["address"]["socket_address"]["port_value"] = 0
    listener(tree)["address"]["socket_address"]["port_value"] = 0
    return tree


def listener(tree: Tree) -> Tree:
    return tree["static_resources"]["listeners"][0]


def manager(each: Tree) -> Tree:
    """The HTTP connection manager of a listener."""
    return each["filter_chains"][0]["filters"][0]["typed_config"]


def route(each: Tree) -> Tree:
    """The one route of a listener."""
    return manager(each)["route_config"]["virtual_hosts"][0]["routes"][0]


def ext_proc(each: Tree) -> Tree:
    """The ext_proc filter of a listener."""
    for each_filter in manager(each)["http_filters"]:
        if each_filter["name"] == "envoy.filters.http.ext_proc":
            return each_filter["typed_config"]
    raise KeyError("no ext_proc filter")


def cluster(tree: Tree, name: str) -> Tree:
    return next(each for each in tree["static_resources"]["clusters"] if each["name"] == name)


def picker_at(tree: Tree, port: int, tls: bool, name: str = "picker") -> None:
    """Where the picker is; another name than `picker` adds a second one."""
    if name != "picker":
        added = copy.deepcopy(cluster(tree, "picker"))
        added["name"] = added["load_assignment"]["cluster_name"] = name
        tree["static_resources"]["clusters"].append(added)
    found = cluster(tree, name)
    if tls and "transport_socket" not in found:
        raise KeyError("the config has no TLS towards the picker")
    if not tls:
        found.pop("transport_socket", None)
    [place] = found["load_assignment"]["endpoints"][0]["lb_endpoints"]
    place["endpoint"]["address"]["socket_address"]["port_value"] = port


def replicas_at(tree: Tree, ports: list[int]) -> None:
    """Envoy's own list of replicas (override-host)."""
    ends = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
        for port in ports
    ]
    cluster(tree, "replicas")["load_assignment"]["endpoints"] = [{"lb_endpoints": ends}]


def add_listener(tree: Tree, name: str, picker: str = "picker", **modes: str) -> Tree:
    """A copy of the first listener under another name, with these processing modes."""
    added = copy.deepcopy(listener(tree))
    added["name"] = name
    manager(added)["stat_prefix"] = name
    set_modes(added, **modes)
    ext_proc(added)["grpc_service"]["envoy_grpc"]["cluster_name"] = picker
    tree["static_resources"]["listeners"].append(added)
    return added


def set_modes(each: Tree, **modes: str) -> None:
    """Processing modes by their Envoy names; unknown ones are an error of Envoy's own."""
    ext_proc(each)["processing_mode"].update(modes)


def add_subset(each: Tree, value: object) -> None:
    """Let Envoy itself name the endpoints that the picker may choose from."""
    meaning = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
        "metadata": [
            {
                "metadata_namespace": "envoy.lb.subset_hint",
                "value": {"x-gateway-destination-endpoint-subset": value},
            }
        ],
    }
    told = {"name": "envoy.filters.http.set_metadata", "typed_config": meaning}
    manager(each)["http_filters"].insert(0, told)


def response_level(level: int) -> dict[str, str]:
    """What docs/deploy.md says that Envoy must send for a response level."""
    headers = "SKIP" if level == 0 else "SEND"
    body = "FULL_DUPLEX_STREAMED" if level == 2 else "NONE"
    return {
        "response_header_mode": headers,
        "response_body_mode": body,
        "response_trailer_mode": headers,
    }
