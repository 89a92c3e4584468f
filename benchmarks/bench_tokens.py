"""Question: what do a request's token ids cost, and whom do they hold up?

Run: python -m benchmarks.bench_tokens [--quick] [--save]. Good: every bar ok. A byte-level BPE of
16,000 tokens is trained on the standard library's source when the benchmark starts; chats of 3 to
39 messages of prose and code grow by two messages a turn, in ChatML. CPU time of the process.

Ours is everything from the messages to the ids: template, memory of pieces, encoding of what is
new. The contender is the `tokenizers` library alone, given the text of the whole chat: its plain
`encode`, as one calls it; told beside it `encode_batch_fast`, which leaves the offsets out.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.bars import MAX_SPREAD, Bench, spread
from warmlane.router.encoding import Backend, Encoder
from warmlane.router.templates import Chat, ChatTemplate
from warmlane.router.token_jobs import TEXTS, Job
from warmlane.router.tokenizer_fast import faster
from warmlane.router.tokenizer_local import HfBackend, LocalTokenizer

CHATML = (
    "{%- for m in messages -%}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MESSAGES = 39
PROMPT_BYTES = 65_536


def sources() -> str:
    """Source code and its prose."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = ("argparse", "ast", "datetime", "decimal", "inspect", "pathlib", "pydoc", "tarfile")
    found = [folder / f"{name}.py" for name in (*names, "_pydecimal", "typing", "zipfile")]
    return "".join(path.read_text(encoding="utf-8") for path in found if path.exists())


def trained(text: str, folder: Path) -> tuple[Path, Tokenizer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in SPECIALS])
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return file, Tokenizer.from_file(str(file))


def chats(text: str, count: int, seed: int) -> list[list[dict[str, Any]]]:
    """Whole conversations: turns are their beginnings of odd length."""
    rnd, made = random.Random(seed), []
    for _ in range(count):
        messages = []
        for number in range(MESSAGES):
            size = rnd.randrange(200, 1_500) if number % 2 else rnd.randrange(300, 3_000)
            at = rnd.randrange(len(text) - size)
            role = "system" if number == 0 else ("user", "assistant")[number % 2 == 0]
            messages.append({"role": role, "content": text[at : at + size]})
        made.append(messages)
    return made


def local(backend: Backend, max_bytes: int) -> LocalTokenizer:
    template = ChatTemplate({"default": CHATML}, {})
    return LocalTokenizer(Encoder(backend, max_bytes, TEXTS), template)


def job(messages: list[dict[str, Any]]) -> Job:
    return Job(features=frozenset({"chat"}), chat=Chat(messages=messages))


def repeated_turns(
    bench: Bench, name: str, backend: Backend, truth: Tokenizer, text: str, rounds: int
) -> None:
    """Every turn but the first of growing chats, against the whole text by the library alone."""
    template = ChatTemplate({"default": CHATML}, {})
    ratios, ours_ms, full_ms, quick_ms = [], [], [], []
    for attempt in range(2 * rounds):
        talks, tokenizer = chats(text, 6, attempt), local(backend, 64 << 20)
        spent = [0.0, 0.0, 0.0]
        for messages in talks:
            tokenizer.ids(job(messages[:1]), "string")
        # Turn by turn through all chats, as a router meets them: the words that the library
        # remembers for itself are then those of many chats.
        for end in range(3, MESSAGES + 1, 4):
            for messages in talks:
                tokenizer.ids(job(messages[: end - 2]), "string")  # the turn before
                began = time.process_time()
                ids = tokenizer.ids(job(messages[:end]), "string")[0]
                spent[0] += time.process_time() - began
                whole, _ = template.render(Chat(messages=messages[:end]), "string")
                began = time.process_time()
                expected = truth.encode(whole, add_special_tokens=False).ids
                spent[1] += time.process_time() - began
                assert len(ids) == 4 * len(expected), "other ids than the whole text's"
                began = time.process_time()
                truth.encode_batch_fast([whole], add_special_tokens=False)
                spent[2] += time.process_time() - began
        turns = len(talks) * len(range(3, MESSAGES + 1, 4))
        ratios.append(spent[1] / spent[0])
        for samples, each in zip((ours_ms, full_ms, quick_ms), spent, strict=True):
            samples.append(each / turns * 1e3)
        if len(ratios) >= rounds and spread(ratios[-rounds:]) <= MAX_SPREAD:
            break
    bench.tell(f"tokens_{name}_turn", median(ours_ms[-rounds:]), "ms")
    bench.tell(f"tokens_{name}_turn_encoded_whole", median(full_ms[-rounds:]), "ms")
    bench.tell(f"tokens_{name}_turn_encoded_whole_fast", median(quick_ms[-rounds:]), "ms")
    last = ratios[-rounds:]
    bench.bar(f"tokens_{name}_repeated_turn", None, "x", 8, "more", samples=last, scaled=False)


def first_prompts(bench: Bench, name: str, backend: Backend, text: str, rounds: int) -> None:
    """64 KB that nobody has seen."""
    rnd, samples = random.Random(9), []
    for _ in range(rounds):
        at = rnd.randrange(len(text) - PROMPT_BYTES)
        prompt = text[at : at + PROMPT_BYTES]
        began = time.process_time()
        backend.encode([prompt])
        samples.append((time.process_time() - began) * 1e3)
    bench.tell(f"tokens_{name}_first_64_kb", median(samples), "ms")


async def held_up(backend: Backend, text: str, seconds: float) -> list[float]:
    """Milliseconds by which a loop's timers are late while a worker encodes 64 KB prompts."""
    loop, late, over = asyncio.get_running_loop(), [], False
    with ThreadPoolExecutor(1) as workers:

        def encode() -> None:
            at = 0
            while not over:
                at = (at + 7_919) % (len(text) - PROMPT_BYTES)
                backend.encode([text[at : at + PROMPT_BYTES]])

        work = loop.run_in_executor(workers, encode)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            late.append((time.monotonic() - began - 0.001) * 1e3)
        over = True
        await work
    return late


def main() -> int:
    bench = Bench("tokens", (__doc__ or "").partition("\n")[0].removeprefix("Question: "))
    rounds = 4 if bench.args.quick else 6
    text = sources()
    with tempfile.TemporaryDirectory() as folder:
        file, truth = trained(text, Path(folder))
        plain = HfBackend(Tokenizer.from_file(str(file)))
        backends: dict[str, Backend] = {"tokenizers": plain}
        fast = faster(file, plain)
        if fast is not plain:
            backends["fastokens"] = fast
        for name, backend in backends.items():
            repeated_turns(bench, name, backend, truth, text, rounds)
            first_prompts(bench, name, backend, text, 4 * rounds)
            late = asyncio.run(held_up(backend, text, 1.0))
            bench.tell(f"tokens_{name}_loop_late_median", median(late), "ms")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
