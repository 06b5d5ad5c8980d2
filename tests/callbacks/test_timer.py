"""Timer: a budget is asked for once, and another one after it holds as well."""

from hypothesis import given
from hypothesis import strategies as st

import jaxcb as jc

SECONDS = st.integers(0, 6).map(float)


@given(
    first=SECONDS, second=SECONDS, clock=st.lists(SECONDS, min_size=1, max_size=6).map(sorted), cut=st.integers(0, 6)
)
def test_each_budget_stops_once(first, second, clock, cut):
    state, stops = jc.callbacks.Timer(first).init(), []
    for i, elapsed in enumerate(clock):
        timer = jc.callbacks.Timer(first if i < cut else second)
        for hook in (timer.on_batch_end, timer.on_epoch_end):  # of one moment
            state, stop = hook(state, jc.Metrics({}, host={"elapsed": elapsed}))
            if stop.when:
                stops.append(timer.duration)
    before, after = clock[:cut], clock[cut:]
    expected = [first] * bool(before and before[-1] >= first)
    if after and after[-1] >= second and expected != [second]:  # the same budget anew is none
        expected.append(second)
    assert stops == expected
