"""The event intake against its twin, case by case, and under frames that nobody should send."""

from __future__ import annotations

import platform
import random
from array import array
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import twin_kv_events
from tests.core.event_streams import FORMS, HASHES, SIZE, Engine
from tests.core.radix_help import settle
from warmlane._core.hashing import root_key, token_keys
from warmlane._core.kv_events import (
    BROKEN,
    CLEARED,
    DONE,
    MORE,
    Intake,
    _fail_alloc_after,
    keep_freed_memory,
)
from warmlane._core.radix import RadixTree

pack = msgspec.msgpack.encode
TOKENS = list(range(100, 116))
KEYS = list(token_keys(root_key("m"), array("I", TOKENS), 4))


def intake(sources: int = 1, model: str = "m", **limits: int) -> Intake:
    made = Intake(RadixTree(0, 8), **limits)
    for replica in range(sources):
        made.open(replica, model)
    return made


def stored(hashes: list[Any], parent: Any, tokens: list[int], size: int = 4, **more: Any) -> Any:
    fields = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": size,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    }
    return {**fields, **more}


def removed(*hashes: Any, **more: Any) -> Any:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", **more}


def batch(*events: Any, rank: int | None = 0) -> bytes:
    return pack([1.0, list(events), rank])


def held(made: Intake, replica: int = 0, keys: list[int] | None = None) -> tuple[int, int, int]:
    """Leading blocks in gpu; gpu or cpu; anywhere."""
    columns = [array("i", [0] * 8) for _ in range(3)]
    made.tree.match(array("Q", KEYS if keys is None else keys), *columns)
    return columns[0][replica], columns[1][replica], columns[2][replica]


def counted(made: Intake, replica: int = 0) -> dict[str, int]:
    kept = {name: value for name, value in made.stats(replica).items() if value}
    return {name: value for name, value in kept.items() if name not in ("block_size", "rank")}


def test_blocks_get_the_keys_of_a_request_with_these_tokens() -> None:
    made = intake()
    assert made.block_size(0) == 0
    assert made.apply(0, batch(stored([11, 12, 13, 14], None, TOKENS))) == DONE
    assert made.block_size(0) == 4
    assert held(made) == (4, 4, 4)
    assert made.apply(0, batch(removed(14), removed(13))) == DONE
    assert held(made) == (2, 2, 2)
    assert made.apply(0, batch(stored([13], 12, TOKENS[8:12]))) == DONE
    assert held(made) == (3, 3, 3)
    assert counted(made) == {"events": 4, "stored": 5, "removed": 2}


@pytest.mark.parametrize("model", ["m", "other"])
def test_model_adapter_and_salt_part_the_keys(model: str) -> None:
    made = intake(model=model)
    plain = stored([1], None, TOKENS[:4])
    red = stored([2], None, TOKENS[:4], lora_id=1, lora_name="red", extra_keys=[["red"]])
    salted = stored([3], None, TOKENS[:4], extra_keys=[["pepper"]])
    both = stored([4], None, TOKENS[:4], lora_name="red", extra_keys=[["red", "pepper"]])
    asked = [("", ""), ("red", ""), ("", "pepper"), ("red", "pepper")]
    for told, event in enumerate([plain, red, salted, both]):
        made.clear(0)
        made.apply(0, batch(event))
        for wanted, (adapter, salt) in enumerate(asked):
            keys = token_keys(root_key(model, adapter, salt), array("I", TOKENS), 4)
            assert held(made, keys=list(keys))[0] == (1 if told == wanted else 0)


def test_an_adapter_known_by_number_alone_matches_nobody() -> None:
    made = intake()
    made.apply(0, batch(stored([1], None, TOKENS[:4], lora_id=0)))
    assert held(made) == (0, 0, 0)
    assert counted(made) == {"events": 1, "stored": 1, "unnamed_adapters": 1}


def test_blocks_with_images_equal_no_blocks_of_text() -> None:
    made = intake()
    event = stored([1, 2], None, TOKENS[:8], extra_keys=[None, [["image-hash", -3]]])
    made.apply(0, batch(event))
    assert held(made) == (1, 1, 1)
    assert counted(made)["embedded"] == 1
    other = stored([1, 9], None, TOKENS[:8], extra_keys=[None, [["another", -3]]])
    made.apply(0, batch(removed(2), other))
    assert len(made.tree.dump()) == 2


