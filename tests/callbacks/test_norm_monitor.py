"""`NormMonitor`."""

import numpy as np
import pytest
from loop import _runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jaxcb as jc


@pytest.fixture(autouse=True)
def _strict():
    """The losses here promote dtypes, as users' losses do."""


@pytest.mark.everyday(1)
@pytest.mark.parametrize("per_layer", [False, True])
def test_norms_are_curves_and_join_the_history(tmp_path, per_layer):
    result = _runs.fit(
        epochs=4,
        callbacks=[jc.callbacks.NormMonitor(every=4, per_layer=per_layer)],
        run_dir=tmp_path,
        validation_data=None,
    )
    curves = EventAccumulator(str(tmp_path / "logs" / "train"))
    curves.Reload()
    names = {n for base in ("grad_norm", "update_norm", "param_norm", "update_ratio")
             for n in ([f"{base}/w", f"{base}/b"] if per_layer else [base])}  # fmt: skip
    assert set(curves.Tags()["scalars"]) == names
    for name in names:
        events = curves.Scalars(name)
        assert [e.step for e in events] == [4, 8, 12, 16, 20]
        # the fourth epoch has two looks, at a step of 16 rows and at one of 6
        mean = np.average([e.value for e in events[-2:]], weights=[16, 6])
        np.testing.assert_allclose(result.history[name][-1], mean, rtol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="of must be one of"):
        jc.callbacks.NormMonitor(of=("grads",))
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        jc.callbacks.NormMonitor(every=0)
