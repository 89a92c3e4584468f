"""The values that travel between the rooms of the house. Floor 1: msgspec only, no behaviour.

All are frozen; a snapshot is replaced whole. Times are seconds of the caller's monotonic clock
unless the name says otherwise; token and byte counts are plain integers.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any

import msgspec


class Kind(StrEnum):
    """What a request asks for; decides how its prompt is found and how its answer is read."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"  # Anthropic's /v1/messages
    EMBEDDINGS = "embeddings"
    OTHER = "other"  # routed by load alone


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One client request, as far as routing needs it. Built by `requests.parse`.

    prompt: canonical prompt bytes (docs/hashing.md) or None when the prompt is token ids or there
        is none. Never logged.
    tokens: native-endian uint32 token ids as bytes, or None.
    max_tokens: the client's cap on output tokens, or None.
    token_features: what has to be proven of a replica's tokenizer before `tokens` mean anything to
        it (bits of `token_jobs.bits_of`); 0 when the client itself sent token ids.
    salt: `cache_salt` of the body, "" if none: requests with different salts never share a hit.
    session: session id (header or body), "" if none.
    priority: `X-Vllm-Priority` or the body's `priority`; lower is earlier, 0 if none. Engines obey
        it only with a priority scheduler; it passes on either way.
    objective: name of an InferenceObjective, "" if none: its priority counts where it is known.
    samples: `n` of the body. With several the usage tells what the last one found in the cache.
    reads_cache: False for `prompt_logprobs`: the engine computes the whole prompt.
    subset: endpoints ("host:port") or replica names that the request must stay within, or None.
    tenant: who shares fairly where requests wait, "" if not told; never logged.
    wait_s: longest that it may wait in the router, None: as configured.
    """

    kind: Kind
    path: str = ""
    model: str = ""
    stream: bool = False
    prompt: bytes | None = None
    tokens: bytes | None = None
    token_features: int = 0
    max_tokens: int | None = None
    salt: str = ""
    session: str = ""
    priority: int = 0
    objective: str = ""
    samples: int = 1
    reads_cache: bool = True
    subset: frozenset[str] | None = None
    tenant: str = ""
    wait_s: float | None = None
    rewrite_model: bool = True  # False: the body cannot be rewritten (streamed through)


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Static identity of one replica, from config or discovery.

    url: scheme://host:port, no path. name: unique in the router, default "host:port" ("#rank"
    appended when rank is set). zone: "" unknown. weight is not a thing: load decides.
    """

    url: str
    name: str = ""
    rank: int | None = None
    zone: str = ""
    labels: dict[str, str] = {}
    kv_events: str = ""  # in place of its pool's: off, auto, or EVENTS[,REPLAY]
    capacity_tokens: int | None = None  # overrides what the engine's metrics say


class ReplicaState(IntEnum):
    """Life of a replica in its pool. Only READY receives new requests."""

    JOINING = 0  # added, not probed yet
    READY = 1
    DRAINING = 2  # by an operator: finishes what it has
    EJECTED = 3  # by passive ejection or a failed probe
    GONE = 4  # removed; its slot waits for the index sweep


class LoadSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What one scrape of a replica's metrics said. None: the engine does not tell.

    Counters are cumulative since the engine's start. `kv_usage` is 0..1.
    """

    taken_at: float
    waiting: float = 0.0
    running: float = 0.0
    kv_usage: float = 0.0
    block_size: int | None = None  # tokens a block
    num_blocks: int | None = None
    prefix_queries: float | None = None  # tokens
    prefix_hits: float | None = None  # tokens
    max_lora: int | None = None
    running_adapters: frozenset[str] = frozenset()
    waiting_adapters: frozenset[str] = frozenset()
    asleep: bool = False


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica's /v1/models said: base models and adapters with their base."""

    models: frozenset[str] = frozenset()
    adapters: dict[str, str] = {}  # adapter name -> base model
    max_model_len: int | None = None


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """A lasting disagreement of predicted and actual hit tokens, see `watchdog`.

    kind: promised (predicted, not there), missed (there, not predicted) or unknown (nobody
    tells). cause: the likeliest, a word of `watchdog.ADVICE`. Tokens are those of one look.
    """

    kind: str
    cause: str
    predicted_tokens: int
    actual_tokens: int
    advice: str


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What was chosen. `choices` are slots of `pool`, best first; work is reserved on choices[0].

    ticket: handle for the later events (generation + slot, never reused while open).
    hit_tokens: predicted prompt tokens in cache, per choice, same order as `choices`.
    prompt_tokens: estimated length of the prompt in tokens.
    view: "approximate", "exact", or "none" when the request has no prefix key.
    model: the name the engine must see (alias or split resolved), "" = leave the body alone.
    fallback: "" or why the advice failed and least in-flight decided.
    """

    ticket: int
    pool: str
    choices: tuple[int, ...]
    hit_tokens: tuple[int, ...]
    prompt_tokens: int
    view: str
    model: str = ""
    adapter: str = ""
    fallback: str = ""

    def hit_on(self, slot: int) -> int:
        """Predicted hit tokens on a slot; 0 for one that is not among the choices."""
        choices, hits = self.choices, self.hit_tokens
        if slot == choices[0]:
            return hits[0]
        return hits[choices.index(slot)] if slot in choices else 0


class Rest(msgspec.Struct, frozen=True, gc=False):
    """Who is wanted when a request's choices have failed.

    avoid: zones that come last. tried: slots that are not asked again.
    """

    ready_only: bool = False
    avoid: frozenset[str] = frozenset()
    tried: frozenset[int] = frozenset()


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What then happened, told once at close.

    status: "ok" | "error" | "cancelled" | "aborted" (engine said abort).
    prompt_tokens / cached_tokens / output_tokens: from the answer's usage, None if not told.
    text: generated text as the next turn will send it (UTF-8), b"" if unknown or not captured.
    events: of a stream, about one a token.
    """

    status: str = "ok"
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    text: bytes = b""
    events: int = 0


JsonObject = dict[str, Any]