def test_sglang_pages_tiers_and_pairs() -> None:
    """One event a page, positional; GPU, CPU, DISK and EXTERNAL; pairs with a speculative cache."""
    made = intake()

    def page(number: int, tokens: list[Any], medium: str | None = None) -> list[Any]:
        parent = number - 1 if number > 1 else None
        told = ["BlockStored", [-number], None if parent is None else -parent, tokens, 4, None]
        return told + ([medium] if medium else [])

    pages = [page(1 + i, TOKENS[4 * i : 4 * i + 4]) for i in range(3)]  # without a medium: older
    made.apply(0, pack([1.0, pages]))  # two members: no rank
    assert held(made)[0] == 3
    for number, medium in ((3, "CPU"), (2, "DISK"), (1, "EXTERNAL")):
        tokens = TOKENS[4 * number - 4 : 4 * number]
        made.apply(0, pack([1.0, [page(number, tokens, medium)], 0]))
        made.apply(0, pack([1.0, [["BlockRemoved", [-number], "GPU"]], 0]))
    made.apply(0, pack([1.0, [page(1, TOKENS[:4], "GPU")], 0]))
    assert held(made) == (1, 1, 3)
    made.apply(0, pack([1.0, [["AllBlocksCleared"]], 0]))
    pairs = [[each, TOKENS[i + 1]] for i, each in enumerate(TOKENS[:4])]
    made.apply(0, pack([1.0, [page(1, pairs, "GPU")], 0]))
    assert held(made) == (1, 1, 1) and not counted(made).get("odd")


def test_tokens_of_other_forms() -> None:
    """What is neither an id, a pair nor a digest leaves the event out, and nothing else."""
    made = intake()
    for odd in (1.5, None, [1], [1, 2, 3], [[1], 2], {"a": 1}, True):
        made.apply(0, batch(stored([9], None, [*TOKENS[:3], odd])))
    made.apply(0, batch(stored([1], None, TOKENS[:4])))
    assert held(made)[0] == 1 and counted(made)["odd"] == 7 and counted(made)["stored"] == 1


def test_tensorrt_llm_batches() -> None:
    """The events of its own test (test_streaming_kv_events.py): maps, signed hashes."""
    made = intake()
    first = int.from_bytes(b"\x80" + bytes(6) + b"\x01", "big") - 2**64
    told = {
        "type": "BlockStored",
        "block_hashes": [first, 2],
        "parent_block_hash": None,
        "token_ids": TOKENS[:8],
        "block_size": 4,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    }
    made.apply(0, pack([0.0, [], 0]))
    made.apply(0, pack([1.0, [told], 0]))
    assert held(made)[0] == 2 and made.block_size(0) == 4
    gone = {"type": "BlockRemoved", "block_hashes": [first, 2], "medium": "GPU"}
    made.apply(0, pack([1.0, [gone], 0]))
    assert held(made)[0] == 0 and counted(made)["removed"] == 2
    # Images: their digests in place of tokens, or placeholders and a field that names them.
    image = {"type": "mm_key", "hash": "ab" * 32, "start_offset": 0}
    by_token = {**told, "block_hashes": [3, 4], "token_ids": [*TOKENS[:6], "ab" * 32, 6]}
    by_key = {**told, "block_hashes": [5, 6], "mm_keys": [[], [image]]}
    other = {**told, "block_hashes": [5, 7], "mm_keys": [[], [{**image, "hash": "cd" * 32}]]}
    made.apply(0, pack([1.0, [by_token, by_key, other], 0]))
    assert held(made)[0] == 1, "the block before the image, and none with it"
    assert len(made.tree.dump()) == 4 and not counted(made).get("odd")


@pytest.mark.parametrize("form", ["unsigned", "signed", "bytes32", "bytes16"])
def test_every_form_of_a_hash_is_one_hash(form: str) -> None:
    digests = [bytes([i]) * 31 + bytes([0xF0 + i]) for i in range(2)]
    signed = [int.from_bytes(d[-8:], "big", signed=True) for d in digests]
    told: dict[str, list[Any]] = {
        "unsigned": [value % 2**64 for value in signed],
        "signed": signed,
        "bytes32": digests,
        "bytes16": [d[-16:] for d in digests],
    }
    made = intake()
    made.apply(0, batch(stored(told[form], None, TOKENS[:8])))
    assert held(made)[0] == 2
    made.apply(0, batch(removed(told["unsigned"][1])))
    assert held(made)[0] == 1
    assert counted(made)["removed"] == 1


