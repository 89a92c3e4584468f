"""What of a request body decides its token ids, and the probes that show who agrees about them.

Floor 5. `job_of` says what to encode, or why that cannot be known here; `PROBES` are small
requests, one or more per feature, that are encoded here and by the engine's `POST /tokenize`: a
feature whose probes differ is not used for exact matching on that engine. Never logs a body.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from warmlane.router.templates import (
    BILLING_HEADER,
    Chat,
    Untranslatable,
    texts_of,
    tool_definitions,
)
from warmlane.router.types import Kind

# Fields that change the token ids in ways that only the engine knows.
_ENGINE_ONLY: Final = ("truncate_prompt_tokens", "chat_template", "prompt_embeds", "suffix", "echo")
# Body fields that vLLM hands to the template besides chat_template_kwargs.
_EXTRA_KWARGS: Final = ("reasoning_effort",)
# The keys of a body that `POST /tokenize` understands, by kind.
_TOKENIZE_FIELDS: Final = {
    Kind.COMPLETIONS: ("prompt", "add_special_tokens"),
    Kind.CHAT: (
        *("messages", "tools", "add_generation_prompt", "continue_final_message"),
        *("add_special_tokens", "chat_template_kwargs"),
    ),
}

_decode = msgspec.json.Decoder(dict[str, Any])


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to encode.

    features: what must have been proven equal for the ids to be believed.
    text: a completion's prompt, or else chat is set. around: with the model's own outer tokens.
    """

    features: frozenset[str]
    text: str = ""
    chat: Chat | None = None
    around: bool = False


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One request of which here and there must make the same ids."""

    feature: str
    kind: Kind
    body: dict[str, Any]


def decoded(body: bytes) -> dict[str, Any]:
    """The body as an object. Raises Untranslatable."""
    try:
        return _decode.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Untranslatable("bad_json") from error


def job_of(kind: Kind, body: dict[str, Any]) -> Job:
    """What to encode for this body. Raises Untranslatable."""
    if any(body.get(name) is not None for name in _ENGINE_ONLY):
        raise Untranslatable("engine_only_field")
    if kind is Kind.COMPLETIONS:
        return _completion(body)
    if kind is Kind.CHAT:
        return _chat(body)
    raise Untranslatable("kind")


def tokenize_body(kind: Kind, body: dict[str, Any], model: str) -> dict[str, Any]:
    """The body of the engine's `POST /tokenize` for this request. Raises Untranslatable."""
    if any(body.get(name) is not None for name in (*_ENGINE_ONLY, "documents", *_EXTRA_KWARGS)):
        raise Untranslatable("engine_only_field")
    fields = _TOKENIZE_FIELDS.get(kind)
    if fields is None:
        raise Untranslatable("kind")
    if kind is Kind.COMPLETIONS and not isinstance(body.get("prompt"), str):
        raise Untranslatable("prompt_list")
    made = {name: body[name] for name in fields if body.get(name) is not None}
    if kind is Kind.CHAT and _has_media(body.get("messages")):
        # The engine would fetch and decode the media to count its tokens.
        raise Untranslatable("media")
    return {"model": model, **made}


def _completion(body: dict[str, Any]) -> Job:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise Untranslatable("prompt_list")
    around = body.get("add_special_tokens", True) is not False
    return Job(features=frozenset({"prompt"}), text=prompt, around=around)


def _chat(body: dict[str, Any]) -> Job:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Untranslatable("bad_message")
    if not all(isinstance(message, dict) for message in messages):
        raise Untranslatable("bad_message")
    features = {"chat", *_message_features(messages)}
    tools = body.get("tools")
    if tools:
        features.add("tools")
        if body.get("tool_choice") == "none":
            raise Untranslatable("engine_only_field")  # a flag of the engine decides
    kwargs = body.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise Untranslatable("bad_kwargs")
    extra = {name: body[name] for name in _EXTRA_KWARGS if body.get(name) is not None}
    if kwargs or extra:
        features.add("kwargs")
    if body.get("documents") is not None:
        raise Untranslatable("engine_only_field")
    open_end = body.get("continue_final_message") is True
    if open_end:
        features.add("continue")
    chat = Chat(
        messages=messages,
        tools=tool_definitions(tools) if tools else None,
        add_generation_prompt=body.get("add_generation_prompt", True) is not False,
        continue_final_message=open_end,
        kwargs={**extra, **kwargs},
    )
    around = body.get("add_special_tokens") is True
    return Job(features=frozenset(features), chat=chat, around=around)


def _message_features(messages: list[dict[str, Any]]) -> set[str]:
    features = set()
    for message in messages:
        if isinstance(message.get("content"), list):
            features.add("parts")
        role = message.get("role")
        if role == "tool" or message.get("tool_calls"):
            features.add("tool_calls")
        elif role == "developer":
            features.add("developer")
        elif role == "system":
            if any(text.startswith(BILLING_HEADER) for text in texts_of(message)):
                features.add("billing")
        elif role not in ("user", "assistant"):
            features.add("roles")
        if message.get("reasoning") is not None:
            features.add("reasoning")
    return features


