"""Requests -> the engine's token ids, in time or not at all. Floor 5: a loop, worker threads.

Exact matching needs the ids that the engine will compute. They come from the model's own tokenizer
and chat template in this process (`LocalTokens`), or from the engines' `POST /tokenize`
(`EngineTokens`). They are believed per replica and feature only after the probes of `token_jobs`
made equal ids here and there. A request waits for its ids at most max(5 ms, 5 % of its predicted
cold prefill), capped at 100 ms; later ids are dropped and the request is routed on the approximate
view. Every result is counted.

Nothing here holds the event loop for longer than a look-up: bodies are decoded, rendered and
encoded by worker threads. Their number and the jobs in hand are bounded; a request beyond that
counts as late at once.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any, Final

import msgspec

from warmlane.router.encoding import packed
from warmlane.router.templates import ContentFormat, Untranslatable
from warmlane.router.token_jobs import FEATURES, PROBES, decoded, job_of, tokenize_body
from warmlane.router.tokenizer_local import LocalTokenizer
from warmlane.router.types import Kind

log = logging.getLogger("warmlane.tokenize")

# The least and the greatest time a request waits for its ids, and their share of the prefill.
FLOOR_S: Final = 0.005
CAP_S: Final = 0.100
SHARE: Final = 0.05
# Jobs in hand per model before a request is given up at once.
_IN_HAND: Final = 64
# What a remembered answer of an engine costs besides its ids.
_ENTRY_BYTES: Final = 200
# How engines show messages to a template: text parts joined or as a list, and what becomes of the
# developer role. Every engine has one; the probes tell which.
_STYLES: Final[tuple[tuple[ContentFormat, bool], ...]] = (
    *(("string", True), ("openai", True)),
    *(("string", False), ("openai", False)),
)


class EngineSilent(Exception):
    """An engine did not answer a tokenize call with ids; the message is one line for the log."""


# (replica, body) -> ids: one `POST /tokenize` of that replica. Raises EngineSilent.
Ask = Callable[[str, dict[str, Any]], Awaitable[list[int]]]


class Ids(msgspec.Struct, frozen=True):
    """Token ids of one prompt.

    tokens: native uint32. whole: False when they end before the first image. features: what must
    be proven for a replica before it is matched by them.
    """

    tokens: bytes
    whole: bool
    features: frozenset[str]


class Proof(msgspec.Struct):
    """What one replica's tokenizer was shown to share with ours.

    state: unproven, proven (every feature), partly, different, or silent (it did not answer).
    """

    state: str = "unproven"
    features: frozenset[str] = frozenset()


def budget_s(prompt_bytes: int, prefill_bytes_per_s: float) -> float:
    """How long a request of this size may wait for its ids."""
    return min(max(FLOOR_S, SHARE * prompt_bytes / prefill_bytes_per_s), CAP_S)


class ModelTokens(ABC):
    """Ids of one model's requests, and the proofs of its replicas. Base of the two sources.

    results: requests by what became of them: "exact", "exact_to_media", "late", "unproven", or
    the reason why they cannot be encoded here.
    """

    def __init__(
        self, model: str, workers: ThreadPoolExecutor, count: Callable[[str], None] | None = None
    ) -> None:
        self.model = model
        self.results: Counter[str] = Counter()
        self._count = count
        self.proofs: dict[str, Proof] = {}
        self._workers = workers
        self._in_hand = 0

    def proven(self, replica: str) -> frozenset[str]:
        """Features for which this replica's ids are known to be ours."""
        proof = self.proofs.get(replica)
        return proof.features if proof is not None else frozenset()

    def usable(self) -> frozenset[str]:
        """Features that some replica has proven: others are not worth encoding."""
        return frozenset().union(*(proof.features for proof in self.proofs.values()))

    def forget(self, replica: str) -> None:
        """The replica left or restarted: its proof is void."""
        self.proofs.pop(replica, None)

    async def ids(self, kind: Kind, body: bytes, timeout_s: float) -> Ids | None:
        """The ids, or None when they are late, unsupported or unproven (see `results`)."""
        usable = self.usable()
        if not usable or self._in_hand >= _IN_HAND:
            self._tally("late" if usable else "unproven")
            return None
        self._in_hand += 1
        work = asyncio.ensure_future(self._find(kind, body, usable))
        work.add_done_callback(self._done)
        # Not cancelled when late: what is begun is finished, and the next turn finds it in memory.
        await asyncio.wait((work,), timeout=timeout_s)
        if not work.done():
            self._tally("late")
            return None
        if work.exception() is not None:
            return None  # counted by _done
        found = work.result()
        self._tally("exact" if found.whole else "exact_to_media")
        return found

    def _tally(self, result: str) -> None:
        self.results[result] += 1
        if self._count is not None:
            self._count(result)

    def _done(self, work: asyncio.Future[Ids]) -> None:
        self._in_hand -= 1
        if work.cancelled():
            return
        error = work.exception()
        if isinstance(error, Untranslatable):
            self._tally(error.reason)
        elif isinstance(error, EngineSilent):
            self._tally("engine_silent")
        elif error is not None:
            self._tally("bug")
            log.error("event=tokenize_bug model=%s", self.model, exc_info=error)

    @abstractmethod
    async def _find(self, kind: Kind, body: bytes, usable: frozenset[str]) -> Ids:
        """The ids, however long that takes. Raises Untranslatable, EngineSilent."""

    async def prove(self, replica: str, ask: Ask) -> Proof:
        """Compare the probes with one engine's answers; one log line when the finding changes."""
        theirs: list[bytes | None] = []
        silent = ""
        for probe in PROBES:
            try:
                body = tokenize_body(probe.kind, probe.body, self.model)
                theirs.append(packed(await ask(replica, body)))
            except EngineSilent as error:
                # One probe may be refused (a template that takes no tools), all of them may not.
                silent = str(error)
                theirs.append(None)
        if any(theirs):
            equal = await self._compare(replica, theirs)
            state = "proven" if equal == FEATURES else "partly" if equal else "different"
        else:
            equal, state = frozenset(), "silent"
        return self._found(replica, Proof(state, equal), silent)

    def _found(self, replica: str, proof: Proof, silent: str) -> Proof:
        if proof != self.proofs.get(replica):
            log.log(
                logging.INFO if proof.features else logging.WARNING,
                'event=tokenizer replica=%s model=%s state=%s unequal=%s why="%s"',
                replica,
                self.model,
                proof.state,
                ",".join(sorted(FEATURES - proof.features)) or "none",
                silent,
            )
        self.proofs[replica] = proof
        return proof

    @abstractmethod
    async def _compare(self, replica: str, theirs: Sequence[bytes | None]) -> frozenset[str]:
        """Features of which all probes' ids are equal here and there."""