def test_tiers_are_apart() -> None:
    made = intake()
    made.apply(0, batch(stored([1, 2], None, TOKENS[:8])))
    made.apply(0, batch(stored([1], None, [], 0, medium="CPU")))  # without tokens
    made.apply(0, batch(stored([2], 1, TOKENS[4:8], medium="STORAGE")))  # with
    made.apply(0, batch(removed(2), removed(1)))
    assert held(made) == (0, 1, 2)
    made.apply(0, batch(removed(1, medium="cpu")))
    assert held(made) == (0, 0, 0)
    assert held(made, keys=KEYS[:1]) == (0, 0, 0)
    made.apply(0, batch(stored([1], None, TOKENS[:4], medium="CPU_PINNED")))
    assert held(made) == (0, 1, 2)


def test_a_copy_in_another_tier_keeps_the_meaning_of_its_hash() -> None:
    """Offloading connectors leave extra_keys out: the salt is in what the hash meant before."""
    made = intake()
    made.apply(0, batch(stored([1], None, TOKENS[:4], extra_keys=[["salt"]])))
    made.apply(0, batch(stored([1], None, TOKENS[:4], medium="CPU"), removed(1)))
    assert held(made) == (0, 0, 0)
    salted = token_keys(root_key("m", "", "salt"), array("I", TOKENS), 4)
    assert held(made, keys=list(salted)) == (0, 1, 1)


def test_copies_are_counted() -> None:
    made = intake()
    for _ in range(3):
        made.apply(0, batch(stored([1], None, TOKENS[:4])))
    for left in (1, 1, 0):
        made.apply(0, batch(removed(1)))
        assert held(made)[0] == left
    made.apply(0, batch(removed(1)))
    assert counted(made)["unknown_removals"] == 1


def test_only_the_deciding_group_counts() -> None:
    made = intake()
    full = {"group_idx": 1, "kv_cache_spec_kind": "full_attention"}
    window = {"group_idx": 0, "kv_cache_spec_kind": "sliding_window"}
    made.apply(0, batch(stored([2], 9, TOKENS[:8], **window)))  # fewer hashes than blocks
    made.apply(0, batch(stored([1, 2], None, TOKENS[:8], **full)))
    made.apply(0, batch(stored([1, 2], None, TOKENS[:8], **{**full, "group_idx": 3})))
    made.apply(0, batch(removed(2, group_idx=0)))
    assert held(made)[0] == 2
    made.apply(0, batch(removed(2, group_idx=1)))
    assert held(made)[0] == 1
    assert counted(made)["other_groups"] == 1 + 2 + 1


def test_what_has_no_place_is_left_out() -> None:
    made = intake()
    made.apply(0, batch(stored([5], 99, TOKENS[:4]), stored([6], None, [], 0, medium="CPU")))
    made.apply(0, batch(stored([1], None, TOKENS[:4]), stored([2], 1, TOKENS[:8], 8)))
    made.apply(0, batch(stored([3, 4], 1, TOKENS[:4])))  # two hashes for one block
    assert counted(made) == {
        "events": 5,
        "stored": 1,
        "orphans": 2,
        "other_sizes": 1,
        "odd": 1,
    }
    assert list(made.tree.dump()) == KEYS[:1]


def test_a_hash_with_two_meanings_is_told() -> None:
    made = intake()
    made.apply(0, batch(stored([1], None, TOKENS[:4]), stored([1], None, TOKENS[4:8])))
    assert counted(made)["ambiguous"] == 1


def test_cleared_and_reset() -> None:
    made = intake()
    made.apply(0, batch(stored([1], None, TOKENS[:4])))
    assert made.apply(0, batch({"type": "AllBlocksCleared"})) == CLEARED
    assert held(made) == (0, 0, 0)
    assert made.apply(0, pack([1.0, [["AllBlocksCleared"]]])) == CLEARED
    made.apply(0, batch(stored([1], None, TOKENS[:4])))
    made.reset(0)
    assert held(made) == (0, 0, 0) and made.block_size(0) == 0
    made.apply(0, batch(stored([1], None, TOKENS[:8], 8)))
    assert made.block_size(0) == 8


