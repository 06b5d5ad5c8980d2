"""Options that Keras lacks, stated by what Keras does without them."""

import math

import jax
import numpy as np
import pytest
from against_keras import _ours, rules
from against_keras._amendments import Float32, NaNIsNoBest, NaNStopsNothingFirst
from against_keras._case import EPOCHS, NAN, VALUES, Case
from against_keras._compare import same, with_rules
from against_keras._small import PLATEAU, stopping, val_losses
from against_keras._theirs import outcome
from hypothesis import given
from hypothesis import strategies as st

STREAMS = st.lists(VALUES, min_size=1, max_size=EPOCHS)
LIMITS = st.sampled_from([-1.0, -0.25, 0.25, 1.0])


def first(values, predicate):
    """The index of the first one, None where there is none."""
    return next((i for i, value in enumerate(values) if predicate(value)), None)


def earliest(*epochs):
    return min((e for e in epochs if e is not None), default=None)


@pytest.mark.parametrize("unit", ["epochs", "steps"])
@given(STREAMS, st.integers(0, 3), st.sampled_from([0, 1, 3]))
def test_units_of_patience_agree_where_each_epoch_is_a_step_and_reports(unit, values, patience, start):
    case = stopping(*values, patience=patience, start_from_epoch=start)
    assert _ours.outcome(case) == _ours.outcome(case.replace(arguments={**case.arguments, "patience_in": unit}))


@pytest.mark.parametrize("mode", ["min", "max"])
@given(STREAMS, st.integers(0, 3), LIMITS, LIMITS, st.booleans())
def test_thresholds_stop_at_the_first_report_that_calls_for_it(mode, values, patience, good, bad, finite):
    case = stopping(*values, patience=patience, mode=mode)
    keras = with_rules(case, list(rules.of(case)))["stopped in epoch"]
    sign = 1.0 if mode == "min" else -1.0
    expected = earliest(
        keras,
        first(values, lambda v: sign * v <= sign * good),
        first(values, lambda v: sign * v > sign * bad),
        first(values, lambda v: finite and not math.isfinite(v)),
    )
    options = {"stopping_threshold": good, "divergence_threshold": bad, "check_finite": finite}
    ours = _ours.outcome(case.replace(arguments={**case.arguments, **options}))
    assert ours["stopped in epoch"] == expected


class Relative:
    """`min_delta` is a share of the best's absolute value."""

    def _is_improvement(self, value, reference):
        share = self.min_delta
        try:
            if reference is not None:
                size = abs(np.float32(reference)) if math.isfinite(reference) else np.float32(0.0)
                self.min_delta = np.float32(share) * size
            return super()._is_improvement(value, reference)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self.min_delta = share


EXACT = st.lists(st.integers(-64, 64).map(lambda n: n / 16) | st.just(NAN), min_size=1, max_size=EPOCHS)
SHARES = st.sampled_from([0.0, 0.25, 0.5, -0.25])  # products are exact, so that ties are


@pytest.mark.parametrize("mode", ["min", "max"])
@given(EXACT, SHARES, st.integers(0, 2))
def test_a_relative_delta_is_a_share_of_keras_best(mode, values, share, patience):
    """On both sides of zero."""
    case = stopping(*values, patience=patience, mode=mode, min_delta=share, restore_best_weights=True)
    ours = _ours.outcome(case.replace(arguments={**case.arguments, "threshold_mode": "rel"}))
    assert same(ours, outcome(case, (NaNStopsNothingFirst, Relative, Float32)))
    arguments = PLATEAU | {"mode": mode, "min_delta": share, "patience": patience}
    case = Case("ReduceLROnPlateau", arguments, val_losses(*values))
    ours = _ours.outcome(case.replace(arguments={**case.arguments, "threshold_mode": "rel"}))
    assert same(ours, outcome(case, (NaNIsNoBest, Relative, Float32)))


def test_limits_are_numbers_that_a_sweep_can_batch():
    """Thresholds, patience and deltas are leaves; modes and units are not."""
    import jaxcb as jc

    callback = jc.EarlyStopping(stopping_threshold=0.5, divergence_threshold=2.0, baseline=1.0)
    names = {jax.tree_util.keystr(path, simple=True) for path, _ in jax.tree_util.tree_leaves_with_path(callback)}
    limits = {"baseline", "stopping_threshold", "divergence_threshold"}
    assert names == {"min_delta", "patience", "start_from_epoch", *limits}

    def stops(threshold, value):
        swept = callback.replace(stopping_threshold=threshold)
        _, actions = swept.on_epoch_end(swept.init(), jc.Metrics({"val_loss": value}))
        return jc.stop_requested(actions)

    thresholds = np.array([0.25, 0.5, 0.75], np.float32)
    assert jax.vmap(stops, (0, None))(thresholds, np.float32(0.5)).tolist() == [False, True, True]
