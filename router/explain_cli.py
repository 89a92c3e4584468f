"""`warmlane explain`: asks a running router why it would choose a replica for a request body.

A client of POST /admin/v1/explain; it sends the body to the router's admin port and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from warmlane.router.errors import ConfigError

_TIMEOUT_S = 10.0
_TAKEN = ("authorization", "connection", "content-length", "content-type", "host", "origin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane explain`."""
    parser.add_argument("body", metavar="BODY.json", help="a client's request body; - reads stdin")
    parser.add_argument(
        "--admin",
        metavar="URL",
        default="http://127.0.0.1:8081",
        help="the router's admin address; ext-proc's is port 9090",
    )
    parser.add_argument(
        "--path",
        default=argparse.SUPPRESS,
        help="path the client would use (told from the body: chat, completions, responses)",
    )
    parser.add_argument(
        "--token-file", default=argparse.SUPPRESS, metavar="FILE", help="file with the admin token"
    )
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="a header of the client's that counts: session, subset, API key, tenant, deadline",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as it came")


def run(args: argparse.Namespace) -> int:
    """0: explained; 1: the router refused or does not answer; ConfigError: bad input."""
    try:
        body = sys.stdin.buffer.read() if args.body == "-" else Path(args.body).read_bytes()
    except OSError as error:
        raise ConfigError(f"{args.body}: {error.strerror}") from error
    try:
        json.loads(body)
    except ValueError as error:
        raise ConfigError(f"{args.body}: not JSON: {error}") from error
    status, answer = _ask(args, body)
    if status != 200:
        sys.stderr.write(f"warmlane explain: {_message(status, answer)}\n")
        return 1
    if args.json:
        sys.stdout.write(answer.decode("utf-8", "replace") + "\n")
    else:
        # Nothing is cut when the output goes to a file or a pipe.
        show(json.loads(answer), Console(width=None if sys.stdout.isatty() else 160))
    return 0


