"""Which sessions live, and how much KV memory they will want again. Floor 3, no clock.

A session is known by its id, or by its prompt: the key of the last full block of its latest
prompt, which its next prompt holds, too. What it will want again is its latest context without
what it shared with others from the start. Most traffic is not made of sessions: a context counts
by how often sessions of its kind (one request so far, or more) came back within `quiet_s`, which is
learned, so that prompts which nobody continues keep nobody out.

Kept while admission is active only. Memory: about 300 bytes a session, at most `most` of them.
"""

from __future__ import annotations

from collections import OrderedDict
from math import exp
from typing import Final

from warmlane.router.prefix import PrefixKey

_LEARN_S: Final = 60.0  # time constant of the lost share
_STEP: Final = 0.02  # of a session's return, about the last 50 of its kind
_KEPT: Final = 20.0  # times quiet_s that a silent session is still recognised


class Session:
    """The latest of one session, in tokens. shared: of its first prompt, found in a cache.

    open: its requests that wait or are answered now. at: when the last of them ended.
    """

    __slots__ = ("at", "context", "name", "open", "shared", "turns")

    def __init__(self, name: int | str, shared: float) -> None:
        self.name = name
        self.shared = shared
        self.context = 0.0
        self.turns = 0
        self.open = 0
        self.at = 0.0

    @property
    def own(self) -> float:
        """What nobody else keeps in the caches for it."""
        return max(0.0, self.context - self.shared)


Line = OrderedDict[int | str, Session]


class Sessions:
    """All sessions of one pool. returns: share that came back, after one request and after more.

    A session is open (it has a request under way), live (silent since a short time) or quiet.
    """

    def __init__(self, quiet_s: float, most: int) -> None:
        self.quiet_s = quiet_s
        self.most = most
        self.returns = [0.0, 1.0]
        self._open: dict[int | str, Session] = {}
        self._live: Line = OrderedDict()  # longest silent first, as in those below
        self._quiet: Line = OrderedDict()
        # Earlier prompts of sessions: what a second branch of one continues.
        self._past: Line = OrderedDict()
        self._own = [0.0, 0.0]  # of live ones, by kind
        self._busy = 0.0  # contexts of open ones
        self._asked = self._lost = 0.0  # tokens of continued contexts, and those not found
        self._at = 0.0

    def follow(self, quiet_s: float, most: int) -> None:
        """Other bounds from now on."""
        self.quiet_s = quiet_s
        self.most = most

    def __len__(self) -> int:
        return len(self._open) + len(self._live)

    @property
    def tokens(self) -> float:
        """KV tokens that sessions hold now or are expected to ask for again."""
        own, back = self._own, self.returns
        return self._busy + own[0] * back[0] + own[1] * back[1]

    @property
    def lost_share(self) -> float:
        """Of the contexts that were continued of late, the part that no cache held any more."""
        return self._lost / self._asked if self._asked >= 1.0 else 0.0

    def find(self, name: str, key: PrefixKey) -> Session | None:
        """The session that this request continues; None: it opens one, or has no prompt."""
        if name:
            return self._get(name)
        for block in reversed(memoryview(key.keys).tolist()):
            found = self._get(block) or self._past.get(block)
            if found is not None:
                return found
        return None

    def begin(self, session: Session) -> None:
        """A request that continues it came, and waits or goes."""
        if not session.open:
            if self._live.pop(session.name, None) is not None:
                self._end(session, came_back=True)
            self._quiet.pop(session.name, None)
            self._open[session.name] = session
            self._busy += session.own
        session.open += 1

    def sent(
        self,
        session: Session | None,
        name: str,
        key: PrefixKey,
        prompt: float,
        hit: float,
        output: float,
    ) -> Session | None:
        """A request goes to a replica. session: the one that began; None opens one.

        hit: tokens of the prompt that are found there. Returns the session, which is to `end`;
        None for a request that has no name and no full block.
        """
        latest = name or (key.keys[len(key.keys) - 1] if len(key.keys) else 0)
        if session is None:
            if not latest or self._get(latest) is not None:
                return None
            session = Session(latest, hit)
            session.open = 1
        else:
            self._ask(session, prompt, hit)
            self._busy -= session.own
            del self._open[session.name]
            if latest and latest != session.name and self._get(latest) is None:
                self._past[session.name] = session
                session.name = latest
        session.context = prompt + output
        session.turns += 1
        self._open[session.name] = session
        self._busy += session.own
        self._bound()
        return session

    def end(self, session: Session, now: float) -> None:
        """A request of it was answered, or came to nothing."""
        session.open -= 1
        if session.open:
            return
        del self._open[session.name]
        self._busy = self._busy - session.own if self._open else 0.0
        session.at = now
        self._live[session.name] = session
        self._own[session.turns > 1] += session.own

    def look(self, now: float) -> None:
        """Sessions that were silent too long are over."""
        live = self._live
        while live:
            session = next(iter(live.values()))
            if now - session.at < self.quiet_s:
                break
            del live[session.name]
            self._end(session, came_back=False)
            self._quiet[session.name] = session
        quiet = self._quiet
        while quiet and now - next(iter(quiet.values())).at > _KEPT * self.quiet_s:
            quiet.popitem(last=False)
        if now > self._at:
            kept = exp((self._at - now) / _LEARN_S)
            self._asked *= kept
            self._lost *= kept
            self._at = now

    def _get(self, name: int | str) -> Session | None:
        return self._open.get(name) or self._live.get(name) or self._quiet.get(name)

    def _ask(self, session: Session, prompt: float, hit: float) -> None:
        """What of its last context is still there?"""
        known = min(session.context, prompt)
        self._asked += known
        self._lost += max(0.0, known - hit)

    def _end(self, session: Session, *, came_back: bool) -> None:
        """Its present context is wanted no more, or was wanted just now."""
        kind = session.turns > 1
        own = self._own[kind] - session.own
        self._own[kind] = own if self._live and own > 0.0 else 0.0
        self.returns[kind] += _STEP * (came_back - self.returns[kind])

    def _bound(self) -> None:
        """The longest silent go where there are too many."""
        while len(self._past) > self.most:
            self._past.popitem(last=False)
        while len(self) + len(self._quiet) > self.most and (self._quiet or self._live):
            if self._quiet:
                self._quiet.popitem(last=False)
            else:
                _, session = self._live.popitem(last=False)
                self._end(session, came_back=False)