def test_equal_functions_are_proven_and_shared() -> None:
    made = intake(3)
    for replica in range(2):
        made.apply(replica, batch(stored([1], None, TOKENS[:4])))
    made.apply(2, batch(stored([77], None, TOKENS[:4])))
    assert [made.shares(replica) for replica in range(3)] == [2, 2, 1]
    # What one of them told, the other may build on.
    made.apply(0, batch(stored([2], 1, TOKENS[4:8])))
    made.apply(1, batch(stored([3], 2, TOKENS[8:12])))
    made.apply(2, batch(stored([3], 2, TOKENS[8:12])))
    assert "orphans" not in counted(made, 1) and counted(made, 2)["orphans"] == 1
    made.reset(0)  # another life may hash in another way
    assert [made.shares(replica) for replica in range(3)] == [1, 1, 1]
    made.apply(1, batch(removed(1)))
    assert counted(made, 1)["removed"] == 1
    made.close(1)
    made.close(1)
    with pytest.raises(ValueError, match="no open source"):
        made.apply(1, batch())
    settle(made.tree)
    made.open(1, "m")
    assert made.is_open(1) and not made.is_open(5) and made.shares(1) == 1


def test_a_batch_can_be_applied_in_slices() -> None:
    whole, sliced = intake(), intake()
    events = [stored([10 + i], 9 + i if i else None, TOKENS[:4]) for i in range(50)]
    payload = batch(*events, rank=3)
    assert whole.apply(0, payload) == DONE
    calls = 1
    while sliced.apply(0, payload, 7) & MORE:
        calls += 1
    assert calls == 25
    assert sliced.tree.dump() == whole.tree.dump()
    assert sliced.stats(0) == whole.stats(0)
    assert sliced.stats(0)["rank"] == 3


@given(st.randoms(use_true_random=False), st.data())
@settings(max_examples=150, deadline=None)
def test_random_engines_as_the_twin(source: random.Random, data: st.DataObject) -> None:
    made, twin = intake(2), twin_kv_events.Intake()
    engines = []
    for replica in range(2):
        twin.open(replica, "m")
        form, hashes = data.draw(st.sampled_from(FORMS)), data.draw(st.sampled_from(HASHES))
        seed = data.draw(st.sampled_from(["seed", "another"]))
        engines.append(Engine(source, seed, form, hashes))
    for _ in range(data.draw(st.integers(1, 60))):
        replica = source.randrange(2)
        payload = engines[replica].batch()
        act = source.random()
        if act < 0.05:
            continue  # lost on the wire
        if act < 0.08:
            made.reset(replica)
            twin.reset(replica)
        budget = source.choice([0, 0, 3])
        found = MORE
        while found & MORE:
            found = made.apply(replica, payload, budget)
        assert found & BROKEN == 0
        twin.apply(replica, payload)
        made.tree.check_invariants()
        settle(made.tree)
        mine = {key: holders for key, (_, holders) in made.tree.dump().items() if holders}
        assert mine == twin.tree.held()
        for each in range(2):
            told, expected = made.stats(each), twin.sources[each].count
            assert {name: told[name] for name in expected} == expected


def sample() -> bytes:
    engine = Engine(random.Random(3), "s", "map", "unsigned")
    for _ in range(5):
        engine.batch()
    return batch(
        stored([2**64 - 1, 5, 6], None, TOKENS[:12], extra_keys=[["x"], None, [["i", 1]]]),
        removed(b"d" * 32, 5, locality="REMOTE"),
        ["BlockStored", [8], None, [1, 300, 70_000, -5], 4, None, "CPU", None, None, 0],
        {"type": "AllBlocksCleared"},
    )


def test_a_frame_cut_anywhere_is_broken_and_harms_nobody() -> None:
    payload = sample()
    for end in range(len(payload)):
        made = intake(2)
        made.apply(1, batch(stored([1], None, TOKENS[:4])))
        assert made.apply(0, payload[:end]) & BROKEN
        assert made.stats(0)["broken"] == 1
        assert held(made, 1)[0] == 1
        assert made.apply(0, payload) & BROKEN == 0
        made.tree.check_invariants()


@given(st.binary(max_size=64), st.integers(0, 300), st.integers(1, 4))
def test_any_bytes_are_survived(noise: bytes, at: int, cut: int) -> None:
    payload = sample()
    made = intake()
    for frame in (noise, payload[:at] + noise + payload[at + cut :]):
        assert 0 <= made.apply(0, frame) <= 6
    made.tree.check_invariants()
    made.reset(0)
    assert made.apply(0, batch(stored([1], None, TOKENS[:4]))) == DONE
    assert held(made)[0] == 1


