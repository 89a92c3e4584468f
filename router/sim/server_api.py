"""Inference paths of the fake engine: completions, chat, embeddings, responses, messages."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from typing import Any

import msgspec

from warmlane._core.hashing import root_key
from warmlane.router.sim.driver import Driver
from warmlane.router.sim.engine import Sequence
from warmlane.router.sim.faults import Fault, Faults
from warmlane.router.sim.server_answers import Answer, Job, encode, error_body
from warmlane.router.sim.server_http import Exchange
from warmlane.router.sim.server_jobs import (
    Refusal,
    anthropic_messages,
    chat_prompt,
    completion_prompts,
    decode_body,
    natural_length,
    number,
    responses_messages,
    seed_of,
    text_of,
)
from warmlane.router.sim.server_metrics import EngineMetrics
from warmlane.router.sim.server_models import Models
from warmlane.router.sim.tokens import block_keys, tokenize, words

EMBEDDING_SIZE = 8


class Ask(msgspec.Struct, kw_only=True):
    """Owner of a sequence: tells an Answer, or a function, and holds what events need."""

    tell: Callable[[Sequence], None]
    salt: str = ""

    def progress(self, sequence: Sequence) -> None:
        self.tell(sequence)


class InferenceApi:
    """Turns bodies into sequences of the engine and writes the answers."""

    def __init__(
        self,
        driver: Driver,
        models: Models,
        metrics: EngineMetrics,
        faults: Faults,
        *,
        max_model_len: int,
        details: bool,
    ) -> None:
        self.draining = False
        self.in_flight = 0
        self._driver = driver
        self._models = models
        self._metrics = metrics
        self._faults = faults
        self._max_model_len = max_model_len
        self._details = details
        self._block_size = driver.engine.config.block_size

    def routes(self) -> dict[tuple[str, str], Callable[[Exchange], None]]:
        return {
            ("POST", "/v1/completions"): lambda exchange: self._serve(exchange, self._complete),
            ("POST", "/v1/chat/completions"): lambda exchange: self._serve(exchange, self._chat),
            ("POST", "/v1/embeddings"): lambda exchange: self._serve(exchange, self._embed),
            ("POST", "/v1/responses"): lambda exchange: self._serve(exchange, self._responses),
            ("POST", "/v1/messages"): lambda exchange: self._serve(exchange, self._messages),
        }

    def _serve(
        self, exchange: Exchange, handle: Callable[[Exchange, dict[str, Any], Fault | None], None]
    ) -> None:
        fault = self._faults.take()
        if fault is not None and self._strike(exchange, fault):
            return
        try:
            rank = exchange.headers.get(b"x-data-parallel-rank", b"")
            if rank.isdigit() and int(rank) > 0:
                raise Refusal(400, f"data_parallel_rank {int(rank)} is out of range [0, 1).")
            handle(exchange, decode_body(exchange.body), fault)
        except Refusal as refusal:
            body = error_body(refusal.status, refusal.message, refusal.kind, refusal.param)
            exchange.respond(refusal.status, body)

    def _strike(self, exchange: Exchange, fault: Fault) -> bool:
        """Faults that come before any work. True: the request is dealt with."""
        if fault.kind == "reset":
            exchange.reset()
        elif fault.kind == "close":
            exchange.close()
        elif fault.kind == "unavailable":
            exchange.respond(503, error_body(503, "Service Unavailable", "Service Unavailable"))
        elif fault.kind == "error":
            exchange.respond(500, error_body(500, "Internal server error", "InternalServerError"))
        else:
            return fault.kind == "hang"
        return True

    def _complete(self, exchange: Exchange, body: dict[str, Any], fault: Fault | None) -> None:
        self._generate(exchange, body, fault, completion_prompts(body), chat=False)

    def _chat(self, exchange: Exchange, body: dict[str, Any], fault: Fault | None) -> None:
        self._generate(exchange, body, fault, [chat_prompt(body)], chat=True)

    def _generate(
        self,
        exchange: Exchange,
        body: dict[str, Any],
        fault: Fault | None,
        prompts: list[array[int]],
        *,
        chat: bool,
    ) -> None:
        adapter = self._models.adapter_of(body.get("model"))
        choices = number(body, "n", 1, 1) or 1
        options = body.get("stream_options") or {}
        stream = bool(body.get("stream"))
        job = Job(
            chat=chat,
            model=body.get("model") or self._models.base,
            stream=stream,
            include_usage=stream and bool(options.get("include_usage")),
            continuous_usage=stream and bool(options.get("continuous_usage_stats")),
            token_ids=bool(body.get("return_token_ids")),
            details=self._details,
            prompts=prompts,
            choices=choices,
            request_id=exchange.headers.get(b"x-request-id", b"").decode("latin-1"),
        )
        answer = Answer(exchange, job, fault, self._finished)
        salt = body.get("cache_salt") or ""
        ask = Ask(tell=answer.progress, salt=salt)
        limit = self._limit(body, chat=chat)
        for prompt in prompts:
            for choice in range(choices):
                seed = seed_of(prompt, choice, body.get("seed"))
                sequence, text = self._sequence(prompt, seed, limit, body, adapter, salt)
                sequence.owner = ask
                answer.attach(sequence, text)
        exchange.on_gone = lambda: self._abandon(answer)
        if self.draining or (fault is not None and fault.kind == "abort"):
            answer.abort_at_once()
            return
        self._submit(exchange, answer.sequences)

    def _limit(self, body: dict[str, Any], *, chat: bool) -> int | None:
        """The cap on output tokens; None: the answer ends by itself."""
        limit = number(body, "max_tokens", None if chat else 16, 1)
        if chat:
            limit = number(body, "max_completion_tokens", limit, 1)
        if limit is not None and limit > self._max_model_len:
            text = f"max_tokens={limit} cannot be greater than max_model_len={self._max_model_len}."
            raise Refusal(400, text, param="max_tokens")
        return limit

    def _sequence(
        self,
        prompt: array[int],
        seed: bytes,
        limit: int | None,
        body: dict[str, Any],
        adapter: str,
        salt: str,
    ) -> tuple[Sequence, bytes]:
        count = len(prompt)
        if not count:
            raise Refusal(400, "The decoder prompt cannot be empty", param="prompt")
        if count >= self._max_model_len:
            raise Refusal(
                400,
                f"This model's maximum context length is {self._max_model_len} tokens. However, "
                f"your prompt contains {count} input tokens.",
                param="input_tokens",
            )
        room = self._max_model_len - count
        finish = "length"
        if limit is None:
            limit, finish = natural_length(seed), "stop"
        output = min(limit, room)
        text = words(seed, output)
        ids = prompt + tokenize(text)
        keys = block_keys(self._root(adapter, salt), ids[:-1], self._block_size)
        read_cache = body.get("prompt_logprobs") is None
        sequence = Sequence(
            count,
            output,
            keys,
            tokens=ids,
            adapter=adapter,
            read_cache=read_cache,
            finish=finish,
        )
        return sequence, text

    def _root(self, adapter: str, salt: str) -> int:
        # never the root that a router takes for this model: the engine's hashes are its own
        return root_key(f"engine/{self._models.base}", adapter, salt)

    def _submit(self, exchange: Exchange, sequences: list[Sequence]) -> None:
        self.in_flight += 1
        try:
            for sequence in sequences:
                self._driver.submit(sequence)
        except ValueError as error:
            self._drop(sequences)
            self.in_flight -= 1
            exchange.on_gone = None
            raise Refusal(400, str(error), param="input_tokens") from None

    def _drop(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if not sequence.reason and sequence.arrived > 0:
                self._driver.abort(sequence)

    def _finished(self, answer: Answer) -> None:
        answer.exchange.on_gone = None
        self._account(answer.sequences)
        self._drop(answer.sequences)  # an injected fault ended the answer early

    def _abandon(self, answer: Answer) -> None:
        """The client left."""
        self._drop(answer.sequences)
        self._account(answer.sequences)

    def _account(self, sequences: list[Sequence]) -> None:
        if sequences[0].arrived == 0:
            return  # answered without the engine
        self.in_flight -= 1
        now = self._driver.now()
        for sequence in sequences:
            reason = sequence.reason or "abort"
            self._metrics.request_finished(reason, sequence.arrived, sequence.first_token_at, now)

    def _collect(
        self,
        exchange: Exchange,
        prompts: list[array[int]],
        body: dict[str, Any],
        outputs: int | None,
        write: Callable[[list[Sequence], list[bytes]], None],
    ) -> None:
        """Run sequences to their end, then write one whole answer."""
        adapter = self._models.adapter_of(body.get("model"))
        texts: list[bytes] = []
        sequences: list[Sequence] = []

        def tell(sequence: Sequence) -> None:
            if sequence.reason and all(each.reason for each in sequences):
                exchange.on_gone = None
                self._account(sequences)
                write(sequences, texts)

        def abandon() -> None:
            self._drop(sequences)
            self._account(sequences)

        for prompt in prompts:
            seed = seed_of(prompt, 0, body.get("seed"))
            sequence, text = self._sequence(prompt, seed, outputs, body, adapter, "")
            if outputs == 0:
                sequence.output = 0
                sequence.finish = "stop"
            sequence.owner = Ask(tell=tell)
            sequences.append(sequence)
            texts.append(text)
        exchange.on_gone = abandon
        self._submit(exchange, sequences)

    def _embed(self, exchange: Exchange, body: dict[str, Any], fault: Fault | None) -> None:
        source = body.get("input")
        many = isinstance(source, list) and bool(source) and not isinstance(source[0], int)
        prompts = [text_of(part) for part in source] if many and source else [text_of(source)]
        model = body.get("model") or self._models.base

        def write(sequences: list[Sequence], texts: list[bytes]) -> None:
            count = sum(sequence.prompt for sequence in sequences)
            data = []
            for index, prompt in enumerate(prompts):
                raw = seed_of(prompt, 0, None)[:EMBEDDING_SIZE]
                vector = [value / 255.0 for value in struct.unpack(f"{EMBEDDING_SIZE}B", raw)]
                data.append({"index": index, "object": "embedding", "embedding": vector})
            usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
            answer = {"id": "embd-0", "object": "list", "model": model, "data": data}
            exchange.respond(200, encode({**answer, "usage": usage}))

        self._collect(exchange, prompts, body, 0, write)

    def _responses(self, exchange: Exchange, body: dict[str, Any], fault: Fault | None) -> None:
        prompt = chat_prompt({"messages": responses_messages(body), "tools": body.get("tools")})
        limit = number(body, "max_output_tokens", None, 1)
        model = body.get("model") or self._models.base

        def write(sequences: list[Sequence], texts: list[bytes]) -> None:
            sequence, text = sequences[0], texts[0].decode()
            content = [{"annotations": [], "text": text, "type": "output_text"}]
            message = {"id": "msg_0", "content": content, "role": "assistant", "type": "message"}
            usage = {
                "input_tokens": sequence.prompt,
                "input_tokens_details": {"cached_tokens": max(0, sequence.cached)},
                "output_tokens": sequence.produced,
                "total_tokens": sequence.prompt + sequence.produced,
            }
            status = "completed" if sequence.reason == "stop" else "incomplete"
            answer = {"id": "resp_0", "object": "response", "model": model, "status": status}
            exchange.respond(200, encode({**answer, "output": [message], "usage": usage}))

        self._collect(exchange, [prompt], body, limit, write)

    def _messages(self, exchange: Exchange, body: dict[str, Any], fault: Fault | None) -> None:
        prompt = chat_prompt({"messages": anthropic_messages(body), "tools": body.get("tools")})
        limit = number(body, "max_tokens", None, 1)
        model = body.get("model") or self._models.base

        def write(sequences: list[Sequence], texts: list[bytes]) -> None:
            sequence = sequences[0]
            usage = {
                "input_tokens": sequence.prompt,
                "output_tokens": sequence.produced,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": max(0, sequence.cached),
            }
            stop = "max_tokens" if sequence.reason == "length" else "end_turn"
            content = [{"type": "text", "text": texts[0].decode()}]
            answer = {"id": "msg_0", "type": "message", "role": "assistant", "content": content}
            exchange.respond(
                200, encode({**answer, "model": model, "stop_reason": stop, "usage": usage})
            )

        self._collect(exchange, [prompt], body, limit, write)
