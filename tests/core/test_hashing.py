"""Block keys against the `xxhash` package and against the twin."""

from __future__ import annotations

import array
import pickle
import random
import re

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tests.core import twin_hashing as twin
from warmlane._core import hashing

SEED = 20260301


def keys_of(chain: hashing.KeyArray) -> list[int]:
    return list(memoryview(chain))


def test_a_million_inputs_hash_as_the_xxhash_package_does() -> None:
    rng = random.Random(SEED)
    pool = rng.randbytes(1 << 16)
    # Every length of the short path over and over, and lengths around every stripe and block edge.
    lengths = [*range(241)] * 4 + [*range(241, 1400), 2047, 2048, 2049, 4096, 4104, 9000]
    expected, got = xxhash.xxh3_64_intdigest, hashing.xxh3
    count = 0
    while count < 1_000_000:
        shift = rng.randrange(1 << 15)
        for length in lengths:
            data = pool[shift : shift + length]
            assert got(data) == expected(data), (SEED, shift, length)
            shift = (shift + 7) & 0x7FFF
        count += len(lengths)


def test_a_key_is_the_hash_of_the_parent_and_the_block_at_every_size() -> None:
    rng = random.Random(SEED)
    for size in range(1, hashing.MAX_BLOCK_BYTES + 1):
        for _ in range(40):
            root, data = rng.getrandbits(64) | 1, rng.randbytes(size * 3 + rng.randrange(size))
            assert keys_of(hashing.text_keys(root, data, size)) == twin.chain(root, data, size)


@pytest.mark.parametrize("block_size", [1, 7, 8, 16, 32, 56, 57, 58, 59, 64, 128, 256, 1024])
def test_token_keys_at_every_block_size(block_size: int) -> None:
    rng = random.Random(block_size)
    tokens = array.array("I", [rng.getrandbits(32) for _ in range(block_size * 5 + 3)])
    expected = twin.chain(99, tokens.tobytes(), block_size * 4)
    assert len(expected) == 5 + 3 // block_size
    assert keys_of(hashing.token_keys(99, tokens, block_size)) == expected
    assert keys_of(hashing.token_keys(99, tokens.tobytes(), block_size)) == expected
    assert keys_of(hashing.token_keys(99, memoryview(tokens).cast("B"), block_size)) == expected


@given(st.data())
def test_extending_a_chain_equals_hashing_the_whole(data: st.DataObject) -> None:
    block = data.draw(st.integers(1, 232))
    whole = data.draw(st.binary(max_size=1500))
    cut = data.draw(st.integers(0, len(whole)))
    root = data.draw(st.integers(1, 2**64 - 1))
    first = hashing.text_keys(root, whole[:cut], block)
    carry = whole[len(first) * block : cut]
    longer = hashing.text_keys_extend(first, root, carry, whole[cut:], block)
    assert keys_of(longer) == twin.chain(root, whole, block)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=200), st.integers(1, 70), st.data())
def test_extending_a_token_chain(tokens: list[int], block: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(tokens)))
    head, tail = array.array("I", tokens[:cut]), array.array("I", tokens[cut:])
    first = hashing.token_keys(3, head, block)
    carry = head[len(first) * block :]
    longer = hashing.token_keys_extend(first, 3, carry, tail, block)
    assert keys_of(longer) == twin.chain(3, array.array("I", tokens).tobytes(), block * 4)


def test_extend_refuses_a_carry_of_a_full_block() -> None:
    none = hashing.text_keys(1, b"", 16)
    with pytest.raises(ValueError, match="carry"):
        hashing.text_keys_extend(none, 1, b"x" * 16, b"", 16)
    assert len(hashing.text_keys_extend(none, 1, None, b"x" * 16, 16)) == 1


NAMES = st.text(max_size=12)


@given(NAMES, NAMES, NAMES)
def test_root_key_equals_the_twin(model: str, adapter: str, salt: str) -> None:
    assert hashing.root_key(model, adapter, salt) == twin.root_key(model, adapter, salt)


def test_roots_of_neighbouring_triples_differ() -> None:
    parts = ["", "a", "aa", "b", "ab", "\0", "\ud800", "é"]
    triples = [(m, a, s) for m in parts for a in parts for s in parts]
    assert len({hashing.root_key(*triple) for triple in triples}) == len(triples)
    assert hashing.root_key("m") == hashing.root_key("m", "", "")


