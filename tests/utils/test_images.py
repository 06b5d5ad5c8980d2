"""Arrays as pictures."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxcb._src.utils.images import as_picture

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)
NUMBERS = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=12, deadline=None)
@given(hnp.arrays(np.float32, SHAPES, elements=NUMBERS))
def test_the_smallest_value_is_black_and_the_largest_white(values):
    picture = np.asarray(as_picture(values))
    assert picture.ndim == 2
    assert picture.min() == 0
    assert picture.max() == (255 if values.max() > values.min() else 0)
    if values.ndim <= 2:
        assert picture.size == values.size
        assert sorted(picture.ravel()) == sorted(np.asarray(as_picture(values.ravel())).ravel())


def test_filters_stand_side_by_side():
    kernel = np.zeros((3, 2, 4, 5), np.float32)  # height, width, inputs, outputs
    kernel[1, 0, 2, 3] = 1.0
    picture = np.asarray(as_picture(kernel))
    assert picture.shape == (4 * (3 + 1) - 1, 5 * (2 + 1) - 1)
    assert np.argwhere(picture == 255).tolist() == [[2 * 4 + 1, 3 * 3 + 0]]


def test_what_is_not_finite_is_black():
    assert as_picture(np.array([np.nan, -1.0, np.inf, 1.0], np.float32)).tolist() == [[0, 0, 0, 255]]


@pytest.mark.parametrize("shape", [(3000, 3), (3, 3000), (600, 700)])
def test_large_arrays_are_sampled(shape):
    picture = jax.eval_shape(lambda x: as_picture(x, largest=512), jax.ShapeDtypeStruct(shape, np.float32))
    assert max(picture.shape) == 512