class LocalTokens(ModelTokens):
    """Ids from the model's own tokenizer and template, in worker threads of this process."""

    def __init__(
        self,
        model: str,
        local: LocalTokenizer,
        workers: ThreadPoolExecutor,
        count: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(model, workers, count)
        self.local = local
        self._style: tuple[ContentFormat, bool] | None = None

    async def _find(self, kind: Kind, body: bytes, usable: frozenset[str]) -> Ids:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, self._encode, kind, body, usable)

    def _encode(self, kind: Kind, body: bytes, usable: frozenset[str]) -> Ids:
        job = job_of(kind, decoded(body))
        if not job.features <= usable:
            raise Untranslatable("unproven_feature")
        content, fold = self._style or _STYLES[0]
        tokens, whole = self.local.ids(job, content, fold=fold)
        return Ids(tokens, whole, job.features)

    async def _compare(self, replica: str, theirs: Sequence[bytes | None]) -> frozenset[str]:
        # How messages are shown to the template is the engine's guess from the template's text;
        # ours is whichever makes its ids. All replicas of a model must agree about it.
        styles = _STYLES if self._style is None else (self._style,)
        loop = asyncio.get_running_loop()
        best: frozenset[str] = frozenset()
        for style in styles:
            equal = await loop.run_in_executor(self._workers, self._equal, theirs, *style)
            if len(equal) > len(best):
                best = equal
                if "chat" in equal:
                    self._style = style
        return best

    def _equal(
        self, theirs: Sequence[bytes | None], content: ContentFormat, fold: bool
    ) -> frozenset[str]:
        ours: list[bytes | None] = []
        for probe in PROBES:
            try:
                ours.append(self.local.ids(job_of(probe.kind, probe.body), content, fold=fold)[0])
            except Untranslatable:
                ours.append(None)
        return _shared(ours, theirs)


class EngineTokens(ModelTokens):
    """Ids from the replicas' own `POST /tokenize`, in turn, remembered.

    max_bytes: size of the memory of answers, by digest of the request.
    """

    def __init__(
        self,
        model: str,
        ask: Ask,
        workers: ThreadPoolExecutor,
        max_bytes: int,
        count: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(model, workers, count)
        self._ask = ask
        self._turn = 0
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._reference: Sequence[bytes | None] | None = None

    async def _find(self, kind: Kind, body: bytes, usable: frozenset[str]) -> Ids:
        loop = asyncio.get_running_loop()
        digest, asked = await loop.run_in_executor(self._workers, self._question, kind, body)
        ids = self._known.get(digest)
        if ids is None:
            able = [name for name, proof in self.proofs.items() if proof.features]
            self._turn += 1
            ids = packed(await self._ask(able[self._turn % len(able)], asked))
            self._remember(digest, ids)
        else:
            self._known.move_to_end(digest)
        return Ids(ids, True, usable & FEATURES)

    def _question(self, kind: Kind, body: bytes) -> tuple[bytes, dict[str, Any]]:
        asked = tokenize_body(kind, decoded(body), self.model)
        return blake2b(msgspec.json.encode(asked), digest_size=16).digest(), asked

    def _remember(self, digest: bytes, ids: bytes) -> None:
        size = len(ids) + _ENTRY_BYTES
        if digest in self._known or size > self._max_bytes:
            return
        self._known[digest] = ids
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._known.popitem(last=False)[1]) + _ENTRY_BYTES

    async def _compare(self, replica: str, theirs: Sequence[bytes | None]) -> frozenset[str]:
        # The engines are the truth; what is shown is that they all have the same one.
        if self._reference is None:
            self._reference = theirs
        return _shared(self._reference, theirs)


def _shared(ours: Sequence[bytes | None], theirs: Sequence[bytes | None]) -> frozenset[str]:
    """Features of which every probe made equal ids."""
    wrong = {
        probe.feature
        for probe, left, right in zip(PROBES, ours, theirs, strict=True)
        if left is None or left != right
    }
    equal = FEATURES - wrong
    # Where plain chats differ, what is built on them is chance.
    return equal & {"prompt"} if "chat" in wrong else equal