def test_nested_and_long_lengths_are_no_trap() -> None:
    made = intake()
    deep = b"\x93\xcb" + bytes(8) + b"\x91" + b"\x91" * 100_000 + b"\x00"
    for frame in (deep, b"\x93\x00\xdd\xff\xff\xff\xff\x00", b"\xdf\xff\xff\xff\xff", b"\x90", b""):
        assert made.apply(0, frame) & BROKEN
    unhashable: Any = [[1], "short", None, True]
    made.apply(0, batch(stored(unhashable, None, TOKENS), stored([1], None, [[1]] * 4)))
    assert counted(made)["odd"] == 2


def test_the_map_keeps_its_cap_and_is_fair() -> None:
    made = intake(2, max_map_bytes=64 << 10)
    hashes = iter(range(1, 10**9))
    for _ in range(5_000):
        made.apply(0, batch(stored([next(hashes)], None, [next(hashes)] * 4)))
    assert made.map_bytes <= 64 << 10
    assert made.stats(0)["refused"] > 0
    made.apply(1, batch(stored([1, 2, 3, 4], None, TOKENS)))
    assert held(made, 1)[0] == 4  # the flood left room for the others
    assert made.stats(0)["stored"] == made.tree.replica_blocks(0)  # none is held but unknown


def test_entries_of_blocks_that_left_are_swept() -> None:
    made = intake(1, model="")
    live: list[int] = []
    for turn in range(40_000):
        made.apply(0, batch(stored([turn + 1], None, [turn] * 4)))
        live.append(turn + 1)
        if len(live) > 500:
            made.apply(0, batch(removed(live.pop(0))))
    assert made.map_entries <= 600
    assert made.map_bytes <= 40 * 600 + 2_000


def test_an_entry_takes_at_most_40_bytes() -> None:
    made = intake()
    for start in range(0, 25_000, 100):
        hashes = [(start + i) * 0x9E3779B97F4A7C15 % 2**64 for i in range(100)]
        made.apply(0, batch(stored(hashes, None, [start + i for i in range(400)])))
    assert made.map_entries == 25_000
    assert made.map_bytes <= 40 * 25_000


def test_failed_allocations_leave_everything_whole() -> None:
    failures = 0
    for turn in range(60):
        made = intake()
        engine = Engine(random.Random(turn), "s", "map", "unsigned")
        _fail_alloc_after(turn)
        for _ in range(30):
            try:
                made.apply(0, engine.batch())
            except MemoryError:
                failures += 1
        _fail_alloc_after(-1)
        made.tree.check_invariants()
        made.reset(0)
        assert made.apply(0, batch(stored([1], None, TOKENS[:SIZE], SIZE))) == DONE
    assert failures


def test_decoded_events_do_what_frames_do() -> None:
    made, direct = intake(), intake()
    made.apply(0, batch(stored([1, 2], None, TOKENS[:8]), removed(2)))
    direct.stored(0, [1, 2], None, TOKENS[:8], 4)
    direct.removed(0, [2])
    direct.stored(0, [3], 1, TOKENS[4:8], 4, tier=1, adapter="")
    made.apply(0, batch(stored([3], 1, TOKENS[4:8], medium="CPU")))
    assert direct.tree.dump() == made.tree.dump()
    assert direct.stats(0) == {**made.stats(0), "rank": -1}
    for wrong in ([0, [1], None, [1], 1, 3], [0, [1], None, [1], 70_000]):
        with pytest.raises(ValueError, match="out of range"):
            direct.stored(*wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="out of range"):
        direct.removed(0, [1], 9)


def test_arguments_are_checked() -> None:
    made = intake()
    with pytest.raises(ValueError, match=r"0\.\.7"):
        made.open(8)
    with pytest.raises(ValueError, match="open source"):
        made.open(0)
    with pytest.raises(ValueError, match=r"0\.\.7"):
        made.close(-1)
    with pytest.raises(ValueError, match=r"0\.\.7"):
        made.apply(99, b"")
    with pytest.raises(TypeError):
        made.apply(0, "text")  # type: ignore[arg-type]


def test_memory_is_kept_where_the_c_library_is_glibc() -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
