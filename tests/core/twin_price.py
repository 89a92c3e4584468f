"""The twin of `_core.price`, one replica at a time."""

from __future__ import annotations

from math import exp


class TwinPrice:
    """Same arguments and defaults as `Price`."""

    def __init__(self, **given: float) -> None:
        self.c = {
            "pair": 3.5e-5,
            "interference": 0.3,
            "decode": 1.5,
            "context": 1e-3,
            "sequence": 0.2,
            "copy": 1.0,
            "strength": 3.0,
            "seconds_per_token": 40e-6,
            "rho_cap": 0.9,
            "window_s": 60.0,
            "output": 256.0,
            "spread": 0.005,
            "spread_limit": 4096.0,
            "crowd": 12.0,
            "slack": 1.1,
            "large": 12e3,
            "overload": 8.0,
            "late_s": 2.0,
            "scarcity": 1.0,
            "reserve": 0.1,
            "distance": 4.0,
        } | given
        self.factors: dict[int, float] = {}
        self.room: dict[int, tuple[float, float]] = {}  # tokens free, tokens in use
        self.stay = 0.0
        self.away: dict[int, float] = {}
        self.distance = 0.0
        self.output = self.c["output"]
        self.ahead, self.work = 0.0, 1.0
        self.arrived = self.worked = self.known = 0.0
        self.mean_own = self.mean_uncached = self.mean_prompt = 0.0
        self.tie = self.other_rate = self.other_work = 0.0
        self.at: float | None = None
        self.took = 0.0

    def heard(self, seconds: float) -> None:
        """Of times to the first token the twin knows the mean alone; TwinPace has the rest."""
        self.took += 0.02 * (seconds - self.took)

    def own(self, uncached: float, cached: float) -> float:
        return uncached + self.c["pair"] * uncached * (cached + uncached / 2)

    def prices(
        self,
        prompt: float,
        hits: list[float],
        waiting: list[float],
        running: list[float],
        placed: list[float],
        mask: list[int],
    ) -> list[float | None]:
        kept = [slot for slot, each in enumerate(mask) if each]
        if not kept:
            return [None] * len(mask)
        least = min(placed[slot] for slot in kept)
        most = max(0.0, *(hits[slot] for slot in kept))
        lines = [waiting[slot] + self.short(slot, waiting[slot]) for slot in kept]
        theta = self.ahead * self.work * sum(lines) / len(kept)
        mean = sum(running[slot] for slot in kept) / len(kept)
        in_line = sum(waiting[slot] for slot in kept) / len(kept) / max(16.0, self.mean_uncached)
        late = min(in_line - 4, 4 * (self.took - self.c["late_s"]))
        more = self.c["overload"] * max(0.0, late)
        crowd, large = self.c["crowd"] + more, self.c["large"] * (1 + more)
        delay = self.c["interference"] * (1 + more / 24)
        delay = max(min(0.7, delay), self.c["interference"])
        out: list[float | None] = [None] * len(mask)
        for slot in kept:
            own = self.own(prompt - hits[slot], hits[slot])
            answer = self.output * (
                self.c["context"] * (prompt + self.output / 2) + self.c["sequence"]
            )
            delays = min(running[slot], crowd) * min(own, large) + max(0.0, mean - crowd) * own
            mine = waiting[slot] * self.work + own + delay * delays
            uneven = max(0.0, running[slot] - self.c["slack"] * mean)
            out[slot] = (
                self.factors.get(slot, 1.0) * mine
                + self.c["decode"] * uneven * answer
                + own * theta
                + self.c["copy"] * self.own(most - hits[slot], hits[slot])
                + min(self.c["spread"] * (placed[slot] - least), self.c["spread_limit"])
                + self.short(slot, waiting[slot] + prompt - hits[slot])
                + self.away.get(slot, 0.0)
                + (self.distance if self.away.get(slot) else 0.0)
            )
        if self.tie:
            low = min(price for price in out if price is not None)
            limit = low + self.tie * self.own(prompt, 0)
            out = [low if price is not None and price <= limit else price for price in out]
        return out

    def short(self, slot: int, tokens: float) -> float:
        room, used = self.room.get(slot, (float("inf"), 1.0))
        seconds = max(0.0, tokens - room) / used * self.stay
        return self.c["scarcity"] * seconds / self.c["seconds_per_token"]

    def holds(self, slot: int, capacity: float, usage: float) -> None:
        self.room.pop(slot, None)
        if capacity >= 1:
            room = (1 - usage - self.c["reserve"]) * capacity
            self.room[slot] = room, max(0.1, usage) * capacity

    def move(self, slot: int, tokens: float) -> None:
        self.away[slot] = tokens

    def damp(self, share: float) -> None:
        self.tie = share

    def others(self, rate: float, work: float) -> None:
        self.other_rate, self.other_work = rate, work

    @property
    def reuse(self) -> float:
        return 1 - self.mean_uncached / self.mean_prompt if self.mean_prompt else 0.0

    def placed(self, prompt: float, hit: float) -> None:
        own = self.own(prompt - hit, hit)
        self.arrived += 1
        self.worked += own
        self.mean_own += 0.005 * (own - self.mean_own)
        self.mean_uncached += 0.005 * (prompt - hit - self.mean_uncached)
        self.mean_prompt += 0.005 * (prompt - self.mean_prompt)

    def tick(self, now: float, replicas: int, output: float, requests: float = 0.0) -> None:
        if self.at is None:
            self.at = now
            return
        if now <= self.at or replicas < 1:
            return
        kept = exp(-(now - self.at) / self.c["window_s"])
        self.known = self.known * kept + now - self.at
        self.at = now
        a = self.c["seconds_per_token"]
        own_rate = self.arrived / self.known
        self.stay = min(300.0, requests / own_rate) if own_rate else 0.0
        rate = (own_rate + self.other_rate) / replicas
        work = self.worked / self.known + self.other_work
        rho = min(self.c["rho_cap"], work * a / replicas)
        self.ahead = self.c["strength"] * rate * a / (1 - rho)
        self.output = max(0.0, output)
        if self.mean_uncached > 1:
            self.work = self.mean_own / self.mean_uncached
        self.distance = self.c["distance"] * self.mean_own
        self.arrived *= kept
        self.worked *= kept


class TwinPace:
    """Weighted least squares over all samples with forgetting, residuals clipped as they come."""

    def __init__(self, slope: float) -> None:
        self.theta = [0.02, slope]
        self.p = [[10.0, 0.0], [0.0, 10.0]]
        self.usual, self.count = 0.0, 0

    def learn(self, thousands: float, seconds: float) -> None:
        kept, weight = 0.9965, 1 / (thousands + 2)
        x = [weight, weight * thousands]
        gain = [row[0] * x[0] + row[1] * x[1] for row in self.p]
        under = kept + x[0] * gain[0] + x[1] * gain[1]
        error = weight * seconds - self.theta[0] * x[0] - self.theta[1] * x[1]
        size = abs(error)
        if self.count >= 3 and size > 3 * self.usual:
            size = 3 * self.usual
            error = size if error > 0 else -size
        rate = max(0.05 if size < self.usual else 0.02, 1 / (self.count + 1))
        self.usual += rate * (size - self.usual)
        self.count += 1
        self.theta = [t + k / under * error for t, k in zip(self.theta, gain, strict=True)]
        p = [
            [(self.p[i][j] - gain[i] * gain[j] / under) / kept for j in range(2)] for i in range(2)
        ]
        if p[0][0] + p[1][1] < 1e4:
            self.p = p
        self.theta = [min(max(self.theta[0], 0.0), 5.0), min(max(self.theta[1], 1e-3), 5.0)]
