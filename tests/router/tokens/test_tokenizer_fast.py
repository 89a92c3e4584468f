"""The fast library is used where it made the same ids for a whole corpus, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.router.tokens import folder
from warmlane.router.tokenizer_fast import FastBackend, corpus, faster, unequal
from warmlane.router.tokenizer_local import HfBackend


def made(path: Path, tokenizer: Tokenizer) -> tuple[Path, HfBackend]:
    file = folder.save(path, tokenizer) / "tokenizer.json"
    return file, HfBackend(Tokenizer.from_file(str(file)))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[FastBackend, HfBackend]:
    file, truth = made(tmp_path_factory.mktemp("model"), folder.byte_level())
    found = faster(file, truth)
    assert isinstance(found, FastBackend), "the library is among the test's packages"
    return found, truth


@pytest.mark.parametrize("kind", [folder.byte_level, folder.with_bos, folder.stripping])
def test_proven_and_used(
    kind: Callable[[], Tokenizer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, truth = made(tmp_path, kind())
    with caplog.at_level(logging.INFO, "warmlane.tokenize"):
        found = faster(file, truth)
    assert isinstance(found, FastBackend)
    assert "event=fast_tokenizer" in caplog.text and "state=on" in caplog.text
    assert found.around() == truth.around() and found.cutters() == truth.cutters()


def test_what_it_cannot_read_is_left_to_the_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, truth = made(tmp_path, folder.sentence_piece())
    assert faster(file, truth) is truth
    assert "state=off" in caplog.text and "fastokens cannot read it" in caplog.text


def test_another_tokenizer_is_found_out(
    pair: tuple[FastBackend, HfBackend], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, _ = made(tmp_path, folder.byte_level(280))
    assert faster(file, pair[1]) is pair[1]
    assert "has other ids" in caplog.text


@pytest.mark.parametrize("mark", ["\u05d0", "\U0001f469", "\r\n\r\n", "12345678901", "<|im_end|>"])
def test_the_corpus_sees_a_difference_in_one_place(
    pair: tuple[FastBackend, HfBackend], mark: str
) -> None:
    fast, truth = pair

    class Wrong(FastBackend):
        def encode(self, texts: Sequence[str]) -> list[list[int]]:
            return [
                [*ids, 0] if mark in text else ids
                for text, ids in zip(texts, fast.encode(texts), strict=True)
            ]

    wrong = Wrong.__new__(Wrong)
    wrong._truth = truth
    assert unequal(wrong, truth) and not unequal(fast, truth)


def test_the_corpus_is_bounded() -> None:
    texts = [text for _, part in corpus(["<s>"] * 300) for text in part]
    assert 200_000 < sum(map(len, texts)) < 3_000_000


@given(st.text(max_size=200))
def test_any_text(pair: tuple[FastBackend, HfBackend], text: str) -> None:
    fast, truth = pair
    assert fast.encode([text, text + "<|im_end|>"]) == truth.encode([text, text + "<|im_end|>"])
