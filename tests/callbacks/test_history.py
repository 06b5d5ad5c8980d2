"""History: the run's own rows."""

import jaxcb as jc


def test_remembers_fresh_scalars(play):
    played = play(jc.History(), loss=[1.0, 0.5], val_loss=[None, 0.25])
    (first,), (second,) = played.actions
    assert {n: bool(f) for n, f in first.fresh.items()} == {"loss": True, "val_loss": False}
    assert {n: float(v) for n, v in second.values.items()} == {"loss": 0.5, "val_loss": 0.25}


def test_a_validation_at_an_epochs_end_is_one_row():
    for closes in (True, False):
        _, row = jc.History().on_eval_end((), jc.Metrics({"loss": 1.0}, closes_epoch=closes))
        assert bool(row.when) is not closes
