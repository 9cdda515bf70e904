"""How long the fuzz tests search, and from where.

    FUZZ_EXAMPLES=5000 FUZZ_SEED=1 pytest ci/tests/unit/test_fuzz_*.py

Environment:
    FUZZ_EXAMPLES  inputs that each test tries; default 100, on the live service 25
    FUZZ_SEED      a run with the same one tries the same inputs; default 0
"""

import os
from collections.abc import Callable
from datetime import timedelta

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 100))
SEED = int(os.environ.get("FUZZ_SEED", 0))
HANG_S = 20  # for one input: no figure of speed, only to tell a hang

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=15,
)


def fuzz(test: Callable, examples: int = EXAMPLES) -> Callable:
    """Run a Hypothesis test with `examples` from SEED; an input that takes HANG_S fails it."""
    how = settings(
        max_examples=examples,
        deadline=timedelta(seconds=HANG_S),
        database=None,
        phases=set(Phase) - {Phase.explain},  # which takes longer than the search
        suppress_health_check=list(HealthCheck),  # fixtures are shared, some inputs are large
    )
    return seed(SEED)(how(test))
