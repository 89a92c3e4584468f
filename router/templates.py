"""Chat messages -> the prompt text that an engine makes of them, by the model's own chat template.

Owns what vLLM does to messages before its template sees them (text parts joined or wrapped, tool
arguments decoded, tool results flattened) and the Jinja environment in which templates of model
repositories run (the one of the `transformers` library: immutable sandbox, trimmed blocks, loop
controls, `tojson`, `raise_exception`, `strftime_now`). Floor 5. It never claims to be right:
`tokenize` compares its text, as token ids, with each engine's before it is used.

Cost: 3-10 us a message, on a worker thread. Templates come from the operator's model folder, never
from a client; the sandbox keeps a bad one from touching the process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import msgspec

ContentFormat = Literal["string", "openai"]

TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
# Claude Code's attribution line, with a value that is new in every request: vLLM 0.32 drops it from
# system messages, or no two prompts would share their beginning.
BILLING_HEADER: Final = "x-anthropic-billing-header"
_DEVELOPER: Final = re.compile("""["']developer["']""")
# Appended to the last message and searched in the text, so that what the template puts behind the
# message can be cut off. A private-use character first: no template trims it.
_OPEN_END: Final = "\ue000warmlane-open-end\ue001"
# Stand-ins for a message that holds an image: where two texts with different ones first differ,
# the text that does not depend on the image ends.
_HIDDEN: Final = ("\ue000a", "\ue001b")


class Untranslatable(Exception):
    """This chat cannot be rendered here as the engine would; `reason` is a metric label."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """What a template is rendered with; field names are those of the request body."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    kwargs: dict[str, Any] = {}


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the model wrote; for a prompt it is plain text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way to name them

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which no prompt wants.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _today(form: str) -> str:
    return datetime.now().strftime(form)  # local time, as the engine takes it


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _today
    return environment


class ChatTemplate:
    """A model's chat template, compiled once.

    sources: template text by name: "default", and "tool_use" where the model has one for tools.
    specials: `bos_token` and the like, as the template sees them.
    Raises ValueError when a template is not valid Jinja.
    """

    def __init__(self, sources: Mapping[str, str], specials: Mapping[str, str]) -> None:
        environment = _environment()
        try:
            self._compiled = {
                name: (environment.from_string(text), _DEVELOPER.search(text) is None)
                for name, text in sources.items()
            }
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is not valid: {error}") from error
        if "default" not in self._compiled:
            raise ValueError("the chat template has no default form")
        self._specials = dict(specials)

    def render(self, chat: Chat, content: ContentFormat, *, fold: bool = True) -> tuple[str, bool]:
        """The prompt text, and whether it is whole.

        False: the chat holds images or other media, and the text ends before the first of them (an
        engine puts a number of tokens there that only the model's processor knows).
        fold: as vLLM 0.32 does, show a template that does not know the developer role system
        messages in its place. Raises Untranslatable.
        """
        messages = conversation(chat.messages, content)
        first = next((n for n, each in enumerate(messages) if each is None), -1)
        if first < 0:
            return self._text(chat, [each for each in messages if each is not None], fold), True
        texts = []
        for stand_in in _HIDDEN:
            shown: list[dict[str, Any]] = []
            for each, source in zip(messages, chat.messages, strict=True):
                hidden = {"role": source.get("role", "user"), "content": stand_in}
                shown.append(hidden if each is None else each)
            closed = msgspec.structs.replace(chat, continue_final_message=False)
            texts.append(self._text(closed, shown, fold))
        return _common(*texts), False

    def _text(self, chat: Chat, messages: list[dict[str, Any]], fold: bool) -> str:
        compiled, folds = self._compiled["default"]
        if chat.tools is not None:
            compiled, folds = self._compiled.get("tool_use", (compiled, folds))
        if fold and folds and any(each["role"] == "developer" for each in messages):
            messages = _folded(messages)
        if chat.continue_final_message:
            messages = [*messages[:-1], _left_open(messages[-1])]
        values: dict[str, Any] = {**self._specials, **chat.kwargs}
        values.update(messages=messages, tools=chat.tools, documents=chat.documents)
        values["add_generation_prompt"] = chat.add_generation_prompt
        try:
            text = compiled.render(values)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            # Whatever the engine makes of it (a 400, mostly), there is nothing to look up.
            raise Untranslatable("template_error") from error
        if not chat.continue_final_message:
            return text
        end = text.rfind(_OPEN_END)
        if end < 0:
            raise Untranslatable("template_error")
        return text[:end]


def _left_open(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _OPEN_END}
    if isinstance(content, list):
        for number in range(len(content) - 1, -1, -1):
            part = content[number]
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                open_part = {**part, "text": part["text"] + _OPEN_END}
                return {
                    **message,
                    "content": [*content[:number], open_part, *content[number + 1 :]],
                }
    raise Untranslatable("template_error")


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Developer messages as system messages, and all of those as one at the front."""
    systems: list[str] = []
    others: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] not in ("system", "developer"):
            others.append(message)
            shown.append(message)
            continue
        shown.append({**message, "role": "system"})
        shown[-1].pop("tools", None)
        content = message.get("content", "")
        if isinstance(content, list):
            content = "\n".join(part["text"] for part in content)
        systems.append(content)
    if len(systems) == 1 and shown[0]["role"] == "system":
        return shown
    return [{"role": "system", "content": "\n\n".join(filter(None, systems))}, *others]


def _common(left: str, right: str) -> str:
    size = min(len(left), len(right))
    low, high = 0, size
    while low < high:  # the first difference by bisection: equality of slices is a memcmp
        middle = (low + high + 1) // 2
        if left[:middle] == right[:middle]:
            low = middle
        else:
            high = middle - 1
    return left[:low]


# What vLLM makes of messages (0.32: renderers/chat_utils) ----------------------------------------


def conversation(
    messages: list[dict[str, Any]], content: ContentFormat
) -> list[dict[str, Any] | None]:
    """Messages as a template sees them; None stands for one that holds media.

    content: "string" joins text parts by newlines, "openai" keeps them as a list of parts.
    Raises Untranslatable for messages that the engine would refuse.
    """
    return [_message(message, content) for message in messages]


def _message(message: dict[str, Any], content: ContentFormat) -> dict[str, Any] | None:
    role = message.get("role")
    if not isinstance(role, str):
        raise Untranslatable("bad_message")
    texts = _texts(message.get("content"))
    if texts is None:
        return None
    if role == "system":
        texts = _unbilled(texts)
    made: dict[str, Any] = {"role": role}
    if content == "openai" and role != "tool":
        made["content"] = [{"type": "text", "text": text} for text in texts]
    else:
        made["content"] = "\n".join(texts)
    if role == "assistant":
        _assistant(message, made)
    elif role == "tool" and "tool_call_id" in message:
        made["tool_call_id"] = message["tool_call_id"]
    elif role == "developer":
        made["tools"] = message.get("tools")
    if isinstance(message.get("name"), str):
        made["name"] = message["name"]
    return made


def _unbilled(texts: list[str]) -> list[str]:
    kept = []
    for text in texts:
        if not text.startswith(BILLING_HEADER):
            kept.append(text)
        elif rest := text.partition("\n")[2]:
            kept.append(rest)
    return kept


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """Its text parts; none where its content is not understood."""
    try:
        return _texts(message.get("content")) or []
    except Untranslatable:
        return []


def _texts(content: Any) -> list[str] | None:
    """The text parts of a content; None when it has parts of another kind."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise Untranslatable("bad_message")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise Untranslatable("bad_message")
        kind = part.get("type", "text")
        if kind not in TEXT_PARTS:
            return None
        text = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(text, str):
            texts.append(text)
    return texts


def _assistant(message: dict[str, Any], made: dict[str, Any]) -> None:
    reasoning = message.get("reasoning")
    if reasoning is not None:
        made["reasoning"] = made["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return
    made["tool_calls"] = [_call(call) for call in calls]


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise Untranslatable("bad_message")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments else {}
        except ValueError:
            arguments = {}
    if not isinstance(arguments, dict):
        arguments = {}
    return {**call, "function": {**function, "arguments": arguments}}


def tool_definitions(tools: Any) -> list[dict[str, Any]]:
    """Tools as the template sees them: the engine fills in the fields that a client left out."""
    if not isinstance(tools, list):
        raise Untranslatable("bad_tools")
    made = []
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Untranslatable("bad_tools")
        made.append({**tool, "type": tool.get("type", "function"), "function": dict(function)})
    return made
