"""What routers tell each other: one message, its limits, and the records of a journal. Floor 3.

A message is MessagePack of fixed fields, complete by itself: a lost one costs an interval of
freshness and nothing else, except the records of prefixes, which are told once. Numbers are checked
when they are read; a message that cannot be read is refused whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 16_777_216
TEXT_CHAIN, TOKEN_CHAIN, TEXT_CHARGE, TOKEN_CHARGE = range(4)

Amount = Annotated[float, Meta(ge=0, le=2.0**40)]
Amounts = Annotated[list[Amount], Meta(max_length=65_536)]


class PoolTold(msgspec.Struct, frozen=True, array_like=True):
    """One pool of the sender; columns by the sender's slot.

    addresses: "host:port" or "host:port#rank", "" for an empty slot. requests: open; running: of
    these past their first token; tokens: uncached prompt tokens of the others; kv_tokens: of all.
    placed: uncached tokens sent there since the sender knows the replica. rate, work: requests and
    tokens of work a second, of the pool. block_bytes, block_tokens: sizes of `journal`'s blocks.
    """

    name: str
    addresses: Annotated[list[str], Meta(max_length=65_536)]
    requests: Amounts
    running: Amounts
    tokens: Amounts
    kv_tokens: Amounts
    placed: Amounts
    rate: Amount
    work: Amount
    block_bytes: int
    block_tokens: int
    journal: bytes


class Message(msgspec.Struct, frozen=True, array_like=True):
    """All that one router says at one moment.

    sender: a name that no other process has. number: grows by one. every_s: when the next one is to
    be expected. leaving: this is the last one.
    """

    version: int
    sender: Annotated[str, Meta(min_length=1, max_length=64)]
    number: Annotated[int, Meta(ge=0)]
    every_s: Annotated[float, Meta(gt=0, le=3600)]
    leaving: bool
    pools: Annotated[list[PoolTold], Meta(max_length=4096)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def pack(message: Message) -> bytes:
    """The bytes of a message."""
    return _encoder.encode(message)


def unpack(data: bytes) -> Message:
    """The message in `data`. ValueError: not one of ours, or out of its limits."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"{len(data)} bytes")
    message = _decoder.decode(data)  # msgspec's errors are ValueErrors
    if message.version != VERSION:
        raise ValueError(f"version {message.version}")
    for pool in message.pools:
        columns = (pool.requests, pool.running, pool.tokens, pool.kv_tokens, pool.placed)
        if any(len(column) != len(pool.addresses) for column in columns):
            raise ValueError("columns of different length")
        if len(pool.journal) % 8:
            raise ValueError("a journal of broken words")
    return message


def records(journal: bytes) -> Iterator[tuple[int, int, int, memoryview[int]]]:
    """(slot, what, count, keys) of each record (src_ext/journal.pxd). ValueError: cut off."""
    words = memoryview(journal).cast("Q")
    at = 0
    while at < len(words):
        head = words[at]
        slot, what, count = head & 0xFFFF, head >> 16 & 0xFFFF, head >> 32
        at += 1
        size = 0 if what >= TEXT_CHARGE else count
        if what > TOKEN_CHARGE or at + size > len(words):
            raise ValueError("a journal that ends early")
        yield slot, what, count, words[at : at + size]
        at += size
