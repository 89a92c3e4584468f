"""The compiled chunk reader against its twin: any bytes, any cuts, the same answer to each read."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import twin_chunks
from warmlane._core.chunks import BadChunk, ChunkReader

PIECES = (
    *(b"0", b"1", b"5", b"a", b"F", b"000000000000005", b"fffffffffffffff", b"\r\n", b"\r", b"\n"),
    *(
        b";",
        b" ",
        b"\t",
        b"x=1",
        b"hello",
        b"X-T: v",
        b": ",
        b"\x00",
        b"\x7f",
        b"\xe9",
        b"5\r\nhello",
    ),
    *(b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b"5;a=b\r\nhello\r\n", b"5 ;a\r\n", b"5 \r\n"),
)


def good(rng: random.Random) -> bytes:
    """A whole chunked body."""
    parts = []
    for _ in range(rng.randrange(5)):
        data = rng.randbytes(rng.choice((1, 2, 15, 16, 300)))
        extension = rng.choice((b"", b"", b";x", b" ;y=1", b'\t;"q"'))
        parts.append(b"%x%b\r\n%b\r\n" % (len(data), extension, data))
    trailer = rng.choice((b"", b"", b"A: b\r\n", b"A: b\r\nCd:\te\r\n"))
    return b"".join(parts) + b"0\r\n" + trailer + b"\r\n"


def told(reader: object, data: bytes) -> object:
    """All that one read tells, or that it is refused."""
    assert isinstance(reader, ChunkReader | twin_chunks.ChunkReader)
    try:
        payload = reader.feed(data)
    except (BadChunk, twin_chunks.BadChunk):
        return "refused"
    return payload, reader.done, reader.used, reader.aligned, reader.trailer


def assert_as_twin(data: bytes, cuts: list[int]) -> None:
    mine, twin = ChunkReader(), twin_chunks.ChunkReader()
    marks = sorted({0, len(data), *[cut % (len(data) + 1) for cut in cuts]})
    for start, end in pairwise(marks):
        found = told(mine, data[start:end])
        assert found == told(twin, data[start:end]), (data, cuts, start)
        if found == "refused" or mine.done:
            return


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.integers(0, 200), max_size=6))
def test_any_bytes(parts: list[bytes], cuts: list[int]) -> None:
    assert_as_twin(b"".join(parts), cuts)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 2000), max_size=8))
def test_whole_bodies(seed: int, cuts: list[int]) -> None:
    assert_as_twin(good(random.Random(seed)) + b"GET ", cuts)


@pytest.mark.parametrize("seed", range(20))
def test_byte_by_byte(seed: int) -> None:
    data = good(random.Random(seed))
    assert_as_twin(data, list(range(len(data))))


@pytest.mark.parametrize("size", [255, 256, 257, 4000])
def test_long_size_lines(size: int) -> None:
    """256 bytes with the line's end are the most, whatever the cuts."""
    line = b"5;" + b"x" * (size - 4) + b"\r\n"
    assert len(line) == size
    for cuts in ([], list(range(size)), [size - 1], [200]):
        assert_as_twin(line + b"hello\r\n0\r\n\r\n", cuts)
    reader = ChunkReader()
    if size > 256:
        with pytest.raises(BadChunk):
            reader.feed(line)
    else:
        assert reader.feed(line + b"hello\r\n") == b"hello"


def test_a_line_end_behind_blanks_is_refused_at_once() -> None:
    assert_as_twin(b"0f \r\n", [1, 4])


def test_trailers_are_bounded() -> None:
    reader = ChunkReader()
    reader.feed(b"0\r\n")
    with pytest.raises(BadChunk, match="too large"):
        for _ in range(100):
            reader.feed(b"X-A: " + b"y" * 200 + b"\r\n")
