"""The predicates of a position: one text for the host's integers and for the arrays of a program."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcb._src.loop.compiled.position import (
    EvalSchedule,
    HostPosition,
    Position,
    is_over,
    must_close,
    must_validate,
)
from jaxcb._src.loop.compiled.state import DispatchParams

small = st.integers(0, 6)
positions = st.builds(Position, step=small, epoch=small, cursor=small, evaluated=small, stopped=st.booleans())
limits = st.builds(
    lambda epoch_len, end_step, end_epoch: DispatchParams(0, 1, epoch_len, 0, 1, epoch_len, 1, end_step, end_epoch, -1),
    epoch_len=st.integers(1, 6),
    end_step=small,
    end_epoch=small,
)
schedules = st.builds(EvalSchedule, st.integers(1, 3) | st.lists(st.integers(1, 6)).map(tuple), st.none()) | st.builds(
    EvalSchedule, st.just(1), st.integers(1, 4)
)


def every(at, limits, schedule, own):
    closing = must_close(at, limits, own)
    return is_over(at, limits), closing, must_validate(at, limits, schedule, closing)


@given(positions, limits, schedules, st.booleans())
def test_the_device_decides_as_the_host(at, limits, schedule, own):
    host = every(at, limits, schedule, own)
    device = every(*jax.tree.map(jnp.asarray, (at, limits)), schedule, jnp.asarray(own))
    assert host == tuple(map(bool, device))
    assert all(isinstance(answer, bool) for answer in host)


@given(positions, limits, schedules)
def test_the_hosts_copy_asks_the_same_predicates(at, limits, schedule):
    ends = {name: getattr(limits, name) for name in ("epoch_len", "end_step", "end_epoch")}
    host = HostPosition(**ends, schedule=schedule, at=at)
    over, closing, due = every(at, limits, schedule, True)
    assert (host.over, host.closing, host.pending) == (over, closing, closing or due)
    assert HostPosition(**ends, at=at).pending == closing  # nothing to validate on


@pytest.mark.parametrize(("schedule", "expected"), [(EvalSchedule(2, None), [6, 12]), (EvalSchedule(1, 4), [4, 8, 12])])
def test_a_run_of_twelve_steps(schedule, expected):
    place, found = HostPosition(epoch_len=3, end_step=12, schedule=schedule), []
    while not place.over:
        place.stepped()
        while place.pending:
            if must_validate(place.at, place, schedule, place.closing):
                found.append(place.at.step)
            place.passed_boundary()
    assert (place.at.epoch, place.at.step, place.at.cursor) == (4, 12, 0)
    assert found == expected
