"""Random streams through Keras's callbacks and ours: agreement, or a difference by rule.

`python tests/against_keras` runs many more and counts.
"""

import dataclasses

import pytest
from against_keras import _theirs, rules
from against_keras._case import INF, KINDS, NAN
from against_keras._compare import AGREES, Tally, judge
from against_keras._small import SMALLEST, stopping
from hypothesis import given, settings

EXAMPLES = {"EarlyStopping": 150, "ReduceLROnPlateau": 150, "ModelCheckpoint": 50, "TerminateOnNaN": 50}


@pytest.mark.everyday(4)
@pytest.mark.parametrize("kind", KINDS)
def test_decisions_are_those_of_keras_or_differ_by_rule(kind):
    tally = Tally()

    @settings(max_examples=EXAMPLES.get(kind, 15))
    @given(KINDS[kind])
    def compare(case):
        verdict = tally.add(case)
        assert not tally.unexplained, f"jaxcb {verdict.ours}\nKeras {verdict.theirs}"

    compare()


@pytest.mark.parametrize("rule", [r for r in rules.RULES if r.bites], ids=lambda r: r.name)
def test_every_rule_explains_a_difference(rule):
    explanation = judge(SMALLEST[rule.name]).explanation
    assert rule.name in explanation.split(" + ")
    if rule.name != "decimals":  # columns differ in every case
        assert explanation == rule.name


@pytest.mark.parametrize("rule", [r for r in rules.RULES if r.bites], ids=lambda r: r.name)
def test_a_rule_that_is_left_out_is_missed(rule, monkeypatch):
    """The comparison would notice: without the rule the same case is unexplained."""
    monkeypatch.setattr(rules, "RULES", tuple(r for r in rules.RULES if r is not rule))
    assert judge(SMALLEST[rule.name]).explanation == "unexplained"


def test_the_stand_in_for_running_means_is_keras_mean():
    """The driver's mean since the epoch began is that of Keras's own metric."""
    import keras

    seen, mean = [], keras.metrics.Mean()
    noted = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs["loss"]))
    losses = (0.5, 0.1, -3.25, 3e38, 3e38, NAN)
    _theirs.run(dataclasses.replace(SMALLEST["running mean"], batches=(losses,)), noted)
    for loss, value in zip(losses, seen, strict=True):
        mean.update_state(loss)
        assert value == pytest.approx(float(mean.result()), rel=1e-6, nan_ok=True)
    assert seen[-2] == INF


def test_infinite_and_negative_values_agree():
    for values in [(INF, 1.0, -INF, 0.0), (-1.0, -2.0, -2.0), (-INF, -INF, INF)]:
        assert judge(stopping(*values, patience=1, restore_best_weights=True)).explanation == AGREES