def show(explanation: Mapping[str, Any], console: Console) -> None:
    """The explanation as a short head and one row a replica, the choice first."""
    e = explanation
    console.print(
        f"pool {e['pool']}  model {e['model'] or '-'}"
        + (f"  adapter {e['adapter']}" if e["adapter"] else "")
        + f"  prompt {e['prompt_tokens']} tokens, {e['prompt_blocks']} {e['unit']} blocks"
        f"  view {e['view']}  policy {e['policy'] or 'own scorers'}",
        highlight=False,
        markup=False,  # names are the client's and the operator's
    )
    if e.get("admission"):
        console.print(_admission(e["admission"]), highlight=False, markup=False)
    for field in ("fallback", "error"):
        if e[field]:
            console.print(f"{field}: {e[field]}", style="red", highlight=False, markup=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("replica", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for title in ("hit", "in flight", "waiting", "total"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("scores")
    for row in sorted(e["replicas"], key=_order):
        table.add_row(
            "" if row["order"] is None else str(row["order"] + 1),
            row["replica"],
            state_of(row),
            str(row["hit_tokens"]),
            _requests(row),
            f"{row['waiting']:g}",
            _number(row["total"]),
            ", ".join(
                f"{line['scorer']} {_number(line['score'])} x {line['weight']:g}"
                for line in row["scores"]
            )
            + _adapter(row)
            + _price(row)
            + _learned(row),
        )
    console.print(table)
    for row in e["replicas"]:
        if row.get("doubt"):
            text = f"{row['replica']}: its predictions do not come true ({row['doubt']})"
            console.print(text, style="yellow", highlight=False, markup=False)


def state_of(row: Mapping[str, Any]) -> str:
    """Its state; of one that is ready and may not serve this request, the filter that says so."""
    state, filter_ = row["state"].lower(), row["removed_by"]
    return f"{state}, not by {filter_}" if filter_ and state == "ready" else state


_REASONS = {
    "below_saturation": "nothing waits below saturation",
    "room": "room in a replica",
    "memory": "memory for a new session",
    "others_first": "others came before",
    "nobody_ready": "no replica is ready",
}


def _admission(told: Mapping[str, Any]) -> str:
    """What admission would do, and the figures that decide it."""
    result, reason = told["result"], told["reason"]
    if result == "go":
        head = f"goes at once ({_REASONS[reason]})"
    elif result == "refuse":
        head = f"refused, 429 {told['code']}"
    else:
        head = f"waits for: {_REASONS[reason]}; place {told['position']} of {told['waiting'] + 1}"
        head += ", about " + _seconds(told["expected_wait_s"])
        head += f", at most {_seconds(told['longest_wait_s'])}"
        head += "" if told["in_time"] else " (too late: 429 queue_timeout)"
    session = "opens a session" if told["opens_session"] else "goes on with its session"
    limit = f"{told['allowed_tokens']:.0f}" if told["allowed_tokens"] else "no limit"
    return (
        f"admission: {head}\n"
        f"  room in {told['replicas_with_room']} of {told['replicas_ready']} replicas;"
        f" {told['waiting']} wait, of its tenant {told['tenant_waiting']}"
        f" (deficit {told['tenant_deficit']:.0f} tokens, weight {told['tenant_weight']:g})"
        f"{', level ' + str(told['level']) if told['level'] else ''}\n"
        f"  {session}, {told['new_tokens']:.0f} new tokens; live sessions and it"
        f" {told['wanted_tokens']:.0f} KV tokens of {limit}"
        f"{', new sessions are held' if told['holds_sessions'] else ''}"
        f", {told['lost_share']:.0%} of continued contexts lost"
    )


def _seconds(value: float | None) -> str:
    return "an unknown time" if value is None else f"{value:.3g} s"


def _order(row: Mapping[str, Any]) -> tuple[bool, int, str]:
    order = row["order"]
    return order is None, order or 0, row["replica"]


def _adapter(row: Mapping[str, Any]) -> str:
    """State of the request's LoRA adapter there, and what it costs."""
    return f", adapter {row['adapter']} {row['adapter_s']:.3g} s" if row.get("adapter") else ""


def _price(row: Mapping[str, Any]) -> str:
    """The terms of its price, in tokens."""
    terms = row.get("price", {}).items()
    return ": " + " + ".join(f"{name} {value:.0f}" for name, value in terms) if terms else ""


def _learned(row: Mapping[str, Any]) -> str:
    """Where it is slower or faster than the middle replica."""
    known = row.get("learned", {})
    parts = ((word, known.get(f"{word}_factor", 1.0)) for word in ("prefill", "decode"))
    told = [f"{word} x {1 / factor:.2g} as fast" for word, factor in parts if factor != 1.0]
    return " (" + ", ".join(told) + ")" if told else ""


def _requests(row: Mapping[str, Any]) -> str:
    """Ours, and what others have there."""
    foreign = row.get("foreign_requests", 0)
    return f"{row['requests']} + {foreign:.3g}" if foreign else str(row["requests"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _ask(args: argparse.Namespace, body: bytes) -> tuple[int, bytes]:
    base = args.admin if "://" in args.admin else f"http://{args.admin}"
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--admin: {args.admin!r}: must be http(s)://host:port")
    given = vars(args)
    url = f"{parts.scheme}://{parts.netloc}/admin/v1/explain"
    if "path" in given:
        url += f"?path={quote(given['path'], safe='')}"
    headers = {"Content-Type": "application/json", **_headers(args.header)}
    if "token_file" in given:
        headers["Authorization"] = f"Bearer {_token(given['token_file'])}"
    request = urllib.request.Request(url, body, headers)
    # An environment's proxy must not see the prompt.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (urllib.error.URLError, TimeoutError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return 0, f"{base} does not answer: {reason}".encode()


def _headers(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, colon, value = text.partition(":")
        name = name.strip()
        if not colon or not name.replace("-", "").isalnum() or not (name + value).isprintable():
            raise ConfigError(f"--header: {text!r}: must be NAME:VALUE")
        if name.lower() in _TAKEN:
            raise ConfigError(f"--header: {name!r}: is of the question itself")
        found[name] = value.strip()
    return found


def _token(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file: {path}: cannot be read: {error}") from error
    if not text or not text.isascii() or not text.isprintable():
        raise ConfigError(f"--token-file: {path}: no usable token in it")
    return text


def _message(status: int, answer: bytes) -> str:
    text = answer.decode("utf-8", "replace").strip()
    if status == 0:
        return text
    try:
        return f"{json.loads(text)['error']['message']} (status {status})"
    except (ValueError, KeyError, TypeError):
        return f"status {status}: {text[:200]}"
