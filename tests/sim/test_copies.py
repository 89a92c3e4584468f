"""Traces made longer: what copies share and what they do not, and their arrivals."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmlane.router.cli import main
from warmlane.router.sim.copies import MAX_COPIES, repeat
from warmlane.router.sim.statistics import describe
from warmlane.router.sim.traces import Session, TraceError, Turn, Workload
from warmlane.router.sim.workload import generate

SYSTEM, TOPIC = 100, 200


def one(name: str, start_s: float, *prompts: tuple[tuple[int, int], ...]) -> Session:
    turns = (Turn(16 * sum(n for _, n in runs), 5, 0.0, 1.0, runs) for runs in prompts)
    return Session(name, start_s, tuple(turns))


# All share the system prompt, a and b a topic too; ranges of one run lie next to another's.
SMALL = Workload(
    name="small",
    block_size=16,
    sessions=(
        one("a", 0.0, ((SYSTEM, 4), (TOPIC, 3)), ((SYSTEM, 4), (TOPIC, 3), (300, 2))),
        one("b", 4.0, ((SYSTEM, 4), (TOPIC, 2), (400, 1))),
        one("c", 8.0, ((SYSTEM, 5), (500, 0), (302, 6)), ((SYSTEM, 5), (302, 8))),
    ),
)


def twin(source: Workload, made: Workload) -> None:
    """Block by block: equal where several sessions of the source use it, else new in each copy."""
    users: dict[int, set[str]] = {}
    for session in source.sessions:
        for turn in session.turns:
            for block in turn.blocks():
                users.setdefault(block, set()).add(session.name)
    by_name = {session.name: session for session in source.sessions}
    owner: dict[int, str] = {}  # of blocks of one session each, in the whole
    renamed: dict[tuple[str, int], int] = {}
    for session in made.sessions:
        first = by_name[session.name.partition("~")[0]]
        for turn, before in zip(session.turns, first.turns, strict=True):
            assert (turn.prompt, turn.output, turn.think_s) == (
                *(before.prompt, before.output, before.think_s),
            )
            for block, old in zip(turn.blocks(), before.blocks(), strict=True):
                if len(users[old]) > 1:
                    assert block == old
                    continue
                assert owner.setdefault(block, session.name) == session.name
                assert renamed.setdefault((session.name, old), block) == block
                assert len(users.get(block, ())) < 2, "a new id is nobody's shared one"


@pytest.mark.parametrize("source", [SMALL, generate("agent", 12), generate("coding", 6)])
def test_only_what_sessions_share_is_shared_with_copies(source: Workload) -> None:
    made = repeat(source, 4, 7)
    assert made.requests == 4 * source.requests
    assert len({session.name for session in made.sessions}) == 4 * len(source.sessions)
    twin(source, made)
    before, after = describe(source).shared, describe(made).shared
    assert before - 1e-9 <= after <= before + 0.1, "system prompts have more users, little else"


def test_arrivals_keep_their_rate() -> None:
    source = generate("agent", 40)
    made = repeat(source, 5, 3)
    starts = [session.start_s for session in made.sessions]
    before = [session.start_s for session in source.sessions]
    assert starts == sorted(starts) and starts[:40] == before
    gap = (before[-1] - before[0]) / 39
    assert (starts[-1] - starts[0]) / 199 == pytest.approx(gap)
    assert [at - starts[40] for at in starts[40:80]] == pytest.approx(before)
    order = [session.name.partition("~")[0] for session in made.sessions]
    assert order[:40] != order[40:80], "who starts when is dealt anew"
    assert repeat(source, 5, 3) == made != repeat(source, 5, 4)


def test_bounds() -> None:
    assert repeat(SMALL, 1) is SMALL
    lonely = Workload(name="one", block_size=16, sessions=SMALL.sessions[:1])
    assert [session.start_s for session in repeat(lonely, 3).sessions] == [0.0] * 3
    for copies in (0, -1, MAX_COPIES + 1):
        with pytest.raises(TraceError, match="must be 1 to"):
            repeat(SMALL, copies)
    with pytest.raises(TraceError, match="more than 2,000,000"):
        repeat(generate("agent", 200), MAX_COPIES)


def test_the_command_plays_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["replay", "chat", "--sessions", "5", "--policy", "round-robin", "--quiet"]
    assert main(words) == 0
    alone = capsys.readouterr().out
    assert main([*words, "--copies", "3"]) == 0
    told = capsys.readouterr().out
    requests = [int(text.split(": ")[1].split()[0]) for text in (alone, told)]
    assert requests[1] == 3 * requests[0] and "; 3 copies)" in told
    for wrong in ("0", "1001"):
        assert main([*words, "--copies", wrong]) == 2
        assert "copies" in capsys.readouterr().err
