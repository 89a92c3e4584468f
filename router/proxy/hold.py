"""Holding an answer back until it is clear that it is one. Sans-I/O.

A 200 is not yet an answer: a draining vLLM says 200, finish_reason "abort" and no token, a dying
one puts an error event into the stream. So the head and the first bytes are held until a token or
a finish reason is seen, up to a cap; nothing of it has reached the client, so another replica can
still be tried.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from warmlane.router.answers import Answer
from warmlane.router.attempts import HELD, Fault, classify
from warmlane.router.config import Limits
from warmlane.router.proxy.response_head import ResponseHead
from warmlane.router.types import Kind

# Kinds whose 200 answers are read while they pass: usage, first token, finish reason. Embeddings
# are not: megabytes of numbers that tell nothing the request did not.
READ_KINDS: Final = frozenset({Kind.CHAT, Kind.COMPLETIONS, Kind.RESPONSES, Kind.MESSAGES})

_CLIENT_ERROR: Final = re.compile(rb'"error"[^\n]*"code"[ ]*:[ ]*"?4[0-9][0-9]\b')
_NO_MODEL: Final = re.compile(rb'"param"[ ]*:[ ]*"model"')

Piece = tuple[bytes, bytes, bool, bytes]  # raw, payload, aligned, trailer


class Verdict(IntEnum):
    WAIT = 0
    RELEASE = 1  # it is an answer, or we stop waiting for the proof
    FAIL = 2  # `fault` says why


class Hold:
    """One held answer."""

    __slots__ = ("_answer", "_cap", "_size", "_sse", "_suspect", "fault", "pieces")

    def __init__(self, head: ResponseHead, answer: Answer | None, limits: Limits) -> None:
        self.pieces: list[Piece] = []
        self.fault: Fault | None = None
        self._answer = answer
        self._suspect = head.status if head.status in HELD else 0
        self._sse = head.sse
        self._cap = limits.hold_bytes if head.sse else limits.hold_json_bytes
        self._size = 0

    def judge(self, piece: Piece, done: bool) -> Verdict:
        """Take the next piece. The answer has been fed its payload already."""
        self.pieces.append(piece)
        self._size += len(piece[1])
        full = self._size > self._cap
        if self._suspect:
            return self._judge_error() if done or full else Verdict.WAIT
        answer = self._answer
        assert answer is not None
        if self._sse:
            if answer.error:
                if is_client_error(b"".join([each[1] for each in self.pieces])):
                    return Verdict.RELEASE
                return self._fail(Fault.ERROR_EVENT)
            if answer.abort_without_token:
                return self._fail(Fault.ABORTED)
            ready = answer.first_token or answer.finish_reason or full or done
            return Verdict.RELEASE if ready else Verdict.WAIT
        if done and answer.abort_without_token:
            return self._fail(Fault.ABORTED)
        return Verdict.RELEASE if done or full else Verdict.WAIT

    def give_up(self) -> Verdict:
        """The time cap: judge what is there."""
        return self._judge_error() if self._suspect else Verdict.RELEASE

    def _judge_error(self) -> Verdict:
        body = b"".join([piece[1] for piece in self.pieces])
        if self._suspect == 404:
            return self._fail(Fault.MISSING) if lacks_model(body) else Verdict.RELEASE
        if self._suspect == 500:
            return self._fail(Fault.DEAD) if is_dead_engine(body) else Verdict.RELEASE
        fault = classify(self._suspect, is_openai_error(body))
        return Verdict.RELEASE if fault is None else self._fail(fault)

    def _fail(self, fault: Fault) -> Verdict:
        self.fault = fault
        return Verdict.FAIL


def is_client_error(payload: bytes) -> bool:
    """Whether the error event in here blames the request: another replica would say the same."""
    return _CLIENT_ERROR.search(payload) is not None


def lacks_model(body: bytes) -> bool:
    """Whether a 404 is about the model's name and not about the path (vLLM's NotFoundError)."""
    return is_openai_error(body) and _NO_MODEL.search(body) is not None


def is_dead_engine(body: bytes) -> bool:
    """Whether a 500 is vLLM's answer after its core died ("EngineCore encountered an issue")."""
    return b"EngineCore" in body or b"EngineDeadError" in body


def is_openai_error(body: bytes) -> bool:
    """Whether a body is `{"error": {...}}` as engines write it; cheap, for short bodies."""
    text = body.lstrip()
    return text.startswith(b"{") and b'"error"' in text[:64] and b'"message"' in text
