"""The table of all metric families: the only place where a name is declared. Floor 4."""

from __future__ import annotations

from typing import Final, NamedTuple

# Bounds in seconds. TTFT and duration follow the spread of engine answers (a cached prompt takes
# tens of milliseconds, a long agent turn minutes); a decision is to stay below 40 us (its bar),
# so its buckets start at 1 us.
TTFT_BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
DURATION_BOUNDS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
DECISION_BOUNDS: Final = (
    1e-6, 2.5e-6, 5e-6, 1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4, 3.2e-4, 6.4e-4, 1e-3, 5e-3, 2e-2,
)  # fmt: skip
# Waiting in the router: from one turn of a busy engine to the longest that a config allows.
WAIT_BOUNDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)


class Family(NamedTuple):
    """One exported metric family. `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


_R = PER_REPLICA = ("pool", "replica")
_ZONES = ("pool", "router_zone", "replica_zone", "in_zone")

FAMILIES: Final = (
    # Counters and histograms of the hot path
    Family("warmlane_requests_total", "counter", ("pool", "replica", "kind", "status"),
           "Requests answered, by the replica that answered (empty: none did)."),
    Family("warmlane_ttft_seconds", "histogram", ("pool",),
           "From the request's last byte to the first token sent to the client."),
    Family("warmlane_request_duration_seconds", "histogram", ("pool",),
           "From the request's last byte to the end of the answer."),
    Family("warmlane_decision_seconds", "histogram", ("pool",),
           "CPU-side time of one decision: match, filters, scores, pick, reservation."),
    Family("warmlane_prompt_tokens_total", "counter", _R,
           "Prompt tokens of routed requests; estimated where the answer carried no usage."),
    Family("warmlane_predicted_hit_tokens_total", "counter", _R,
           "Prompt tokens predicted to be in the replica's cache."),
    Family("warmlane_checked_prompt_tokens_total", "counter", _R,
           "Prompt tokens of those requests whose answer told the cached tokens."),
    Family("warmlane_checked_predicted_hit_tokens_total", "counter", _R,
           "Predicted hit tokens of those requests whose answer told the cached tokens."),
    Family("warmlane_actual_hit_tokens_total", "counter", _R,
           "Cached tokens as told by the answers' usage."),
    Family("warmlane_hit_error_tokens_total", "counter", ("pool", "replica", "sign"),
           "Absolute difference of predicted and actual hit tokens; sign is over or under."),
    Family("warmlane_checked_ttft_requests_total", "counter", _R,
           "First tokens of streamed answers whose time was predicted by the pace learned there."),
    Family("warmlane_checked_predicted_ttft_seconds_total", "counter", _R,
           "Predicted times to these first tokens."),
    Family("warmlane_checked_ttft_seconds_total", "counter", _R,
           "Times to these first tokens."),
    Family("warmlane_ttft_error_seconds_total", "counter", _R,
           "Absolute differences of predicted and actual times to these first tokens."),
    Family("warmlane_token_requests_total", "counter", ("pool", "result"),
           "Requests whose token ids were wanted, by what became of them."),
    Family("warmlane_zone_requests_total", "counter", _ZONES,
           "Requests answered by zone of router and replica; in_zone is yes, no or unknown."
           " Absent while no zone is known."),
    Family("warmlane_zone_prompt_tokens_total", "counter", _ZONES,
           "Prompt tokens of these requests, as in warmlane_prompt_tokens_total."),
    Family("warmlane_retries_total", "counter", ("pool", "reason"),
           "Requests moved to the next choice of their decision before the first byte."),
    Family("warmlane_ejections_total", "counter", ("pool", "replica", "reason"),
           "Times a replica was taken out by failures or probes."),
    Family("warmlane_rejected_total", "counter", ("reason",),
           "Requests that the router itself refused."),
    Family("warmlane_fallbacks_total", "counter", ("pool", "reason"),
           "Decisions where advice failed and least in-flight decided."),
    Family("warmlane_last_resort_total", "counter", ("pool", "when"),
           "Requests given to a replica that is not ready, for want of a ready one; when is"
           " decision or retry."),
    Family("warmlane_leaked_tickets_total", "counter", (),
           "Tickets that were closed by their age instead of by an event; a bug if it grows."),
    Family("warmlane_limits_reached_total", "counter", ("what",),
           "Times that a configured bound was reached."),
    Family("warmlane_client_gone_total", "counter", ("pool",),
           "Clients that left before the end of their answer."),
    Family("warmlane_streams_broken_total", "counter", _R,
           "Answers that broke after their first byte and ended with an error event."),
    # Admission
    Family("warmlane_admission_total", "counter", ("pool", "result"),
           "Requests past saturation: queued, then admitted, gone (client left) or nobody (no"
           " replica after all); refused: full, late, sheddable, busy (caller cannot wait)."),
    Family("warmlane_admission_wait_seconds", "histogram", ("pool",),
           "Time that requests waited in the router, admitted or refused."),
    Family("warmlane_admission_active", "gauge", ("pool",),
           "1 while requests are looked at: the pool is near saturation or nobody is ready."),
    Family("warmlane_admission_waiting", "gauge", ("pool",), "Requests that wait in the router."),
    Family("warmlane_admission_waiting_bytes", "gauge", ("pool",),
           "Bodies of the requests that wait in the router."),
    Family("warmlane_working_set_ratio", "gauge", ("pool",),
           "Contexts that live sessions will ask for again over all KV caches; while active."),
    # Feeds
    Family("warmlane_scrapes_total", "counter", _R, "Successful scrapes of a replica's metrics."),
    Family("warmlane_scrape_failures_total", "counter", _R,
           "Failed scrapes of a replica's metrics."),
    Family("warmlane_probe_failures_total", "counter", _R,
           "Failed health probes of a replica."),
    Family("warmlane_engine_restarts_total", "counter", _R,
           "Times a replica's own counters went backwards: its cache is empty again."),
    Family("warmlane_kv_event_batches_total", "counter", _R,
           "Batches of KV cache events that were applied."),
    Family("warmlane_kv_event_blocks_total", "counter", ("pool", "replica", "what"),
           "Blocks in events: stored, removed, unknown_removals, orphans, refused, ..."),
    Family("warmlane_kv_event_troubles_total", "counter", ("pool", "replica", "kind"),
           "What befell a stream of events: gap, missed (batches), restart, reconnect, broken,"
           " replay (asked), replayed, replay_gap, replay_no_end, replay_failed, relearn, ..."),
    # Adapters
    Family("warmlane_adapter_requests_total", "counter", ("pool", "state"),
           "Requests with a LoRA adapter by its state on the chosen replica: active, registered,"
           " loading or absent."),
    Family("warmlane_adapter_loads_total", "counter", ("pool", "replica", "result"),
           "Loads of adapters; result is loaded, restored (after a restart of the engine), failed,"
           " not_found, disabled, timeout or gone."),
    Family("warmlane_adapter_load_milliseconds_total", "counter", _R,
           "Time that successful load calls took."),
    Family("warmlane_adapter_unloads_total", "counter", ("pool", "replica", "result"),
           "Cold adapters that made room; result is unloaded or failed."),
    Family("warmlane_discovery_failures_total", "counter", ("pool", "source"),
           "Discovery rounds that failed and kept the old list; source is file, dns, srv or "
           "kubernetes."),
    Family("warmlane_kube_events_total", "counter", ("pool", "resource", "type"),
           "Events of Kubernetes watches; type is added, modified, deleted, bookmark or other."),
    Family("warmlane_kube_lists_total", "counter", ("pool", "resource"),
           "Complete lists of a Kubernetes collection; a watch that resumes needs none."),
    Family("warmlane_kube_failures_total", "counter", ("pool", "resource", "reason"),
           "Failed lists and watches by reason: denied, absent, expired, throttled, server, "
           "unreachable, unreadable."),
    Family("warmlane_record_requests_total", "counter", ("result",),
           "Requests for the record (record.file); result is kept or lost (the queue was full)."),
    Family("warmlane_share_messages_total", "counter", ("direction",),
           "Messages between routers; direction is told or heard."),
    Family("warmlane_share_bytes_total", "counter", ("direction",),
           "Bytes of these messages."),
    Family("warmlane_share_troubles_total", "counter", ("what",),
           "What befell the exchange between routers: lost (the server), peer_expired, unreadable,"
           " out_of_order, too_many_peers, block_size, dropped (records of prefixes)."),
    Family("warmlane_reloads_total", "counter", ("result",),
           "Reloads of the config; result is ok or failed."),
    # Gauges read from the router at the scrape
    Family("warmlane_replicas", "gauge", ("pool", "state"), "Replicas of a pool by state."),
    Family("warmlane_replica_ready", "gauge", _R, "1 if the replica may receive new requests."),
    Family("warmlane_replica_inflight_requests", "gauge", _R, "Requests in flight through us."),
    Family("warmlane_replica_inflight_prefill_tokens", "gauge", _R,
           "Uncached prompt tokens in flight through us, reserved at the pick."),
    Family("warmlane_replica_foreign_requests", "gauge", _R,
           "Requests in flight there that others sent: told by peers, or seen in a scrape."),
    Family("warmlane_replica_foreign_prefill_tokens", "gauge", _R,
           "Uncached prompt tokens that others have in flight there: told by peers, else guessed."),
    Family("warmlane_replica_backlog_seconds", "gauge", _R,
           "Predicted time to prefill what waits there; absent until its pace is known."),
    Family("warmlane_replica_prefill_token_seconds", "gauge", _R,
           "Seconds to prefill a token, learned from first tokens; absent until 30 were heard."),
    Family("warmlane_replica_prefill_factor", "gauge", _R,
           "How much slower than the middle replica it prefills, as the price believes."),
    Family("warmlane_replica_decode_token_seconds", "gauge", _R,
           "Seconds a token of an answer alone there, learned; absent until 30 ends were heard."),
    Family("warmlane_replica_decode_factor", "gauge", _R,
           "How much slower than the middle replica it decodes at equal load, as learned."),
    Family("warmlane_replica_working_set_ratio", "gauge", _R,
           "Uncached tokens placed there of late (half-life 300 s) over its KV cache."),
    Family("warmlane_replica_waiting_requests", "gauge", _R, "Engine's queue, by its metrics."),
    Family("warmlane_replica_running_requests", "gauge", _R, "Engine's batch, by its metrics."),
    Family("warmlane_replica_kv_usage_ratio", "gauge", _R,
           "Share of KV cache held by running requests, by the engine's metrics."),
    Family("warmlane_replica_scrape_age_seconds", "gauge", _R,
           "Age of the load snapshot; absent before the first one."),
    Family("warmlane_replica_adapters", "gauge", _R,
           "LoRA adapters that the engine lists; absent without any."),
    Family("warmlane_replica_asleep", "gauge", _R, "1 if the engine says that it sleeps."),
    Family("warmlane_prediction_doubt", "gauge", ("pool", "replica", "cause"),
           "1 while predicted and actual hits lastingly disagree, with the likely cause."),
    Family("warmlane_replica_exact", "gauge", _R,
           "1 while the replica's hits come from its own events; absent without events."),
    Family("warmlane_engine_prefix_query_tokens_total", "counter", _R,
           "The engine's own counter of prompt tokens looked up in its cache."),
    Family("warmlane_engine_prefix_hit_tokens_total", "counter", _R,
           "The engine's own counter of prompt tokens found in its cache."),
    Family("warmlane_open_tickets", "gauge", ("pool",), "Decisions not yet closed."),
    Family("warmlane_index_blocks", "gauge", ("pool",), "Distinct blocks in the prefix index."),
    Family("warmlane_index_bytes", "gauge", ("pool",), "Memory of the prefix index."),
    Family("warmlane_connections", "gauge", ("side",),
           "Open connections of the proxy; side is client or upstream."),
    Family("warmlane_kube_synced", "gauge", ("pool", "resource"),
           "1 once a Kubernetes collection was listed, 0 when it is followed no more."),
    Family("warmlane_leader", "gauge", (),
           "1 if this picker holds the Lease; absent without an election."),
    Family("warmlane_leader_changes_total", "counter", (),
           "Times this picker became the leader or stopped being it."),
    Family("warmlane_share_connected", "gauge", (),
           "1 while routers can hear each other; absent without share.url."),
    Family("warmlane_share_peers", "gauge", (), "Other routers that are heard."),
    Family("warmlane_loop_lag_seconds", "gauge", (), "Latest lateness of the event loop's timer."),
    Family("warmlane_loop_lag_max_seconds", "gauge", (),
           "Greatest lateness of the event loop's timer since the previous scrape."),
    # The Envoy face and shadow decisions
    Family("warmlane_ext_proc_streams_total", "counter", ("end",),
           "External processing streams that ended; end is done, refused, reset or error."),
    Family("warmlane_ext_proc_open_streams", "gauge", (), "External processing streams now open."),
    Family("warmlane_ext_proc_buffered_bytes", "gauge", (), "Request bodies held by open streams."),
    Family("warmlane_ext_proc_transport_events_total", "counter", ("transport", "event"),
           "What the gRPC transport counts; grpcio knows streams alone."),
    Family("warmlane_ext_proc_transport_bytes_total", "counter", ("transport", "direction"),
           "Bytes of HTTP/2, in and out, without TLS."),
    Family("warmlane_ext_proc_transport_open", "gauge", ("transport", "what"),
           "Connections and gRPC streams that are open, health checks included."),
    Family("warmlane_ext_proc_transport_held_bytes", "gauge", ("transport", "when"),
           "Messages and answers that streams keep, now and at most so far; its bound is"
           " limits.buffered_bytes."),
    Family("warmlane_ext_proc_protocol_errors_total", "counter", ("what",),
           "Streams refused because a gateway's message could not be read or came out of turn;"
           " body_not_sent: one that was asked for its bodies sent none."),
    Family("warmlane_ext_proc_served_elsewhere_total", "counter", ("pool",),
           "Requests that the gateway sent to another replica than the first choice."),
    Family("warmlane_shadow_decisions_total", "counter", ("model", "agreed"),
           "Decisions compared with the other side's; agreed is yes, no or unknown."),
    Family("warmlane_shadow_prompt_tokens_total", "counter", ("model",),
           "Prompt tokens of compared decisions."),
    Family("warmlane_shadow_hit_tokens_total", "counter", ("model", "whose"),
           "Hit tokens that the view predicts on the replica that ours or theirs chose."),
    Family("warmlane_shadow_ttft_milliseconds_total", "counter", ("model", "whose"),
           "Predicted time to the first token on the replica that ours or theirs chose."),
    Family("warmlane_build_info", "gauge", ("version",), "1; carries the version."),
)  # fmt: skip

HISTOGRAMS: Final = {
    "warmlane_ttft_seconds": TTFT_BOUNDS,
    "warmlane_request_duration_seconds": DURATION_BOUNDS,
    "warmlane_decision_seconds": DECISION_BOUNDS,
    "warmlane_admission_wait_seconds": WAIT_BOUNDS,
}

# The families that one cell of `Metrics.hits` feeds, in order; the last two are over and under.
HIT_FAMILIES: Final = (
    "warmlane_prompt_tokens_total",
    "warmlane_predicted_hit_tokens_total",
    "warmlane_checked_prompt_tokens_total",
    "warmlane_checked_predicted_hit_tokens_total",
    "warmlane_actual_hit_tokens_total",
)
HIT_CELLS: Final = len(HIT_FAMILIES) + 2
