"""The twin of src_ext/tempo.h: matrices by the textbook, one replica at a time."""

from __future__ import annotations

Matrix = list[list[float]]


class TwinTempo:
    """Weighted least squares over all samples with forgetting, residuals clipped as they come."""

    def __init__(self, seconds_per_token: float) -> None:
        self.theta = [0.02, seconds_per_token * 1000, seconds_per_token * 1000]
        self.p: Matrix = [[10.0 if i == j else 0.0 for j in range(3)] for i in range(3)]
        self.usual = self.batch = 0.0
        self.count = 0
        self.usage = 0.0  # of its KV cache
        self.pace = 1.0  # factor of its prefill

    def learn(self, seconds: float, batch: float, stalls: float) -> None:
        kept = 0.9965
        x = [1 / seconds, batch / seconds, stalls / seconds]
        gain = [sum(row[j] * x[j] for j in range(3)) for row in self.p]
        under = kept + sum(x[i] * gain[i] for i in range(3))
        error = 1 - sum(x[i] * self.theta[i] for i in range(3))
        size = abs(error)
        if self.count >= 5 and size > 3 * self.usual:
            size = 3 * self.usual
            error = size if error > 0 else -size
        begin = 1 / (self.count + 1)
        self.usual += max(0.05 if size < self.usual else 0.02, begin) * (size - self.usual)
        self.batch += max(0.005, begin) * (batch - self.batch)
        self.count += 1
        self.theta = [t + k / under * error for t, k in zip(self.theta, gain, strict=True)]
        p = [[self.p[i][j] - gain[i] * gain[j] / under for j in range(3)] for i in range(3)]
        if p[0][0] + p[1][1] + p[2][2] < 30 * kept:
            p = [[value / kept for value in row] for row in p]
        self.p = p


def middle(values: list[float]) -> float:
    """The lower of two middle ones of what is above 0; 0 where fewer than two are."""
    known = sorted(value for value in values if value > 0)
    return known[(len(known) - 1) // 2] if len(known) > 1 else 0.0


def contrast(all_: list[TwinTempo]) -> tuple[list[float], list[float]]:
    """(factor, seconds a token beyond the quickest) of each."""
    known = [each for each in all_ if each.count >= 30]
    batch = sum(each.batch for each in known) / len(known) if known else 0.0
    beats = [each.theta[0] + each.theta[1] * batch if each.count >= 30 else 0.0 for each in all_]
    mid, base = middle(beats), middle([each.theta[0] if each in known else 0.0 for each in all_])
    factors = []
    for beat in beats:
        factor = min(4.0, max(0.25, beat / mid)) if mid > 0 and beat > 0 else 1.0
        factors.append(1.0 if 1 / 1.3 <= factor <= 1.3 else factor)
    rest = []
    for factor, each in zip(factors, all_, strict=True):
        if factor > 1 and each.pace > 1:
            factor = factor / each.pace if factor / each.pace > 1.3 else 1.0
        elif factor < 1 and each.pace < 1:
            factor = factor / each.pace if factor / each.pace < 1 / 1.3 else 1.0
        rest.append(factor)
    least, most = min(1.0, *rest), max(1.0, *rest)
    slower = []
    for factor, each in zip(rest, all_, strict=True):
        full = min(1.0, max(0.0, (each.usage - 0.5) / 0.35))
        slower.append((factor + (most - factor) * full - least) * base)
    return factors, slower
