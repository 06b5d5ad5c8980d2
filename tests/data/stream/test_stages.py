"""What all stages of a stream have in common: one that goes to the state of another gives what that one would."""

import itertools

import pytest
from data.stream._stages import Passes, PassesWithState, as_stored, close_all, shown, stages

CASES = {
    "passes": (lambda: Passes([3, 3, 5, 1]), {}),
    "passes with state": (lambda: PassesWithState([3, 3, 5, 1]), {}),
    "smaller last batch": (lambda: Passes([4, 4, 2, 2], smaller_last=True), {}),
    "smaller ones dropped": (lambda: Passes([3, 3, 4, 2], smaller_last=True), {"drop_remainder": True}),
    "cut": (lambda: Passes([5]), {"steps_per_epoch": 3}),
    "cut with state": (lambda: PassesWithState([5]), {"steps_per_epoch": 7, "epochs": 3}),
    "steps": (lambda: PassesWithState([3, 3, 5, 1]), {"epochs": None, "steps": 10}),
}
STAGES = ["epoch", "epochs", "checked", "staged", "ends", "chunks", "joined", "placed", "prefetched"]


@pytest.fixture(autouse=True)
def _no_thread_stays():
    yield
    close_all()


def take(items, count=25):
    """Some items of a stage: the first ones iterate for ever."""
    return [shown(item) for item in itertools.islice((item for item in items if item is not None), count)]


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "lists"])
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("case", CASES)
def test_a_stage_goes_on_from_each_state(case, name, stacked):
    make, config = CASES[case]

    def stage():
        return stages(make(), stacked=stacked, **config)[name]

    whole = take(stage())
    assert whole
    for count in range(len(whole) + 1):
        first, then = stage(), stage()
        begin = take(first, count)
        then.set_state(as_stored(first.get_state()))
        assert begin + take(then, 25 - count) == whole


@pytest.mark.parametrize("case", CASES)
def test_a_stage_pulls_nothing_until_it_is_iterated(case):
    make, config = CASES[case]
    data = make()
    made = stages(data, **config)
    for stage in made.values():
        stage.set_state(stage.get_state())
    assert (data.walks, data.pulled) == (1, 1)  # for the shapes
