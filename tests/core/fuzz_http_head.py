"""Random, cut and damaged heads through `_core.http_head` and `http_edit`, compared with llhttp.

python -m tests.core.fuzz_http_head --seconds 20 --seed 1
"""

from __future__ import annotations

import random

from tests.core import heads
from tests.core.fuzzing import fuzz


def one_round(rng: random.Random) -> None:
    answer = rng.random() < 0.5
    raw = heads.head_of(rng, answer=answer)
    compare = heads.compare_answer if answer else heads.compare_request
    compare(raw, rng)


if __name__ == "__main__":
    fuzz(__file__, one_round)
