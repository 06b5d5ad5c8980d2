"""Trees packed as rows come back to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxcb._src.loop.compiled.record_buffer import TreePacker

DTYPES = (np.float32, np.int32, np.uint32, np.bool_, np.float16, np.uint8)
SHAPES = ((), (1,), (3,), (2, 3))


@st.composite
def trees(draw):
    leaves = draw(st.lists(st.tuples(st.sampled_from(DTYPES), st.sampled_from(SHAPES)), min_size=1, max_size=6))
    rows = draw(st.integers(1, 3))
    bits = np.random.default_rng(draw(st.integers(0, 2**16)))

    def array(dtype, shape):
        if dtype is np.bool_:
            return bits.integers(0, 2, (rows, *shape)).astype(bool)
        raw = bits.bytes(rows * int(np.prod(shape)) * np.dtype(dtype).itemsize)  # NaN with payloads among them
        return np.frombuffer(raw, dtype).reshape(rows, *shape)

    return {f"leaf{i}": array(*leaf) for i, leaf in enumerate(leaves)}, rows


@given(trees())
def test_what_is_packed_comes_back_to_the_last_bit(given_):
    tree, rows = given_
    packing = TreePacker(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree))
    each = [packing.row(jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), tree)) for i in range(rows)]
    packed = {name: jnp.stack([row[name] for row in each]) for name in each[0]}
    empty = packing.empty(rows)
    assert {name: (x.size, x.dtype) for name, x in packed.items()} == {n: (x.size, x.dtype) for n, x in empty.items()}
    assert len(packed) <= 3  # 32-bit words and truths in one, float16, uint8
    back = packing.unpack(jax.device_get(packed))
    for name, leaf in tree.items():
        assert (back[name].dtype, back[name].shape) == (leaf.dtype, leaf.shape)
        assert back[name].tobytes() == leaf.tobytes()
