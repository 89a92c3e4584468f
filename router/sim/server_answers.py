"""Answers of the fake engine in vLLM's shapes: whole or as server-sent events.

An `Answer` owns the sequences of one HTTP request (prompts x n) and writes what the engine has
produced. Formatting is by byte templates: generated text is plain ASCII words, so nothing in it
needs escaping; everything else that goes into a template is encoded as JSON once per request.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec

from warmlane.router.sim.engine import Sequence
from warmlane.router.sim.faults import Fault
from warmlane.router.sim.server_http import Exchange
from warmlane.router.sim.tokens import TOKEN_BYTES

FINGERPRINT = "warmlane-fake-engine"
DONE = b"data: [DONE]\n\n"

encode = msgspec.json.encode


def error_body(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """vLLM's error object; `code` repeats the status."""
    return encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


def error_event(message: str) -> bytes:
    """The event that a dying engine sends in the middle of a stream."""
    return b"data: %b\n\n" % error_body(500, message, "InternalServerError")


class Job(msgspec.Struct, kw_only=True):
    """What the body asked for, checked. `texts[i]`: the whole output of choice i, ASCII."""

    chat: bool
    model: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    token_ids: bool
    details: bool
    prompts: list[Any]
    choices: int
    request_id: str = ""


class Answer:
    """Writes the answer of one completions or chat request while the engine produces it."""

    def __init__(
        self, exchange: Exchange, job: Job, fault: Fault | None, done: Callable[[Answer], None]
    ) -> None:
        self.exchange = exchange
        self.job = job
        self.sequences: list[Sequence] = []
        self.texts: list[bytes] = []
        self._fault = fault
        self._done = done
        self._sent: list[int] = []
        self._closed: list[bool] = []
        self._events = 0
        prefix = "chatcmpl" if job.chat else "cmpl"
        self._id = f"{prefix}-{job.request_id or secrets.token_hex(8)}"
        kind = "chat.completion" if job.chat else "text_completion"
        if job.stream and job.chat:
            kind += ".chunk"
        # everything of an event up to the list of choices
        self._head = b'{"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            encode(self._id),
            kind.encode(),
            int(time.time()),
            encode(job.model),
        )

    def attach(self, sequence: Sequence, text: bytes) -> None:
        """The next choice."""
        self.sequences.append(sequence)
        self.texts.append(text)
        self._sent.append(0)
        self._closed.append(False)

    @property
    def finished(self) -> bool:
        return all(self._closed)

    def progress(self, sequence: Sequence) -> None:
        """The engine has new tokens of this sequence, or has ended it."""
        if self.exchange.gone:
            return
        if self.job.stream:
            self._stream(self.sequences.index(sequence), sequence)
        elif sequence.reason:
            self._closed[self.sequences.index(sequence)] = True
            if self.finished:
                self._whole()

    def abort_at_once(self) -> None:
        """Answer 200 with finish_reason "abort" and no token, as a draining engine does."""
        for sequence in self.sequences:
            sequence.reason = "abort"
            self.progress(sequence)

    def _stream(self, index: int, sequence: Sequence) -> None:
        if self._closed[index]:
            return
        out: list[bytes] = []
        if not self.exchange.started:
            self.exchange.start_stream()
            if self.job.chat:
                out.extend(self._role(choice) for choice in range(len(self.sequences)))
        sent, produced = self._sent[index], sequence.produced
        if produced > sent or sequence.reason:
            out.append(self._chunk(index, sequence, sent, produced))
            self._sent[index] = produced
            self._events += 1
        self._closed[index] = bool(sequence.reason)
        if self._broken(out):
            return
        last = self.finished
        if last:
            if self.job.include_usage:
                out.append(self._event(b"", self._usage(details=True), fingerprint=True))
            out.append(DONE)
        self.exchange.send(b"".join(out))
        if last:
            self.exchange.end()
            self._done(self)

    def _broken(self, out: list[bytes]) -> bool:
        """Break the stream when a fault says so."""
        fault = self._fault
        if fault is None or self._events < fault.after or self.finished:
            return False
        if fault.kind == "cut":
            self.exchange.send(b"".join(out))
            self.exchange.reset()
        elif fault.kind == "error_event":
            message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            self.exchange.send(b"".join([*out, error_event(message), DONE]))
            self.exchange.end()
            self._done(self)
        else:
            return False
        return True

    def _role(self, index: int) -> bytes:
        choice = (
            b'{"index":%d,"delta":{"role":"assistant","content":""},'
            b'"logprobs":null,"finish_reason":null}' % index
        )
        usage = self._usage(details=False, counted=False) if self.job.continuous_usage else b""
        return self._event(choice, usage, b',"prompt_token_ids":null,"prompt_text":null')

    def _chunk(self, index: int, sequence: Sequence, sent: int, produced: int) -> bytes:
        text = self.texts[index][sent * TOKEN_BYTES : produced * TOKEN_BYTES]
        ids = prompt_ids = b"null"
        if self.job.token_ids and sequence.tokens is not None:
            first = sequence.prompt
            ids = encode(sequence.tokens[first + sent : first + produced].tolist())
            if sent == 0:
                prompt_ids = encode(sequence.tokens[:first].tolist())
        reason = b'"%b"' % sequence.reason.encode() if sequence.reason else b"null"
        stop = b',"stop_reason":null' if sequence.reason or not self.job.chat else b""
        if self.job.chat:
            choice = (
                b'{"index":%d,"delta":{"content":"%b"},"logprobs":null,"finish_reason":%b%b,'
                b'"token_ids":%b}' % (index, text, reason, stop, ids)
            )
        else:
            choice = (
                b'{"index":%d,"text":"%b","logprobs":null,"finish_reason":%b%b,'
                b'"prompt_token_ids":%b,"token_ids":%b}'
                % (index, text, reason, stop, prompt_ids, ids)
            )
        usage = self._usage(details=False) if self.job.continuous_usage else b""
        last = bool(sequence.reason) and not self.job.include_usage
        return self._event(choice, usage, fingerprint=last)

    def _event(
        self, choices: bytes, usage: bytes, extra: bytes = b"", *, fingerprint: bool = False
    ) -> bytes:
        if usage:
            usage = b',"usage":' + usage
        if fingerprint:
            extra += b',"system_fingerprint":"%b"' % FINGERPRINT.encode()
        return b"data: %b%b]%b%b}\n\n" % (self._head, choices, usage, extra)

    def _usage(self, *, details: bool, counted: bool = True) -> bytes:
        """counted: with the output tokens so far."""
        samples = self.job.choices
        prompt = sum(sequence.prompt for sequence in self.sequences[::samples])
        output = sum(sequence.produced for sequence in self.sequences) if counted else 0
        cached: dict[str, Any] = {}
        if details and self.job.details:
            hits = sum(max(0, sequence.cached) for sequence in self.sequences[::samples])
            created = {"created_cache_tokens": 0} if self.job.chat else {}
            cached = {"prompt_tokens_details": {"cached_tokens": hits, **created}}
        return encode(
            {
                "prompt_tokens": prompt,
                "total_tokens": prompt + output,
                "completion_tokens": output,
                **cached,
            }
        )

    def _whole(self) -> None:
        choices = []
        for index, sequence in enumerate(self.sequences):
            text = self.texts[index][: sequence.produced * TOKEN_BYTES].decode()
            ids = prompt_ids = None
            if self.job.token_ids and sequence.tokens is not None:
                prompt_ids = sequence.tokens[: sequence.prompt].tolist()
                ids = sequence.tokens[sequence.prompt :].tolist()
            choice: dict[str, Any] = {"index": index, "logprobs": None}
            if self.job.chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice |= {"text": text, "prompt_logprobs": None, "prompt_token_ids": prompt_ids}
            choice |= {"finish_reason": sequence.reason, "stop_reason": None, "token_ids": ids}
            choices.append(encode(choice))
        usage = self._usage(details=True)
        tail = b'],"system_fingerprint":"%b","usage":%b,"kv_transfer_params":null}' % (
            FINGERPRINT.encode(),
            usage,
        )
        self.exchange.respond(200, self._head + b",".join(choices) + tail)
        self._done(self)
