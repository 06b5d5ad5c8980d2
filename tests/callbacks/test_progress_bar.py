"""ProgressBar: figures for the display, nothing where it is silent."""

import pytest

import jaxcb as jc


def test_carries_the_figures(play):
    (((progress,)),) = play(jc.ProgressBar(verbose=2), loss=[0.5]).actions
    assert float(progress.values["loss"]) == 0.5
    assert progress.verbose == 2


def test_silent(play):
    assert play(jc.ProgressBar(verbose=0), loss=[0.5]).actions == [()]


def test_verbose_is_checked():
    with pytest.raises(ValueError, match="verbose must be one of None, 0, 1, 2, got 3"):
        jc.ProgressBar(verbose=3)
