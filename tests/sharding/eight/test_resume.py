"""A checkpoint of one layout resumes on another, and says whether that is bit for bit."""

import warnings

import jax
import numpy as np
import pytest
from sharding.eight._cases import batches, check_same, control, fit, layouts

import jaxcb as jc

AT = 13  # in the third epoch of five steps


class Cut(Exception):
    """Ends a run as a crash would: nothing is saved on the way out."""


class CutAt(jc.Callback):
    """Cuts the run after a step. All runs have it: other callbacks are another program, with other rounding."""

    step: int = 0

    def on_batch_end(self, state, metrics):
        return state, jc.actions.Call(_cut, when=metrics.step == self.step)


def _cut(run):
    raise Cut


def _callbacks(cut_at=0):
    return [*control(), jc.SwapEMAWeights(), jc.BackupAndRestore("unused", save_freq=4), CutAt(cut_at)]


@pytest.mark.parametrize(
    ("before", "after", "stream"),
    [
        pytest.param("fsdp", "fsdp", True, marks=pytest.mark.long),
        pytest.param("data", "data", False, marks=pytest.mark.long),
        ("fsdp", "none", False),
        pytest.param("none", "fsdp", True, marks=pytest.mark.long),
        pytest.param("fsdp", "rules", False, marks=pytest.mark.long),
    ],
)
def test_a_run_that_was_cut_goes_on_in_a_layout(before, after, stream, tmp_path, capsys):
    how = {"none": {}} | layouts()
    given = {"executor": "looped", "verbose": 2, "epochs": 6} | ({"data": batches()} if stream else {})
    whole = fit(**given, **how[after], callbacks=_callbacks(), run_dir=tmp_path / "whole")
    given |= {"run_dir": tmp_path / "run", "resume": True}
    with pytest.raises(Cut):
        fit(**given, **how[before], callbacks=_callbacks(AT))
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fit(**given, **how[after], callbacks=_callbacks())
    said = capsys.readouterr().out + " ".join(str(warning.message) for warning in caught)
    assert f"at step {AT - 1}, in epoch 3" in said
    check_same(found, whole)
    assert ("up to rounding, not bit for bit" in said) == (before != after)
    if before == after:
        jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)
        for name in whole.history:
            np.testing.assert_array_equal(found.history[name], whole.history[name], err_msg=name)
    kernels = (result.params["a"]["kernel"].sharding for result in (found, whole))
    assert len({str(sharding) for sharding in kernels}) == 1
