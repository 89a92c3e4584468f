"""The one configuration tree: frozen, strict structs with every default. Floor 2, no behaviour.

YAML, JSON and command-line flags all end here (`config_load`). A field's description is also its
line in docs/config.md, which a test keeps equal to this file. Unknown fields are errors. Seconds
end in `_s`, bytes in `_bytes`, tokens in `_tokens`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from warmlane.router.config_adapters import Adapters
from warmlane.router.config_admission import Admission
from warmlane.router.config_envoy import ExtProc, ShadowConfig
from warmlane.router.config_record import Record
from warmlane.router.config_share import Sharing
from warmlane.router.types import ReplicaSpec

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Part = str | dict[str, Any]


def _note(text: str) -> Meta:
    return Meta(description=text)


class Tree(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every node: frozen, keyword only, unknown fields refused."""


class Listen(Tree, frozen=True, kw_only=True):
    """The data path: where clients connect."""

    host: Annotated[str, _note("address to bind")] = "127.0.0.1"
    port: Annotated[Port, _note("0 takes a free port")] = 8080
    tls_cert: Annotated[str, _note("PEM file with the certificate chain; empty: no TLS")] = ""
    tls_key: Annotated[str, _note("PEM file with the private key")] = ""
    api_key_file: Annotated[
        str, _note("file with one accepted API key per line; empty: no key is asked for")
    ] = ""
    backlog: Annotated[Count, _note("connections that wait for accept")] = 4096


class Admin(Tree, frozen=True, kw_only=True):
    """The control plane: /metrics, /healthz, /readyz, /admin/v1/..."""

    host: Annotated[str, _note("address to bind; not loopback needs a token")] = "127.0.0.1"
    port: Annotated[Port, _note("0 takes a free port")] = 8081
    token_file: Annotated[str, _note("file with the bearer token of /admin; empty: none")] = ""
    metrics_only: Annotated[
        bool, _note("answer /metrics, /healthz and /readyz alone, to anybody; needs no token")
    ] = False


class Kubernetes(Tree, frozen=True, kw_only=True):
    """Replicas out of the Kubernetes API: exactly one of `pool`, `selector` and `slices`."""

    pool: Annotated[str, _note("InferencePool to follow: its selector and its ports")] = ""
    selector: Annotated[str, _note("or pods by label selector, with `ports`")] = ""
    slices: Annotated[
        str, _note("or EndpointSlices by label selector: kubernetes.io/service-name=NAME")
    ] = ""
    namespace: Annotated[str, _note("empty: the one of this process, else the context's")] = ""
    ports: Annotated[
        list[Annotated[int, Meta(ge=1, le=65535)]],
        Meta(max_length=8, description="ports of a pod, each its own replica; slices: of these"),
    ] = []
    scheme: Annotated[Literal["http", "https"], _note("scheme of the replicas")] = "http"
    metrics_port: Annotated[Port, _note("metrics on a port of their own; 0: the replica's")] = 0
    leaders_only: Annotated[
        bool, _note("of a LeaderWorkerSet, Ray cluster or AIBrix group the leader alone")
    ] = True
    labels: Annotated[
        list[str], _note("pod labels that replicas keep, besides llm-d.ai/role and engine-type")
    ] = []
    model_label: Annotated[
        str, _note("pod label with the served model's name, used while /v1/models is unknown")
    ] = ""
    adapter_label_prefix: Annotated[
        str, _note("pod labels that begin so name an adapter, for example adapter.kubeai.org/")
    ] = ""
    node_zones: Annotated[
        bool, _note("zone from the node where the pod tells none; needs list and watch on nodes")
    ] = False
    objectives: Annotated[bool, _note("read InferenceObjectives where installed")] = True
    rewrites: Annotated[bool, _note("read InferenceModelRewrites where installed")] = True
    kubeconfig: Annotated[str, _note("file for use outside a cluster; empty: in the cluster")] = ""
    context: Annotated[str, _note("context of that file; empty: its current one")] = ""


