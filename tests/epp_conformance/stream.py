"""One stream of the plain picker: messages in, replies out, no network."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from warmlane.envoy.proto.messages import ProcessingResponse

if TYPE_CHECKING:
    from tests.epp_conformance.picker import Picker

DEST = "x-gateway-destination-endpoint"
SUBSET = "x-gateway-destination-endpoint-subset"
FULL_DUPLEX, NONE, STREAMED = 4, 0, 1
PIECE = 60_000
PATHS = {
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
    "/v1/embeddings",
}
OWNED = (
    *("x-gateway-destination-endpoint-subset", "x-gateway-destination-endpoint-served"),
    *("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"),
    *("x-llm-d-inference-objective", "x-gateway-inference-objective"),
    *("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"),
    *("x-llm-d-slo-ttft-ms", "x-llm-d-request-dropped-reason"),
)


class Refused(Exception):
    def __init__(self, status: int, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.status, self.text, self.reason = status, text, reason


class PickerStream:
    def __init__(self, picker: Picker) -> None:
        self.picker = picker
        self.headers: dict[str, str] = {}
        self.subset: Any = None
        self.body = bytearray()
        self.answer = bytearray()
        self.mode = FULL_DUPLEX
        self.unwaited = False
        self.headed = False
        self.asked = ""
        self.chosen = ""
        self.refused = self.finished = self.hangs_up = False
        self.kind = ""
        self.served: str | None = None
        self.sheddable = False
        self.cut = asyncio.Event()

    def flawed(self, name: str) -> bool:
        return name in self.picker.flaws

    def receive(self, message: Any) -> list[Any]:
        kind = message.WhichOneof("request")
        if message.observability_mode and not self.flawed("answers-observer"):
            return []
        if self.refused:
            return []
        try:
            return list(getattr(self, f"on_{kind}")(message)) if kind else []
        except Refused as refused:
            self.refused = True
            self.finished = True
            replies = [self.immediate(refused)]
            if self.flawed("talks-on"):
                replies.append(ProcessingResponse(request_headers={}))
            if self.flawed("dies-after-refusal"):
                self.picker.poisoned = True
            if self.flawed("grpc-errors"):
                self.hangs_up = True
                return []
            return replies

    # The request

    def on_request_headers(self, message: Any) -> Any:
        if message.HasField("protocol_config"):
            self.mode = message.protocol_config.request_body_mode
            self.unwaited = message.protocol_config.send_body_without_waiting_for_header_response
        for header in message.request_headers.headers.headers:
            text = header.raw_value.decode() or ("" if self.flawed("raw-only") else header.value)
            self.headers[header.key] = text
        space = message.metadata_context.filter_metadata
        for name in ["envoy.lb.subset_hint", *(["x"] if self.flawed("any-namespace") else [])]:
            if name in space and SUBSET in space[name].fields:
                value = space[name].fields[SUBSET]
                self.subset = (
                    value.string_value
                    if value.HasField("string_value")
                    else [item.string_value for item in value.list_value.values]
                )
        if message.request_headers.end_of_stream:
            if self.flawed("get-hangs"):
                return
            if self.flawed("get-ignores-subset"):
                self.subset = None
            self.pick("", "")
            yield self.routed("request_headers")
        elif self.mode in (NONE, STREAMED):
            if self.flawed("waits-for-body"):
                return
            self.parser()
            self.pick("", "")
            yield self.routed("request_headers")
        elif self.mode != FULL_DUPLEX:
            yield ProcessingResponse(request_headers={})
        elif self.flawed("early"):
            self.pick("", "")
            self.headed = True
            yield self.routed("request_headers")

    def on_request_body(self, message: Any) -> Any:
        part = message.request_body
        if self.mode == STREAMED:
            yield self.plain_body(part)
            return
        if self.flawed("last-chunk-only"):
            self.body.clear()
        self.body += part.body
        dropped = self.flawed("drops-empty-end") and not part.body and self.body
        if part.end_of_stream and not dropped:
            yield from self.decide(ended=True)

    def on_request_trailers(self, message: Any) -> Any:
        if self.flawed("no-trailers-answer"):
            return
        yield from self.decide(ended=self.flawed("ends-before-trailers"))
        yield ProcessingResponse(request_trailers={})

    def decide_early(self) -> list[Any]:
        self.pick("", "")
        return [self.routed("request_headers")]

    def decide(self, ended: bool) -> Any:
        body = self.parse()
        sent = bytes(self.body)
        model = str((body or {}).get("model", ""))
        target = self.target(model)
        self.asked = model
        if body is not None and target != model:
            sent = json.dumps(body | {"model": target}).encode()
        if body is not None and self.flawed("reserialise"):
            sent = json.dumps(body, sort_keys=True).encode()
        if self.flawed("truncate"):
            sent = sent[:200_000]
        prompt = json.dumps((body or {}).get("messages", ""))
        self.pick(target, prompt)
        length = self.body if self.flawed("stale-length") else sent
        if self.mode != FULL_DUPLEX and not self.flawed("streamed-everywhere"):
            reply = self.routed("request_body", len(length))
            if sent != bytes(self.body):
                reply.request_body.response.body_mutation.body = sent
            yield reply
            return
        if self.flawed("body-first"):
            yield from self.pieces("request", sent, ended)
        if not self.headed and self.mode == FULL_DUPLEX:
            yield self.routed("request_headers", len(length))
        yield from self.pieces("request", sent, ended)

    def parse(self) -> dict[str, Any] | None:
        """The body as an object; None where it is passed through. Raises Refused."""
        if not self.parser():
            return None
        length = self.headers.get("content-length")
        if self.flawed("needs-length") and length is None:
            raise Refused(400, "length required")
        if not self.body and self.flawed("accepts-empty"):
            return {"model": self.picker.model}
        try:
            body = json.loads(bytes(self.body))
        except ValueError as error:
            if self.flawed("accepts-junk"):
                return None
            raise Refused(400, "not JSON") from error
        if not isinstance(body, dict):
            if self.flawed("accepts-arrays"):
                return None
            raise Refused(400, "not an object")
        return self.with_model(body)

    def parser(self) -> bool:
        """Does this path's body have to be read? Raises Refused where no parser knows it."""
        path = self.headers.get(":path", "")
        path = path if self.flawed("exact-path") else path.partition("?")[0]
        if path == "/v1/audio/transcriptions" and not self.flawed("json-only"):
            return False
        known = path in PATHS or self.flawed("any-path")
        if not known or (path != "/v1/chat/completions" and self.flawed("chat-only")):
            raise Refused(400, "no parser for this path")
        return True

    def with_model(self, body: dict[str, Any]) -> dict[str, Any]:
        known = {self.picker.model, self.picker.adapter, *(self.picker.alias or ())[:1]}
        known -= {self.picker.adapter} if self.flawed("no-adapter") else set()
        model = body.get("model")
        if model is None and not self.flawed("model-optional"):
            raise Refused(400, "no model")
        if model is not None and not isinstance(model, str) and not self.flawed("any-model-type"):
            raise Refused(400, "model is not a string")
        if isinstance(model, str) and model not in known and not self.flawed("any-model"):
            raise Refused(404, "no such model")
        return body

    def target(self, model: str) -> str:
        for name in ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"):
            if self.headers.get(name) and not self.flawed("no-rewrite"):
                return self.headers[name]
        alias = self.picker.alias
        if alias is not None and model == alias[0] and not self.flawed("no-alias"):
            return alias[1 + self.picker.turn % (1 if self.flawed("one-arm") else len(alias) - 1)]
        return model

    def pick(self, model: str, prompt: str) -> None:
        picker = self.picker
        if self.headers.get("prefer") == "if-available" and not self.flawed("never-412"):
            raise Refused(412, "nothing is cached")
        allowed = self.allowed(picker.ready())
        if not allowed:
            raise Refused(503, "no endpoint", "rejected-no-endpoints")
        objective = self.headers.get("x-llm-d-inference-objective") or self.headers.get(
            "x-gateway-inference-objective"
        )
        if objective and objective != "sheddable" and self.flawed("strict-objective"):
            raise Refused(400, "no such objective")
        self.sheddable = objective == "sheddable"
        sheds = self.sheddable and not self.flawed("never-sheds")
        if picker.saturated() and (sheds or self.flawed("sheds-all")):
            raise Refused(429, "saturated", "rejected-saturated")
        if picker.saturated() and not self.flawed("never-evicts"):
            for other in picker.streams:
                if other.sheddable:
                    other.cut.set()
        token = self.headers.get("x-session-token", "")
        if token in allowed and not self.flawed("no-token"):
            self.chosen = token
        else:
            self.chosen = picker.choose(allowed, model, prompt)

    def allowed(self, ready: list[str]) -> list[str]:
        wanted: Any = self.subset
        selected = self.headers.get("test-epp-endpoint-selection")
        outranked = self.flawed("subset-outranks") and wanted is not None
        if selected and not outranked and not self.flawed("no-test-headers"):
            names = [item.strip() for item in selected.split(",")]
            return [e for e in ready if e in names or e.rpartition(":")[0] in names]
        if wanted is None or self.flawed("ignores-subset"):
            return ready
        if isinstance(wanted, str):
            if self.flawed("list-only"):
                return ready
            wanted = [item.strip() for item in wanted.split(",")]
        if self.flawed("refuses-partial") and not set(wanted) <= set(ready):
            return []
        if self.flawed("ip-only"):
            hosts = {item.rpartition(":")[0] for item in wanted}
            return [item for item in ready if item.rpartition(":")[0] in hosts]
        found = [item for item in ready if item in wanted]
        return ready if not found and self.flawed("falls-back") else found

    # The response

    def on_response_headers(self, message: Any) -> Any:
        fields = message.metadata_context.filter_metadata["envoy.lb"].fields
        if "x-gateway-destination-endpoint-served" in fields:
            self.served = fields["x-gateway-destination-endpoint-served"].string_value
            if self.flawed("strict-served") and ":" not in self.served:
                raise Refused(500, "bad endpoint")
        status = {h.key: h.raw_value for h in message.response_headers.headers.headers}
        self.kind = status.get("content-type", b"").decode()
        if self.flawed("silent-response"):
            return
        reply = ProcessingResponse(response_headers={})
        mutation = reply.response_headers.response.header_mutation
        if not self.flawed("no-token"):
            self.set(mutation, "x-session-token", self.chosen)
        if self.flawed("hides-errors"):
            self.set(mutation, ":status", "200")
        if self.served and not self.flawed("no-test-headers"):
            self.set(mutation, "x-conformance-test-served-endpoint", self.served)
        yield reply

    def on_response_body(self, message: Any) -> Any:
        part = message.response_body
        if "event-stream" in self.kind and not self.flawed("holds-events"):
            data = part.body
            if self.flawed("text-events"):
                data = data.decode("utf-8", "replace").encode()
            yield from self.pieces("response", data, part.end_of_stream)
            return
        self.answer += part.body
        if not part.end_of_stream:
            return
        if self.flawed("drops-empty-end-back") and not part.body and self.answer:
            return
        if self.flawed("stalls-on-no-body") and not self.answer:
            return
        *most, last = self.pieces("response", self.renamed(), True)
        yield from most
        if not self.flawed("no-cost"):
            fields = last.dynamic_metadata.fields["envoy.lb"].struct_value.fields
            fields["x-gateway-inference-request-cost"].number_value = 17
        yield last

    def renamed(self) -> bytes:
        data = bytes(self.answer)
        try:
            body = json.loads(data)
        except ValueError as error:
            if self.flawed("strict-response"):
                raise Refused(502, "not JSON") from error
            return data
        if self.flawed("reserialise-back"):
            return json.dumps(body, sort_keys=True).encode()
        alias = self.picker.alias
        if alias and self.asked == alias[0] and not self.flawed("no-rename"):
            return json.dumps(body | {"model": self.asked}).encode()
        return data

    def on_response_trailers(self, message: Any) -> Any:
        if self.flawed("no-response-trailers"):
            return
        if self.answer:
            yield from self.pieces("response", self.renamed(), False)
        yield ProcessingResponse(response_trailers={})

    # Replies

    def evicted(self) -> Any:
        self.finished = True
        return self.immediate(Refused(429, "evicted", "evicted-priority"))

    def set(self, mutation: Any, name: str, value: str) -> None:
        option = mutation.set_headers.add()
        option.header.key = name
        if self.flawed("text-headers"):
            option.header.value = value
        else:
            option.header.raw_value = value.encode()
        if self.flawed("appends"):
            option.append.value = True

    def route_reply(self, endpoint: str) -> bytes:
        self.chosen = endpoint
        return bytes(self.routed("request_headers").SerializeToString())

    def routed(self, kind: str, length: int | None = None) -> Any:
        value = self.chosen
        if self.flawed("list") and len(self.picker.endpoints) > 1:
            value = ",".join(self.picker.endpoints)
        if self.flawed("stranger"):
            value = "203.0.113.1:1"
        if self.flawed("url"):
            value = f"http://{value}"
        reply = ProcessingResponse()
        common = getattr(reply, kind).response
        common.clear_route_cache = not self.flawed("keeps-route")
        if not self.flawed("no-header"):
            self.set(common.header_mutation, DEST, value)
        if length is not None and not self.flawed("no-length-header"):
            self.set(common.header_mutation, "content-length", str(length))
        if not self.flawed("no-strip"):
            common.header_mutation.remove_headers.extend(OWNED)
        if self.flawed("breaks-trace"):
            common.header_mutation.remove_headers.append("traceparent")
        if self.flawed("drops-headers"):
            common.header_mutation.remove_headers.append("authorization")
        told = "10.9.9.9:1" if self.flawed("other-metadata") else value
        if self.flawed("pool-metadata") and self.subset is not None:
            told = self.picker.endpoints[-1] + ",10.9.9.9:1"
        fields = reply.dynamic_metadata.fields
        if not self.flawed("no-metadata"):
            fields["envoy.lb"].struct_value.fields[DEST].string_value = told
        if not self.flawed("no-scores"):
            scores = fields["envoy.lb"].struct_value.fields[f"{DEST}-scores"]
            scores.struct_value.fields[value].number_value = 0.5
        return reply

    def plain_body(self, part: Any) -> Any:
        reply = ProcessingResponse(request_body={})
        if self.flawed("streamed-everywhere"):
            streamed = reply.request_body.response.body_mutation.streamed_response
            streamed.body, streamed.end_of_stream = part.body, part.end_of_stream
        return reply

    def pieces(self, side: str, data: bytes, end: bool) -> Any:
        size = len(data) + 1 if self.flawed("big-pieces") else PIECE
        parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
        for number, part in enumerate(parts):
            reply = ProcessingResponse()
            mutation = getattr(reply, f"{side}_body").response.body_mutation
            if self.flawed("plain-bodies"):
                mutation.body = part
            else:
                mutation.streamed_response.body = part
                last = number == len(parts) - 1
                early = self.flawed("early-end")
                never = self.flawed("never-end")
                mutation.streamed_response.end_of_stream = (end and last and not never) or early
            yield reply

    def immediate(self, refused: Refused) -> Any:
        reply = ProcessingResponse()
        part = reply.immediate_response
        part.status.code = 500 if self.flawed("always-500") else refused.status
        if not self.flawed("silent"):
            error = {
                "message": refused.text,
                "type": "error",
                "param": None,
                "code": refused.status,
            }
            part.body = json.dumps({"error": error}).encode()
        if self.flawed("plain-text"):
            part.body = refused.text.encode()
        self.set(part.headers, "content-type", "application/json")
        if refused.reason and not self.flawed("no-reason"):
            self.set(part.headers, "x-llm-d-request-dropped-reason", refused.reason)
        if refused.status in (429, 503) and not self.flawed("no-retry-after"):
            self.set(part.headers, "retry-after", "1")
        if self.flawed("refuses-with-endpoint"):
            space = reply.dynamic_metadata.fields["envoy.lb"].struct_value
            space.fields[DEST].string_value = self.picker.endpoints[0]
        return reply
