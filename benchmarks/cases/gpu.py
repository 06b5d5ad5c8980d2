"""On an accelerator: a loop whose end is known on the device alone, against blocks of a fixed number of trips."""

import functools
from typing import Any

from _case import Case, same_losses
from _networks import NETWORKS
from _race import Baton

NETWORK = NETWORKS["32-32-10"]
BLOCK = 16


def _loop(kind: str) -> Any:
    """An epoch as a `while` with a dynamic end, or as blocks that a select freezes behind it."""

    def train(baton: Baton) -> dict[str, Any]:
        import _hand
        import jax
        import jax.numpy as jnp
        import numpy as np

        peer, order = _hand.Peer(NETWORK), _hand.order_of(NETWORK)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def run_epoch(params: Any, opt_state: Any, epoch: Any, steps: Any, training: Any, validation: Any) -> Any:
            index = order(epoch)

            def step(carry: Any) -> Any:
                i, params, opt_state, total = carry
                rows = jax.lax.dynamic_slice_in_dim(index, i * NETWORK.batch_size, NETWORK.batch_size)
                batch = jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), training)
                params, opt_state, numbers = peer.update(params, opt_state, batch)
                return i + 1, params, opt_state, total + numbers

            def frozen(_: Any, carry: Any) -> Any:
                return jax.tree.map(lambda new, old: jnp.where(carry[0] < steps, new, old), step(carry), carry)

            def block(carry: Any) -> Any:
                return jax.lax.fori_loop(0, BLOCK, frozen, carry)

            start = (jnp.int32(0), params, opt_state, jnp.zeros(2))
            body = block if kind == "blocks" else step
            steps_done, params, opt_state, total = jax.lax.while_loop(lambda carry: carry[0] < steps, body, start)
            return params, opt_state, jnp.concatenate([total / steps_done, peer.validate(params, validation)])

        for epoch in range(baton.total):
            peer.params, peer.opt_state, numbers = run_epoch(
                peer.params, peer.opt_state, np.int32(epoch), np.int32(NETWORK.steps), peer.training, peer.validation
            )
            peer.read(epoch, numbers, baton)
        return peer.did(baton.total)

    return train


CASES = [
    Case(
        "gpu-loop",
        f"32-32-10, a dynamic `while` against blocks of {BLOCK} trips frozen by select",
        {"dynamic while": _loop("while"), "frozen blocks": _loop("blocks")},
        same_losses(),
        epochs=NETWORK.epochs,
        backend="gpu",
    )
]