class Leader(Tree, frozen=True, kw_only=True):
    """One active picker of several, by a Lease; the others stay warm and are not ready."""

    lease: Annotated[str, _note("name of the Lease; empty: no election")] = ""
    namespace: Annotated[str, _note("of the Lease; empty: the one of this process")] = ""
    identity: Annotated[str, _note("name of this process; empty: host name and process id")] = ""
    lease_s: Annotated[Seconds, _note("age at which others take a lease that is not renewed")] = (
        15.0
    )
    renew_s: Annotated[Seconds, _note("time without a renewal after which the leader stops")] = 10.0
    retry_s: Annotated[Seconds, _note("time between two tries")] = 2.0
    kubeconfig: Annotated[str, _note("file for use outside a cluster; empty: in the cluster")] = ""
    context: Annotated[str, _note("context of that file; empty: its current one")] = ""


class Discovery(Tree, frozen=True, kw_only=True):
    """Where a pool's replicas come from, besides the static list."""

    file: Annotated[str, _note("YAML or JSON file with a list of replicas, watched")] = ""
    dns: Annotated[str, _note("host name; each A or AAAA record is a replica")] = ""
    dns_port: Annotated[Port, _note("port of the replicas found by `dns`")] = 8000
    srv: Annotated[str, _note("SRV name; each record is a replica")] = ""
    scheme: Annotated[Literal["http", "https"], _note("scheme of replicas found by DNS")] = "http"
    interval_s: Annotated[Seconds, _note("time between two look-ups")] = 5.0
    kubernetes: Annotated[
        Kubernetes | None, _note("replicas out of the Kubernetes API; null: none")
    ] = None


class PoolConfig(Tree, frozen=True, kw_only=True):
    """Replicas that serve the same models, and how one of them is chosen."""

    name: Annotated[str, _note("unique; a label in metrics")] = "default"
    models: Annotated[
        list[str], _note("models it serves; empty: whatever its replicas list in /v1/models")
    ] = []
    replicas: Annotated[list[ReplicaSpec], _note("static replicas; a bare URL is enough")] = []
    discovery: Annotated[Discovery, _note("further replicas")] = Discovery()
    engine: Annotated[
        Literal["auto", "vllm", "sglang", "trtllm", "triton"],
        _note("dialect of its replicas' metrics; auto: told from the metric names"),
    ] = "auto"
    engine_api_key_file: Annotated[
        str, _note("file with the key for probes, scrapes and LoRA calls")
    ] = ""
    engine_api_key_env: Annotated[str, _note("or the environment variable that holds it")] = ""
    capacity_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        _note("KV cache of one replica when its metrics do not tell; null: index.capacity_tokens"),
    ] = None
    tier_tokens: Annotated[
        int,
        Meta(ge=0),
        _note(
            "tokens that a slower tier behind each KV cache keeps: the approximate view's horizon"
        ),
    ] = 0
    tokenizer: Annotated[
        str,
        _note("token ids for exact matching: off, engine (its /tokenize), or a model's folder"),
    ] = "off"
    kv_events: Annotated[
        str,
        _note("events of the KV caches: off, auto (engines tell where), or EVENTS[,REPLAY]"),
    ] = "off"
    adapters: Annotated[Adapters, _note("LoRA adapters that may be loaded")] = Adapters()
    policy: Annotated[
        str,
        _note("default, round-robin, least-requests, random, or a scorer that decides alone"),
    ] = "default"
    scorers: Annotated[
        list[Part],
        _note("own mix in place of the policy's: a name or {name, weight, parameters}"),
    ] = []
    filters: Annotated[
        list[Part], _note("filters besides ready, served and subset, which always apply")
    ] = []
    picker: Annotated[Part, _note("how the order is made; empty: the policy's own")] = ""


class Split(Tree, frozen=True, kw_only=True):
    """One arm of a weighted split."""

    pool: Annotated[str, _note("pool that gets this share")]
    weight: Annotated[float, Meta(gt=0, description="share relative to the other arms")] = 1.0
    model: Annotated[str, _note("name the engine sees; empty: the client's name")] = ""
    adapter: Annotated[str, _note("LoRA adapter that the name stands for; empty: none")] = ""


class ModelConfig(Tree, frozen=True, kw_only=True):
    """A model name that clients may ask for: an alias, an adapter or a weighted split."""

    name: Annotated[str, _note("as clients write it")]
    pool: Annotated[str, _note("pool that serves it; empty: the first that serves `model`")] = ""
    model: Annotated[str, _note("name the engine sees; empty: the same")] = ""
    adapter: Annotated[str, _note("LoRA adapter that the name stands for; empty: none")] = ""
    split: Annotated[list[Split], _note("weighted arms in place of `pool`")] = []


