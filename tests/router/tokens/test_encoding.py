"""Pieces with a memory make the ids that the library makes of the whole text."""

from __future__ import annotations

import array
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.router.tokens import folder
from warmlane.router.encoding import Encoder
from warmlane.router.token_jobs import TEXTS
from warmlane.router.tokenizer_local import HfBackend

MAKERS = [folder.byte_level, folder.with_bos, folder.sentence_piece, folder.stripping]
PIECES = st.sampled_from(
    [
        *folder.SPECIALS,
        "<mask>",
        "<|im",
        "_start|>",
        " ",
        "\n",
        "  two",
        "user\n",
        "Hello",
        "né",
        "é",
    ]
)
_made: dict[str, tuple[Tokenizer, Encoder]] = {}


def pair(maker: Callable[[], Tokenizer]) -> tuple[Tokenizer, Encoder]:
    if maker.__name__ not in _made:
        tokenizer = maker()
        _made[maker.__name__] = tokenizer, Encoder(HfBackend(tokenizer), 1 << 20, TEXTS)
    return _made[maker.__name__]


@pytest.mark.parametrize("maker", MAKERS)
@given(pieces=st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=12), around=st.booleans())
@settings(max_examples=150, deadline=None)
def test_equal_to_the_library(
    maker: Callable[[], Tokenizer], pieces: list[str], around: bool
) -> None:
    tokenizer, encoder = pair(maker)
    text = "".join(pieces)
    truth = tokenizer.encode(text, add_special_tokens=around).ids
    for _ in range(2):  # the second time out of the memory
        assert array.array("I", encoder.encode(text, around=around)).tolist() == truth


def test_which_tokenizers_have_a_memory() -> None:
    assert pair(folder.byte_level)[1].remembers
    assert pair(folder.sentence_piece)[1].remembers
    assert not pair(folder.stripping)[1].remembers
    assert not Encoder(HfBackend(folder.byte_level()), 0, TEXTS).remembers


class Counting(HfBackend):
    encoded = 0

    def encode(self, texts: object) -> list[list[int]]:  # type: ignore[override]
        self.encoded += sum(map(len, texts))  # type: ignore[call-overload]
        return super().encode(texts)  # type: ignore[arg-type]


def test_a_repeated_turn_encodes_only_what_is_new() -> None:
    backend = Counting(folder.byte_level())
    encoder = Encoder(backend, 1 << 20, TEXTS)
    turn = "".join(f"<|im_start|>user\nmessage {n} {'word ' * 200}<|im_end|>\n" for n in range(20))
    encoder.encode(turn)
    backend.encoded = 0
    encoder.encode(turn + "<|im_start|>user\nnew<|im_end|>")
    assert backend.encoded < 40
    assert encoder.hits >= 40


def test_the_memory_is_bounded_and_keeps_what_is_used() -> None:
    encoder = Encoder(HfBackend(folder.byte_level()), 20_000, TEXTS)
    keep = "<|im_end|>keep this"
    for number in range(500):
        encoder.encode(f"<|im_end|>piece {number} {'x' * 100}")
        encoder.encode(keep)
        assert encoder.bytes_used <= 20_000
    before = encoder.misses
    encoder.encode(keep)
    assert encoder.misses == before
    encoder.forget()
    assert encoder.bytes_used == 0


def test_a_text_is_cut_where_nothing_behind_can_change_it() -> None:
    encoder = pair(folder.byte_level)[1]
    assert encoder.safe_start("<|im_start|>user\nHel") == "<|im_start|>"
    assert encoder.safe_start("no special token") == ""
