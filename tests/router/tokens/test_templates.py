"""Templates see messages as the engine shows them, and media end the text that is known."""

from __future__ import annotations

from typing import Any

import pytest

from tests.router.tokens.folder import CHATML, WITH_PARTS
from warmlane.router.templates import (
    BILLING_HEADER,
    Chat,
    ChatTemplate,
    Untranslatable,
    conversation,
)
from warmlane.router.token_jobs import job_of, tokenize_body
from warmlane.router.types import Kind

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def chatml() -> ChatTemplate:
    return ChatTemplate({"default": CHATML}, {"bos_token": "<s>"})


def text(body: dict[str, Any], template: ChatTemplate | None = None) -> str:
    chat = job_of(Kind.CHAT, body).chat
    assert chat is not None
    rendered, whole = (template or chatml()).render(chat, "string")
    assert whole
    return rendered


def test_a_plain_chat() -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    assert text(body) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    body = {**body, "add_generation_prompt": False}
    assert text(body) == "<|im_start|>user\nHi<|im_end|>\n"


def test_parts_are_joined_or_wrapped() -> None:
    parts = [{"type": "text", "text": "one"}, "two", {"type": "text", "text": "three"}]
    messages = [{"role": "user", "content": parts}]
    assert conversation(messages, "string") == [{"role": "user", "content": "one\ntwo\nthree"}]
    wrapped = conversation(messages, "openai")[0]
    assert wrapped is not None
    assert [part["text"] for part in wrapped["content"]] == ["one", "two", "three"]
    template = ChatTemplate({"default": WITH_PARTS}, {"bos_token": "<s>"})
    shown, whole = template.render(Chat(messages=messages), "openai")
    assert whole and shown.startswith("<s><|im_start|>user\nonetwothree<|im_end|>")


def test_tool_arguments_are_decoded_and_results_flattened() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "ok"}]},
    ]
    shown = conversation(messages, "openai")
    assert shown[0] is not None and shown[1] is not None
    assert shown[0]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert shown[1] == {"role": "tool", "content": "ok", "tool_call_id": "1"}
    assert 'f{"a": 1}<|im_end|>' in text({"messages": messages})


@pytest.mark.parametrize("arguments", ["{broken", "[1]", "", None, 7])
def test_bad_tool_arguments_are_an_empty_object(arguments: object) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    made = conversation([{"role": "assistant", "tool_calls": [call]}], "string")[0]
    assert made is not None
    assert made["tool_calls"][0]["function"]["arguments"] == {}


def test_the_last_message_stays_open() -> None:
    body = {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "And "}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    assert text(body).endswith("<|im_start|>assistant\nAnd ")


def test_the_developer_role_is_folded_where_the_template_does_not_know_it() -> None:
    """As vLLM 0.32 does: one system message at the front, and no tools of the developer's."""
    user = {"role": "user", "content": "Hi"}
    developer = {"role": "developer", "content": [{"type": "text", "text": "Be terse."}]}
    alone = text({"messages": [{**developer, "tools": [1]}, user]})
    assert alone.startswith("<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nHi")
    system = {"role": "system", "content": "You help."}
    merged = text({"messages": [system, user, developer, user]})
    assert merged.startswith(
        "<|im_start|>system\nYou help.\n\nBe terse.<|im_end|>\n<|im_start|>user"
    )
    assert merged.count("user") == 2 and "developer" not in merged
    # without the role nothing is moved, however many system messages there are
    assert text({"messages": [user, system]}).index("system") > 20
    chat = job_of(Kind.CHAT, {"messages": [developer, user]}).chat
    assert chat is not None
    assert "developer\nBe terse." in chatml().render(chat, "string", fold=False)[0]
    knows = ChatTemplate({"default": CHATML + "{# 'developer' #}"}, {})
    assert "developer\nBe terse." in knows.render(chat, "string")[0]


def test_the_attribution_line_of_claude_code_is_dropped_from_system_messages() -> None:
    parts = [{"type": "text", "text": f"{BILLING_HEADER}: cch=1;"}, {"type": "text", "text": "A"}]
    parts.append({"type": "text", "text": f"{BILLING_HEADER}: cch=2;\nB"})
    body = {"messages": [{"role": "system", "content": parts}]}
    assert job_of(Kind.CHAT, body).features == {"chat", "parts", "billing"}
    assert text(body).startswith("<|im_start|>system\nA\nB<|im_end|>")
    body["messages"][0]["role"] = "user"
    assert "cch=1" in text(body)


def test_media_end_the_known_text() -> None:
    messages = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]},
        {"role": "user", "content": "And now?"},
    ]
    shown, whole = chatml().render(Chat(messages=messages), "string")
    assert not whole
    assert shown == "<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\n"


def test_a_template_cannot_reach_the_process() -> None:
    for bad in (
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{{ nothing.at.all }}",
    ):
        with pytest.raises(Untranslatable):
            ChatTemplate({"default": bad}, {}).render(Chat(messages=[{"role": "user"}]), "string")
    with pytest.raises(ValueError, match="not valid"):
        ChatTemplate({"default": "{% if %}"}, {})


def test_tools_have_a_template_of_their_own() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools {{ tools | length }}"}, {})
    tool = {"type": "function", "function": {"name": "f"}}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    assert text(body, template) == "tools 1"
    assert text({**body, "tools": []}, template) == "plain"


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        (Kind.CHAT, {"messages": "no"}, "bad_message"),
        (Kind.CHAT, {"messages": [1]}, "bad_message"),
        (Kind.CHAT, {"messages": [{"role": "user", "content": 5}]}, "bad_message"),
        (Kind.CHAT, {"messages": [{"role": "user"}], "tools": [{}]}, "bad_tools"),
        (Kind.CHAT, {"messages": [{"role": "user"}], "chat_template": "x"}, "engine_only_field"),
        (Kind.COMPLETIONS, {"prompt": ["a", "b"]}, "prompt_list"),
        (Kind.COMPLETIONS, {"prompt": "a", "truncate_prompt_tokens": 5}, "engine_only_field"),
        (Kind.RESPONSES, {"input": "x"}, "kind"),
    ],
)
def test_what_only_the_engine_knows_is_refused(
    kind: Kind, body: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Untranslatable) as caught:
        job = job_of(kind, body)
        assert job.chat is not None
        chatml().render(job.chat, "string")
    assert caught.value.reason == reason


def test_the_body_for_the_engine() -> None:
    body = {"model": "alias", "messages": [{"role": "user", "content": "Hi"}], "temperature": 1}
    made = tokenize_body(Kind.CHAT, body, "real")
    assert made == {"model": "real", "messages": body["messages"]}
    with pytest.raises(Untranslatable):
        tokenize_body(Kind.CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, "real")