def _has_media(messages: Any) -> bool:
    if not isinstance(messages, list):
        return False
    contents = [each.get("content") for each in messages if isinstance(each, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(
        isinstance(part, dict) and part.get("type", "text") not in ("text", "refusal")
        for part in parts
    )


# Probes -------------------------------------------------------------------------------------------

# Where tokenizers differ: runs of blanks, line ends, digits, case, accents (composed and not),
# scripts without blanks, emoji with joiners, code, URLs, the text of common special tokens.
TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog.",
    "  leading,   several    blanks\t\ttabs\n\n\nlines\r\n and a trailing blank ",
    "1234567890 3.14159 -0x7f 1e-9 2026-11-22T15:00:00Z",
    "HELLO Hello hello hElLo isn't we'll I'D",
    "na\u00efve cafe\u0301 \u00dcber \u4f60\u597d\u4e16 \u3053\u3093 \u0627\u0644 \u05e9\u05dc",
    "\U0001f469\u200d\U0001f4bb\U0001f1e9\U0001f1ea \u2764\ufe0f \u00a0\u2003\u200b",
    "def f(x):\n    return {k: v for k, v in x.items() if k != '__init__'}  # see a->b\n",
    "https://example.com/a/b?c=d&e=%20#f <div class='x'>&amp;</div> \\n \\\\",
    "<|im_start|>user<|im_end|><s></s>[INST]<|eot_id|><|endoftext|><bos><unk>",
    "a",
    " ",
    "\n",
)

_TALK: Final[tuple[dict[str, Any], ...]] = (
    {"role": "system", "content": "You are a helpful assistant.\nAnswer briefly."},
    {"role": "user", "content": TEXTS[4]},
    {"role": "assistant", "content": TEXTS[6]},
    {"role": "user", "content": TEXTS[1]},
)
_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city; 'today' by default",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "name, caf\u00e9 & <b>"},
                "days": {"type": "integer", "default": 1},
            },
            "required": ["city"],
        },
    },
}
_CALLED: Final[tuple[dict[str, Any], ...]] = (
    {"role": "user", "content": "Weather in Berlin?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Berlin", "days": 2}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 7}'},
    {"role": "user", "content": "Thanks."},
)
_DEVELOPER: Final[dict[str, Any]] = {"role": "developer", "content": "Be terse."}
_BILLED: Final[dict[str, Any]] = {
    "role": "system",
    "content": [
        {"type": "text", "text": f"{BILLING_HEADER}: cc_version=2.1; cch=1f0a7;"},
        {"type": "text", "text": f"{BILLING_HEADER}: cch=77;\nBe kind."},
    ],
}
_PARTS: Final[tuple[dict[str, Any], ...]] = (
    {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
    {
        "role": "user",
        "content": [{"type": "text", "text": "One part."}, {"type": "text", "text": "Another."}],
    },
)


def _chat_probe(feature: str, messages: tuple[dict[str, Any], ...], **more: Any) -> Probe:
    return Probe(feature=feature, kind=Kind.CHAT, body={"messages": list(messages), **more})


PROBES: Final[tuple[Probe, ...]] = (
    *(Probe(feature="prompt", kind=Kind.COMPLETIONS, body={"prompt": text}) for text in TEXTS),
    Probe(
        feature="prompt",
        kind=Kind.COMPLETIONS,
        body={"prompt": TEXTS[0] + TEXTS[8] + TEXTS[1], "add_special_tokens": False},
    ),
    *(_chat_probe("chat", ({"role": "user", "content": text},)) for text in TEXTS[:9]),
    _chat_probe("chat", _TALK),
    _chat_probe("chat", _TALK, add_generation_prompt=False),
    _chat_probe("chat", (*_TALK, {"role": "assistant", "content": "And so"}, *_TALK[1:])),
    _chat_probe("parts", _PARTS),
    _chat_probe("tools", _TALK, tools=[_TOOL]),
    _chat_probe("tool_calls", _CALLED),
    _chat_probe("tool_calls", _CALLED, tools=[_TOOL]),
    _chat_probe("developer", (_DEVELOPER, *_TALK[1:])),
    _chat_probe("developer", (*_TALK[:3], _DEVELOPER, *_TALK)),
    _chat_probe("roles", ({"role": "critic", "content": "Too long."}, *_TALK[1:])),
    _chat_probe("billing", (_BILLED, *_TALK[1:])),
    _chat_probe(
        "reasoning",
        (_TALK[1], {"role": "assistant", "content": "42", "reasoning": "hm"}, _TALK[3]),
    ),
    _chat_probe("kwargs", _TALK, chat_template_kwargs={"enable_thinking": False}),
    _chat_probe("kwargs", _TALK, chat_template_kwargs={"enable_thinking": True, "other": "x"}),
    _chat_probe(
        "continue",
        (*_TALK[:3],),
        add_generation_prompt=False,
        continue_final_message=True,
    ),
)
FEATURES: Final = frozenset(probe.feature for probe in PROBES)
_BIT: Final = {feature: 1 << number for number, feature in enumerate(sorted(FEATURES))}


def bits_of(features: Iterable[str]) -> int:
    """Features as bits, so that a decision compares them with one operation a replica."""
    bits = 0
    for feature in features:
        bits |= _BIT[feature]
    return bits
