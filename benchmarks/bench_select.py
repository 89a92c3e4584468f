"""Is Dynamo's rule rebuilt right, and what does its released service cost beside our decision?

    PYTHONPATH=. python -m benchmarks.bench_select [--quick] [--save]

The selection service of ai-dynamo-runtime (own venv, real ZMQ events of vLLM's form) and our core
under policy `dynamo` meet the same requests in the same state: after each choice ours follows
theirs. Requests come, finish their prefill and end in random order; families share prefixes. Good:
>= 95 % of the choices agree (one of the service's ties counts as agreement: its costs are equal
there, and it draws one by chance).

Cost: wall time of one `select` of a token list through its Python face, against ours from the same
token ids to the ticket under the default policy, all later events included. Good: a third or less.
Void where the wheel cannot be had.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq

from benchmarks.bars import Bench
from benchmarks.peers.contenders import Unavailable, package_venv
from warmlane._core.hashing import root_key, token_keys
from warmlane.router.config import Config, Index, PoolConfig
from warmlane.router.core import Router
from warmlane.router.lane import Prepared
from warmlane.router.prefix import PrefixKey
from warmlane.router.types import Kind, Outcome, ReplicaSpec, Request

PEER = "ai-dynamo-runtime"
DRIVER = Path(__file__).resolve().parent / "peers" / "dynamo_select.py"
BLOCK = 16
AGREE, FASTER = 0.95, 3.0
REQUESTS = 160


class Service:
    """The driver process and the workers' event sockets."""

    def __init__(self, python: Path, workers: int) -> None:
        self._process = subprocess.Popen(
            [str(python), str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._context = zmq.Context()
        self._sockets: list[Any] = []
        self._counts = [0] * workers
        for number in range(workers):
            socket = self._context.socket(zmq.PUB)
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            self._sockets.append(socket)
            if self.ask("worker", number, f"tcp://127.0.0.1:{port}") != "schedulable":
                raise Unavailable("the selection service takes no worker")
        time.sleep(1.0)  # its subscriptions are under way

    def ask(self, *what: Any) -> Any:
        """One command of `peers/dynamo_select.py`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable("the selection service ended")
        return json.loads(line)

    def store(self, worker: int, tokens: Sequence[int], keys: Sequence[int], first: int) -> None:
        """The worker's engine tells of the blocks from `first` on; returns when they are known."""
        parent = keys[first - 1] >> 1 if first else None
        hashes = [key >> 1 for key in keys[first:]]
        ids = list(tokens[first * BLOCK : len(keys) * BLOCK])
        event = ["BlockStored", hashes, parent, ids, BLOCK, None]
        batch = msgspec.msgpack.encode([time.time(), [event], 0])
        count = self._counts[worker].to_bytes(8, "big")
        self._counts[worker] += 1
        self._sockets[worker].send_multipart([b"", count, batch])
        if not self.ask("stored", worker, list(tokens), len(keys)):
            raise Unavailable("the selection service does not hear the events")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._context.destroy(linger=0)


class Ours:
    """Our core under a policy, with caches that are told and a clock that is put."""

    def __init__(self, workers: int, policy: str) -> None:
        replicas = [ReplicaSpec(url=f"http://127.0.0.1:{9 + n}") for n in range(workers)]
        pool = PoolConfig(name="p", models=["m"], replicas=replicas, policy=policy)
        index = Index(block_tokens=BLOCK, view="approximate", max_bytes=0)
        self.router = Router(Config(pools=[pool], index=index))
        self.lane = self.router.lanes["p"]
        self.open: dict[str, tuple[int, list[int]]] = {}
        self.held: list[set[int]] = [set() for _ in range(workers)]
        self._blocks = array("i", bytes(4 * workers))
        self.lane.view.blocks_of = self._look  # type: ignore[method-assign]
        probe = Request(kind=Kind.COMPLETIONS, model="m", prompt=b"")
        self.target = self.router.prepare(probe).target
        self.root = root_key("m")
        self.rule: Any = self.lane.decider.parts.scorers[0].scorer

    def _look(self, key: PrefixKey) -> array[int] | None:
        for slot, held in enumerate(self.held):
            count = 0
            while count < len(key.keys) and key.keys[count] in held:
                count += 1
            self._blocks[slot] = count
        return self._blocks if any(self._blocks) else None

    def prepared(self, tokens: array[int]) -> Prepared:
        """A request of token ids; its answer is expected to be one token."""
        keys = token_keys(self.root, tokens.tobytes(), BLOCK)
        request = Request(kind=Kind.COMPLETIONS, model="m", max_tokens=1, stream=True)
        key = PrefixKey(keys, "tokens", len(tokens), BLOCK, self.root)
        return Prepared(request, self.target, self.lane, key)


def agreement(service: Service, workers: int, count: int) -> tuple[float, int]:
    """(share of choices that agree, how many of them where the service had a tie to break)."""
    source, ours = random.Random(7), Ours(workers, "dynamo")
    ours.rule.stride = 1  # block by block, as the service
    families = [[source.randrange(50_000) for _ in range(20 * BLOCK)] for _ in range(6)]
    open_: list[tuple[str, int]] = []
    same = ties = 0
    for number in range(count):
        tail = [source.randrange(50_000) for _ in range(source.randrange(1, 60) * BLOCK)]
        tokens = array("I", source.choice(families) + tail)
        prepared = ours.prepared(tokens)
        keys = list(array("Q", prepared.key.keys.tobytes()))
        ours.rule.asks(keys)
        decision = ours.router.decide_prepared(prepared, float(number), source.getrandbits(64))
        mine, totals = decision.choices[0], list(ours.lane.decider.totals)
        name = f"request-{number}"
        theirs = service.ask("reserve", name, list(tokens))
        if mine == theirs:
            same += 1
        elif abs(totals[mine] - totals[theirs]) < 1e-9:
            same, ties = same + 1, ties + 1
        if mine != theirs:
            ours.router.moved(decision.ticket, theirs, float(number))
        open_.append((name, decision.ticket))
        ours.rule.began(theirs, keys)
        ours.open[name] = (theirs, keys)
        held = ours.held[theirs]
        first = next((at for at, key in enumerate(keys) if key not in held), len(keys))
        if first < len(keys):
            service.store(theirs, tokens, keys, first)
            held.update(keys)
        step(service, ours, open_, source, float(number))
    return same / count, ties


def step(
    service: Service, ours: Ours, open_: list[tuple[str, int]], source: random.Random, now: float
) -> None:
    """Some prefills are done, and some requests end."""
    for name, ticket in open_[-3:]:
        if source.random() < 0.4 and ours.router.first_token(ticket, now) >= 0:
            service.ask("prefilled", name)
    if len(open_) > 12:
        name, ticket = open_.pop(source.randrange(len(open_) - 6))
        if ours.router.first_token(ticket, now) >= 0:
            service.ask("prefilled", name)
        ours.router.close(ticket, Outcome(), now)
        service.ask("free", name)
        ours.rule.ended(*ours.open.pop(name))


def our_cost(workers: int, blocks: int, rounds: int) -> float:
    """Median seconds from token ids to the ticket and all events after it, default policy."""
    source, ours = random.Random(3), Ours(workers, "default")
    del ours.lane.view.blocks_of  # the real view again
    prompts = [
        array("I", [source.randrange(50_000) for _ in range(blocks * BLOCK)]) for _ in range(20)
    ]
    spent: list[float] = []
    for number in range(rounds):
        tokens, now = prompts[number % len(prompts)], float(number)
        start = time.perf_counter()
        decision = ours.router.decide_prepared(ours.prepared(tokens), now, number)
        ours.router.sent(decision.ticket, decision.choices[0], now)
        ours.router.first_token(decision.ticket, now)
        ours.router.close(decision.ticket, Outcome(), now)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def measure(bench: Bench, python: Path) -> None:
    """All bars."""
    rounds = 100 if bench.args.quick else 400
    service = Service(python, 4)
    try:
        bench.tell("tried_version", float(".".join(service.ask("version").split(".")[:2])), "")
        share, ties = agreement(service, 4, REQUESTS // 4 if bench.args.quick else REQUESTS)
    finally:
        service.close()
    bench.bar("choices_agree", share, "share", AGREE, "more", scaled=False)
    bench.tell("of_them_ties", ties, "choices")
    for workers, blocks in ((8, 64), (64, 1024)):
        source = random.Random(5)
        tokens = [source.randrange(50_000) for _ in range(blocks * BLOCK)]
        service = Service(python, workers)
        try:
            theirs = service.ask("time", tokens, rounds)
        finally:
            service.close()
        mine = our_cost(workers, blocks, rounds)
        name = f"{workers}x{blocks}"
        bench.tell(f"service_select_{name}", theirs * 1e6, "us")
        bench.tell(f"ours_{name}", mine * 1e6, "us")
        bench.bar(f"faster_{name}", theirs / mine, "x", FASTER, "more", scaled=False)


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("select", "is Dynamo's rule rebuilt right, and what does it cost?", argv)
    try:
        measure(bench, package_venv(PEER))
    except Unavailable as error:
        for name in ("choices_agree", "faster_8x64", "faster_64x1024"):
            bench.bar(name, None, "", 1.0, scaled=False, why_void=str(error))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
