"""Model names: forced by a header, aliased by the picker, and given back in the response."""

from __future__ import annotations

import json

from warmlane.envoy.conformance.case import Case, Probe, case
from warmlane.envoy.conformance.exchange import Exchange, Response

REWRITE = "llm-d router, model rewrite"
HERMETIC = "llm-d router, hermetic suite"
SPLIT_TRIES = 48  # a share of 1 in 8 is missed once in 600 runs


def _must_be_rewritten(probe: Probe, exchange: Exchange, sent: bytes, model: str) -> None:
    """The upstream body is the sent one but for its model, and content-length fits."""
    came = bytes(exchange.up.body)
    try:
        body = json.loads(came)
    except ValueError:
        probe.fail("a JSON body upstream", repr(came[:80]))
    wanted = json.loads(sent) | {"model": model}
    probe.expect(body == wanted, f"the same body with model {model!r}", came[:200])
    for told in exchange.upstream("content-length"):
        probe.expect(
            told == str(len(came)).encode(), f"content-length {len(came)}", told.decode("latin-1")
        )


def _target(probe: Probe, exchange: Exchange) -> str:
    """The model that goes upstream for the alias; it must be one of its targets."""
    try:
        model = json.loads(bytes(exchange.up.body))["model"]
    except (ValueError, KeyError, TypeError):
        model = bytes(exchange.up.body[:80])
    targets = probe.target.aliased
    probe.expect(model in targets, "model " + " or ".join(targets), model)
    return str(model)


def _other_model(probe: Probe) -> str:
    """A name that the picker may know, so that it can also be one that checks names."""
    known = (*probe.target.aliased, probe.target.adapter)
    others = [name for name in known if name and name != probe.target.model]
    return others[0] if others else "conformance-rewritten-model"


def _header(name: str, header: str) -> Case:
    @case(
        f"model.{name}", REWRITE, f"{header} forces the target model", feature="rewrite", body=True
    )
    async def run(probe: Probe) -> None:
        body = probe.chat("Rewrite me.")
        model = _other_model(probe)
        exchange = await probe.routed(chunks=(body,), headers=((header, model),))
        _must_be_rewritten(probe, exchange, body, model)

    return run


@case("model.alias", REWRITE, "an alias becomes one of its targets", option="alias", body=True)
async def alias(probe: Probe) -> None:
    body = probe.chat("By another name.", model=probe.target.alias)
    exchange = await probe.routed(chunks=(body,))
    _must_be_rewritten(probe, exchange, body, _target(probe, exchange))


@case("model.split", HERMETIC, "a split reaches each of its targets", option="alias", body=True)
async def split(probe: Probe) -> None:
    if len(probe.target.aliased) < 2:
        probe.skip("--alias names one target")
    seen: set[str] = set()
    for number in range(SPLIT_TRIES):
        body = probe.chat(f"Split {number}", model=probe.target.alias)
        exchange = await probe.routed(chunks=(body,))
        seen.add(_target(probe, exchange))
        await exchange.stream.reset()
    probe.expect(seen == set(probe.target.aliased), ", ".join(probe.target.aliased), sorted(seen))


@case(
    "model.response",
    REWRITE,
    "the response names the model that the client asked for",
    feature="rename",
    option="alias",
    body=True,
    phase="full",
)
async def response(probe: Probe) -> None:
    name = probe.target.alias
    exchange = await probe.routed(chunks=(probe.chat("By another name.", model=name),))
    if exchange.end is not None:
        probe.skip("the picker ends the stream after the request phase")
    target = _target(probe, exchange)
    answer = json.dumps({"id": "1", "model": target, "choices": []}).encode()
    await exchange.respond(Response(chunks=(answer,)))
    probe.must_follow(exchange)
    came = json.loads(bytes(exchange.down.body))
    probe.expect(came.get("model") == name, f"model {name!r}", came.get("model"))


@case(
    "model.adapter", "vLLM, LoRA", "an adapter's name is a model name", option="adapter", body=True
)
async def adapter(probe: Probe) -> None:
    body = probe.chat("With an adapter.", model=probe.target.adapter)
    probe.must_forward(await probe.routed(chunks=(body,)), body)


CASES: tuple[Case, ...] = (
    _header("header", "x-llm-d-model-name-rewrite"),
    _header("header-old", "x-gateway-model-name-rewrite"),
    *(alias, split, response, adapter),
)
