"""Who goes next: priorities, fairness between tenants, ageing. Floor 3, no clock, no bounds.

    level     lower is earlier; a level is served while it has anybody who may go
    tenant    within a level, deficit round robin (Shreedhar, Varghese 1995): a turn gives a tenant
              a quantum of tokens, and each request is charged after it went, by what it really
              cost, so a tenant that sends long prompts comes round less often
    work      within a tenant, of the first in line the least work goes first: a mean wait is
              shorter so, and a session that goes on is less work than one that begins
    age       every fourth place goes to the oldest that has waited long enough, whoever it is:
              nobody starves, and a flood of high priority still keeps three quarters

What a request waits for besides its turn (room for a new session) is the caller's `fits`. All
operations are O(1) but `pop`, which looks at each waiting tenant of a level at most once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final

QUANTUM_TOKENS: Final = 2048.0  # small against a prompt: fine turns cost nothing here
AGED_EVERY: Final = 4
WINDOW: Final = 32  # of a line, within which the least work goes first
OTHERS: Final = "others"  # tenants beyond the bound


class Item:
    """One waiting request, as far as its turn goes.

    fresh: it opens a session, so `fits` is asked. at: since when it waits. work: what it will
    cost, as far as that is known beforehand; only its order matters.
    """

    __slots__ = ("at", "fresh", "level", "tenant", "work")

    def __init__(self, tenant: str, level: int, fresh: bool, at: float, work: float) -> None:
        self.tenant = tenant
        self.level = level
        self.fresh = fresh
        self.at = at
        self.work = work


Fits = Callable[[Item], bool]
Line = OrderedDict[Item, None]


class Flow:
    """What waits of one tenant at one level."""

    __slots__ = ("fresh", "known")

    def __init__(self) -> None:
        self.known: Line = OrderedDict()
        self.fresh: Line = OrderedDict()

    def head(self, fits: Fits) -> Item | None:
        """Who goes next of this tenant: the least work among those at the head of its lines."""
        found = min(islice(self.known, WINDOW), key=_work, default=None)
        for item in islice(self.fresh, WINDOW):
            if (found is None or item.work < found.work) and fits(item):
                found = item
        return found


def _work(item: Item) -> float:
    return item.work


class Account:
    """What a tenant may still have of this round, in tokens; negative: it had more."""

    __slots__ = ("deficit", "waiting")

    def __init__(self) -> None:
        self.deficit = 0.0
        self.waiting = 0


class FairQueue:
    """All that wait for one pool. weights: shares of tenants by name, 1 for the others."""

    def __init__(self, weights: Mapping[str, float], tenants: int, age_s: float) -> None:
        self.follow(weights, tenants, age_s)
        self._levels: dict[int, OrderedDict[str, Flow]] = {}
        self._known: Line = OrderedDict()  # by arrival
        self._fresh: Line = OrderedDict()
        self._accounts: dict[str, Account] = {}
        self._places = 0

    def follow(self, weights: Mapping[str, float], tenants: int, age_s: float) -> None:
        """Other shares and bounds from now on."""
        self._weights = weights
        self._tenants = tenants
        self._age_s = age_s

    def __len__(self) -> int:
        return len(self._known) + len(self._fresh)

    def __iter__(self) -> Iterator[Item]:
        yield from self._known
        yield from self._fresh

    @property
    def fresh(self) -> int:
        """How many of them open a session."""
        return len(self._fresh)

    @property
    def accounts(self) -> Mapping[str, Account]:
        """By tenant, those that nobody waits for among them."""
        return self._accounts

    def weight(self, tenant: str) -> float:
        """A tenant's share."""
        return self._weights.get(tenant, 1.0)

    def place(self, item: Item) -> int:
        """About which place in the line one more would have, the first is 1; it is not put there.

        Before it go earlier levels, what its tenant has with no more work, and of each other tenant
        as many by weight. Ageing and who may not go are left out.
        """
        before = 0
        for level, flows in self._levels.items():
            if level < item.level:
                before += sum(len(flow.known) + len(flow.fresh) for flow in flows.values())
        flows = self._levels.get(item.level, OrderedDict())
        flow = flows.get(item.tenant, Flow())
        own = sum(each.work <= item.work for line in (flow.known, flow.fresh) for each in line)
        turns = (own + 1) / self.weight(item.tenant)
        for name, other in flows.items():
            if name != item.tenant:
                there = len(other.known) + len(other.fresh)
                before += min(there, int(turns * self.weight(name)))
        return before + own + 1

    def oldest(self, fresh: bool) -> Item | None:
        """Who waits longest, of those that open a session or of the others."""
        return next(iter(self._fresh if fresh else self._known), None)

    def tenant(self, name: str) -> str:
        """The name under which a tenant is served: its own while there is a place for it."""
        if name in self._accounts or len(self._accounts) < self._tenants:
            return name
        for other, account in self._accounts.items():
            if not account.waiting and account.deficit >= 0.0:
                del self._accounts[other]
                return name
        return OTHERS

    def push(self, item: Item) -> None:
        """To the end of its tenant's line."""
        flows = self._levels.setdefault(item.level, OrderedDict())
        flow = flows.get(item.tenant)
        if flow is None:
            flow = flows[item.tenant] = Flow()
        account = self._accounts.get(item.tenant)
        if account is None:
            account = self._accounts[item.tenant] = Account()
        account.waiting += 1
        (flow.fresh if item.fresh else flow.known)[item] = None
        (self._fresh if item.fresh else self._known)[item] = None

    def remove(self, item: Item) -> bool:
        """Take one out, wherever it stands. False: it does not wait."""
        everybody = self._fresh if item.fresh else self._known
        if item not in everybody:
            return False
        del everybody[item]
        flows = self._levels[item.level]
        flow = flows[item.tenant]
        del (flow.fresh if item.fresh else flow.known)[item]
        if not flow.known and not flow.fresh:
            del flows[item.tenant]
            if not flows:
                del self._levels[item.level]
        account = self._accounts[item.tenant]
        account.waiting -= 1
        if not account.waiting:  # what it did not use is not saved up
            account.deficit = min(0.0, account.deficit)
        return True

    def pop(self, fits: Fits, now: float) -> Item | None:
        """Who goes now, taken out; None: nobody may."""
        item = self._aged(fits, now) if (self._places + 1) % AGED_EVERY == 0 else None
        if item is None:
            for level in sorted(self._levels):
                item = self._turn(self._levels[level], fits)
                if item is not None:
                    break
            else:
                return None
        self._places += 1
        self.remove(item)
        return item

    def charge(self, tenant: str, tokens: float) -> None:
        """A request of this tenant cost so much; negative: it cost less than was charged."""
        account = self._accounts.get(tenant)
        if account is not None:
            account.deficit -= tokens

    def forget(self) -> None:
        """Nobody competes any more: debts are forgiven."""
        assert not len(self), "they still wait"
        self._accounts.clear()

    def _aged(self, fits: Fits, now: float) -> Item | None:
        """The oldest that may go, where it has waited long enough."""
        found: Item | None = None
        for item in (self.oldest(False), self.oldest(True)):
            if item is None or now - item.at < self._age_s or (item.fresh and not fits(item)):
                continue
            if found is None or item.at < found.at:
                found = item
        return found

    def _turn(self, flows: OrderedDict[str, Flow], fits: Fits) -> Item | None:
        """Deficit round robin over the tenants of one level."""
        able: list[tuple[str, Account, Item]] = []
        for name, flow in flows.items():
            head = flow.head(fits)
            if head is not None:
                able.append((name, self._accounts[name], head))
        if not able:
            return None
        first = next((each for each in able if each[1].deficit > 0.0), None)
        if first is None:
            quanta = [QUANTUM_TOKENS * self._weights.get(name, 1.0) for name, _, _ in able]
            rounds = min(
                -each[1].deficit // quantum + 1 for each, quantum in zip(able, quanta, strict=True)
            )
            for (_, account, _), quantum in zip(able, quanta, strict=True):
                account.deficit += rounds * quantum
            first = next(each for each in able if each[1].deficit > 0.0)
        flows.move_to_end(first[0])
        return first[2]