class Limits(Tree, frozen=True, kw_only=True):
    """Bounds; each has a metric when it is reached."""

    head_bytes: Annotated[Count, _note("request line and headers")] = 65_536
    body_bytes: Annotated[Count, _note("buffered body; larger multipart streams through")] = (
        33_554_432
    )
    hold_bytes: Annotated[Count, _note("held answer of a stream before its first token")] = 16_384
    hold_json_bytes: Annotated[Count, _note("held answer without streaming")] = 65_536
    hold_s: Annotated[Seconds, _note("longest hold after the first answer byte")] = 5.0
    connections: Annotated[Count, _note("client connections")] = 16_384
    inflight: Annotated[Count, _note("requests under way in the router")] = 32_768
    upstream_idle: Annotated[Count, _note("idle connections kept per replica")] = 256
    buffered_bytes: Annotated[Count, _note("request bodies held in memory at once")] = 2_147_483_648
    write_buffer_bytes: Annotated[
        Count, _note("unsent bytes per connection before reading stops")
    ] = 262_144
    answer_text_bytes: Annotated[
        Count, _note("generated text kept to book the next turn; more is cut")
    ] = 262_144
    replicas: Annotated[int, Meta(ge=1, le=4096, description="replicas per pool")] = 4096
    tickets: Annotated[int, Meta(ge=1, le=1_048_576, description="open tickets per pool")] = 65_536


class Timeouts(Tree, frozen=True, kw_only=True):
    """Time-outs of the data path."""

    connect_s: Annotated[Seconds, _note("connect to a replica")] = 2.0
    first_byte_s: Annotated[Seconds, _note("sent to first answer byte")] = 600.0
    idle_s: Annotated[Seconds, _note("silence inside an answer")] = 300.0
    total_s: Annotated[Seconds, _note("whole request")] = 3600.0
    head_s: Annotated[Seconds, _note("a client's request head and body")] = 60.0
    client_keepalive_s: Annotated[Seconds, _note("idle client connection")] = 75.0
    upstream_keepalive_s: Annotated[
        Seconds, _note("idle replica connection; engines close after 5 s")
    ] = 4.0
    drain_s: Annotated[Seconds, _note("SIGTERM to cut")] = 60.0
    ticket_s: Annotated[Seconds, _note("age at which a ticket that nobody closed is closed")] = (
        7200.0
    )


class Retry(Tree, frozen=True, kw_only=True):
    """Moving a failed request to the next choice before the client saw a byte."""

    attempts: Annotated[Count, _note("tries in all; what cannot be reached is none")] = 3
    budget_ratio: Annotated[Share, _note("retries as a share of recent requests")] = 0.2
    budget_min: Annotated[int, Meta(ge=0, description="retries allowed whatever the share")] = 10
    budget_window_s: Annotated[Seconds, _note("what recent means")] = 10.0


class Ejection(Tree, frozen=True, kw_only=True):
    """Passive ejection: a replica that fails is left alone for a while."""

    failures: Annotated[Count, _note("failures in a row that eject")] = 5
    share: Annotated[Share, _note("or this share of failures within the window")] = 0.5
    window_s: Annotated[Seconds, _note("window of the share")] = 10.0
    min_requests: Annotated[Count, _note("requests in the window before the share counts")] = 20
    base_s: Annotated[Seconds, _note("first ejection; doubles each time")] = 5.0
    max_s: Annotated[Seconds, _note("longest ejection")] = 300.0
    max_share: Annotated[Share, _note("share of a pool that may be ejected at once")] = 0.5


class Scrape(Tree, frozen=True, kw_only=True):
    """Reading the replicas' metrics."""

    min_interval_s: Annotated[Seconds, _note("shortest time between two scrapes of a replica")] = (
        0.2
    )
    max_interval_s: Annotated[Seconds, _note("longest, for a replica that gets no requests")] = 5.0
    timeout_s: Annotated[Seconds, _note("one scrape")] = 2.0
    stale_s: Annotated[
        Seconds, _note("age from which a scrape is not believed: the ledger decides alone")
    ] = 10.0
    max_bytes: Annotated[Count, _note("size of one answer")] = 8_388_608


class Probe(Tree, frozen=True, kw_only=True):
    """Active health probe and model list."""

    interval_s: Annotated[Seconds, _note("time between two probes")] = 2.0
    timeout_s: Annotated[
        Seconds, _note("one probe; a busy engine may answer late, a dead one refuses at once")
    ] = 5.0
    path: Annotated[str, _note("answered 2xx when healthy")] = "/health"
    failures: Annotated[Count, _note("failed probes in a row that eject")] = 3
    models_interval_s: Annotated[Seconds, _note("time between two reads of /v1/models")] = 10.0