@given(st.binary(max_size=9000))
def test_digest_equals_the_twin(data: bytes) -> None:
    assert hashing.digest(data) == twin.digest(data)


def test_digest_at_the_edges_of_a_piece() -> None:
    for size in (0, 1, 4095, 4096, 4097, 8191, 8192, 8193):
        data = bytes(i & 255 for i in range(size))
        assert hashing.digest(data) == twin.digest(data)


def test_key_array_is_a_read_only_sequence_and_buffer() -> None:
    keys = hashing.text_keys(5, bytes(range(200)) * 4, 100)
    values = twin.chain(5, bytes(range(200)) * 4, 100)
    assert len(keys) == keys.size == 8
    assert [keys[i] for i in range(8)] == values
    assert keys[-1] == values[-1]
    for index in (8, -9):
        with pytest.raises(IndexError):
            keys[index]
    view = memoryview(keys)
    assert (view.format, view.itemsize, view.shape, view.readonly) == ("Q", 8, (8,), True)
    with pytest.raises(TypeError):
        view[0] = 1
    assert keys.tobytes() == array.array("Q", values).tobytes()
    assert keys == hashing.text_keys(5, bytes(range(200)) * 4, 100)
    assert keys != hashing.text_keys(6, bytes(range(200)) * 4, 100)
    assert keys != values
    with pytest.raises(TypeError):
        hashing.KeyArray()
    with pytest.raises(TypeError):
        pickle.dumps(keys)


def test_head_shares_memory_and_outlives_its_parent() -> None:
    keys = hashing.text_keys(5, bytes(1000), 100)
    values = keys_of(keys)
    part = keys.head(4).head(3)
    del keys
    assert keys_of(part) == values[:3]
    assert keys_of(part.head(99)) == values[:3]
    assert keys_of(part.head(-1)) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hashing.text_keys(0, b""), "root is 0"),
        (lambda: hashing.text_keys(1, b"", 0), "block_bytes is 0"),
        (lambda: hashing.text_keys(1, b"", 233), "block_bytes is 233"),
        (lambda: hashing.token_keys(1, b"", 0), "block_size is 0"),
        (lambda: hashing.token_keys(1, b"abc", 16), "multiple of 4"),
    ],
)
def test_wrong_values_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    "bad", [array.array("f", [1.0]), array.array("Q", [1]), "text", [1, 2], None]
)
def test_wrong_buffers_are_refused(bad: object) -> None:
    with pytest.raises(TypeError):
        hashing.token_keys(1, bad, 16)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        hashing.text_keys(1, bad, 16)  # type: ignore[arg-type]


def test_a_failed_allocation_is_a_memory_error_and_nothing_else() -> None:
    whole = bytes(1000)
    first = hashing.text_keys(1, whole[:150], 100)
    for fails_after in (0, 1):
        hashing._fail_allocation_after(fails_after)
        with pytest.raises(MemoryError):
            hashing.text_keys_extend(first, 1, whole[100:150], whole[150:], 100)
    longer = hashing.text_keys_extend(first, 1, whole[100:150], whole[150:], 100)
    assert keys_of(longer) == twin.chain(1, whole, 100)


def test_zero_never_is_a_key() -> None:
    # 16 bytes hash to avalanche(16 + bswap(low) + high + fold(low, high)) with low and high masked
    # by these words of the default secret: high = 0 and bswap(low) = -16 give 0.
    masks = (0x1F67B3B7A4A44072 ^ 0x78E5C0CC4EE679CB, 0x2172FFCC7DD05A82 ^ 0x8E2443F7744608B8)
    parent = int.from_bytes((2**64 - 16).to_bytes(8, "little"), "big") ^ masks[0]
    block = masks[1].to_bytes(8, "little")
    assert xxhash.xxh3_64_intdigest(parent.to_bytes(8, "little") + block) == 0
    assert keys_of(hashing.text_keys(parent, block * 2, 8)) == twin.chain(parent, block * 2, 8)
    assert hashing.text_keys(parent, block, 8)[0] == twin.ZERO_BECOMES != 0
