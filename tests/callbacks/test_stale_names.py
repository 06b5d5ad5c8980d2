"""A callback that is told which names are old does what it does where it is not told."""

import hypothesis
import jax
import numpy as np
import optax
import pytest

import jaxcb as jc
from jaxcb._src.callbacks.monitor import is_old
from jaxcb._src.core.actions.records import fired
from jaxcb._src.core.chain import transition
from jaxcb._src.testing.drive import Subject
from jaxcb._src.testing.registry import builtin_examples
from jaxcb._src.testing.streams import streams


@pytest.fixture(autouse=True)
def _strict():
    """The losses here promote dtypes, as users' losses do."""


HOOKS = ("on_eval_end", "on_epoch_end")
WATCHING = [
    callback
    for callback in builtin_examples()
    if set(HOOKS) & set(callback.hooks()) and not isinstance(callback, jc.PopulationCallback)
]


@pytest.mark.everyday(12)
@pytest.mark.parametrize("callback", WATCHING, ids=lambda c: type(c).__name__)
def test_old_names_change_nothing(callback):
    subject = Subject(callback)

    @hypothesis.settings(max_examples=3, deadline=None, database=None)
    @hypothesis.given(streams(subject.names, max_size=3))
    def check(stream):
        state = subject.init()
        for row in subject.row_list(stream):
            now, step = row.now, int(row.now.step)
            missing = {name for name in now.values if int(now.reported[name]) != step}
            # at the epoch's end what the validation has reported is known to a callback that saw it
            for hook, old in (("on_eval_end", missing), ("on_epoch_end", set(now.values))):
                if hook in subject.hooks:
                    state = _same(subject, hook, state, now, frozenset(old))

    check()


def _same(subject, hook, state, metrics, old):
    told, some = transition(subject.callback, subject.name, hook, state, metrics.replace(old=old))
    untold, all_of_them = transition(subject.callback, subject.name, hook, state, metrics)
    for a, b in zip(jax.tree.leaves(told), jax.tree.leaves(untold), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    kinds = [[type(action).__name__ for action in fired(own)] for own in (some, all_of_them)]
    assert kinds[0] == kinds[1]
    return told


def test_the_loop_tells_which_names_are_old():
    seen = {}

    class Watch(jc.Callback):
        def on_eval_end(self, state, metrics):
            seen["on_eval_end"] = metrics.old
            return state, None

        def on_epoch_end(self, state, metrics):
            seen["on_epoch_end"] = metrics.old
            return state, None

    x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    jc.fit(
        {"w": np.zeros((1, 1), np.float32)},
        lambda p, batch: ((batch @ p["w"]) ** 2).mean(),
        x,
        optimizer=optax.sgd(0.1),
        epochs=1,
        batch_size=4,
        validation_data=x,
        callbacks=[Watch()],
        verbose=0,
    )
    assert seen == {"on_eval_end": {"loss"}, "on_epoch_end": {"val_loss"}}


def test_what_watches_old_names_alone_is_left_out():
    metrics = jc.Metrics({"loss": 1.0, "val_loss": 2.0}, step=3)

    def left_out(callback, *old):
        return is_old(callback, callback.monitor, metrics.replace(old=frozenset(old)))

    plateau = jc.ReduceLROnPlateau()
    assert set(plateau.hooks()) == set(HOOKS)
    assert left_out(plateau, "val_loss")
    assert not left_out(plateau, "loss")
    assert not left_out(plateau)
    gap = jc.ReduceLROnPlateau(lambda m: m["val_loss"] - m["loss"], mode="min")
    assert left_out(gap, "loss", "val_loss")
    assert left_out(gap, "loss", "val_loss", "accuracy")
    assert not left_out(gap, "val_loss")  # the loss may be new
    # it sees no validation, so that at the end of an epoch their values are new to it
    latest = jc.ModelCheckpoint("{epoch}", max_to_keep=1, keep_best=1, save_freq=3)
    assert set(latest.hooks()) == {"on_batch_end", *HOOKS}
    latest = jc.callbacks.MedianStopping("val_loss")
    assert "on_eval_end" not in latest.hooks()
    assert not left_out(latest, "val_loss")