class Tokens(Tree, frozen=True, kw_only=True):
    """Token ids for exact matching, for pools that name a `tokenizer`."""

    workers: Annotated[int, Meta(ge=1, le=64, description="threads that encode")] = 2
    cache_bytes: Annotated[int, Meta(ge=0, description="memory of encoded pieces per pool")] = (
        67_108_864
    )
    prefill_tokens_per_s: Annotated[
        float, Meta(gt=0, description="cold prefill; a request waits for its ids 5 % of its own")
    ] = 20_000.0


class Index(Tree, frozen=True, kw_only=True):
    """The view of what each replica holds."""

    view: Annotated[
        Literal["approximate", "none"],
        _note("approximate: what this router sent where; none: load alone"),
    ] = "approximate"
    block_bytes: Annotated[
        int, Meta(ge=16, le=232, description="bytes of prompt text per block")
    ] = 128
    block_tokens: Annotated[
        int, Meta(ge=1, le=58, description="tokens per block of token-id prompts")
    ] = 16
    max_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="memory of the index per pool, half for text and half for token-id prompts;"
            " 0: no cap. 1 GiB follows 1 G tokens of cache: 2 M of each of 512 replicas",
        ),
    ] = 1_073_741_824
    capacity_tokens: Annotated[
        Count, _note("KV cache of a replica that tells none anywhere (with a warning)")
    ] = 131_072
    bytes_per_token: Annotated[
        float, Meta(ge=0.5, le=64, description="first guess, then learned from answers")
    ] = 4.0
    exact_bytes: Annotated[
        int, Meta(ge=0, description="memory of the view by engine events per pool; 0: no cap")
    ] = 1_073_741_824
    cpu_worth: Annotated[Share, _note("worth of a token cached in cpu memory, in gpu tokens")] = 0.8
    disk_worth: Annotated[Share, _note("worth of a token cached further away")] = 0.4
    output_tokens: Annotated[Count, _note("guess of the answer's length; then learned")] = 256


class Config(Tree, frozen=True, kw_only=True):
    """The whole tree. `Config()` is valid: no pool has replicas, and every request gets 503."""

    listen: Annotated[Listen, _note("data path")] = Listen()
    admin: Annotated[Admin, _note("control plane")] = Admin()
    zone: Annotated[str, _note("zone of this router: the default and scorer zone prefer it")] = ""
    pools: Annotated[list[PoolConfig], Meta(min_length=1, description="pools of replicas")] = (
        msgspec.field(default_factory=lambda: [PoolConfig()])
    )
    models: Annotated[list[ModelConfig], _note("aliases, adapters and splits")] = []
    default_pool: Annotated[str, _note("pool of unknown models; empty: the first")] = ""
    limits: Annotated[Limits, _note("bounds")] = Limits()
    timeouts: Annotated[Timeouts, _note("time-outs")] = Timeouts()
    retry: Annotated[Retry, _note("retries")] = Retry()
    ejection: Annotated[Ejection, _note("passive ejection")] = Ejection()
    scrape: Annotated[Scrape, _note("metrics of the replicas")] = Scrape()
    probe: Annotated[Probe, _note("active probe")] = Probe()
    tokens: Annotated[Tokens, _note("token ids for exact matching")] = Tokens()
    index: Annotated[Index, _note("view of the caches")] = Index()
    admission: Annotated[Admission, _note("requests past saturation")] = Admission()
    ext_proc: Annotated[ExtProc, _note("the Envoy endpoint picker")] = ExtProc()
    shadow: Annotated[ShadowConfig, _note("decisions beside somebody else's")] = ShadowConfig()
    leader: Annotated[Leader, _note("election among several pickers")] = Leader()
    record: Annotated[Record, _note("log of requests for `warmlane replay`")] = Record()
    share: Annotated[Sharing, _note("several routers before the same replicas")] = Sharing()
    transfer_params: Annotated[
        Literal["reject", "strip"], _note("what to do with a client's *_transfer_params")
    ] = "reject"
    debug_headers: Annotated[
        bool, _note("x-warmlane-* answer headers for all; they tell what others have cached")
    ] = False
