"""On a GPU: blocks of steps against a loop that ends at any step, beside loops by hand; `make bench-gpu` runs them."""

import functools
from collections.abc import Callable
from typing import Any

from _case import Case, NotTheSame, Outcomes, same_losses
from _networks import NETWORKS
from _race import Baton

from cases._lazily import lazily

NAME = "784-1024-1024-10"
NETWORK = NETWORKS[NAME]
MEMBERS, EPOCHS = 16, 8  # of a sweep
ROUNDING = 5e-3  # of losses: a GPU multiplies float32 matrices as TF32, with other kernels in each program


def _blocks(**how: Any) -> dict[str, Callable[[Baton], dict[str, Any]]]:
    """jaxcb as it is, and with each kind of loop over the steps."""
    kinds = {"jaxcb": None, "jaxcb, dynamic loop": 0, **{f"jaxcb, blocks of {n}": n for n in (1, 8, 32)}}
    return {name: lazily("_ours", "contestant", NETWORK, block=block, **how) for name, block in kinds.items()}


def _swept(baton: Baton) -> dict[str, Any]:
    """Sixteen learning rates, as a sweep."""
    import jax
    import numpy as np
    import optax
    from _networks import loss_fn

    import jaxcb as jc

    training, validation = (jax.device_put(part) for part in NETWORK.data())
    found = None
    for _ in baton.each():
        found = jc.sweep(
            jax.device_put(NETWORK.params()), loss_fn, training, over={"optimizer.learning_rate": list(_rates())},
            optimizer=optax.adam, epochs=EPOCHS, batch_size=NETWORK.batch_size, validation_data=validation,
            validation_batch_size=NETWORK.validation_rows, verbose=0, strategy="vmap",
        )  # fmt: skip
    assert found is not None
    table = found.table()
    return {"steps": int(np.sum(table["steps"])), "best": [float(x) for x in table["best_val_loss"]]}


def _rates() -> Any:
    import numpy as np

    return np.geomspace(1e-4, 1e-3, MEMBERS).astype(np.float32)


def _vmapped(baton: Baton) -> dict[str, Any]:
    """The same as a batched scan by hand."""
    import _hand
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from _networks import loss_fn

    order = _hand.order_of(NETWORK)
    training, validation = (jax.device_put(part) for part in NETWORK.data())
    rates = jnp.asarray(_rates())

    def update(params: Any, opt_state: Any, rate: Any, batch: Any) -> Any:
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = optax.adam(rate).update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run_epoch(params: Any, opt_state: Any, epoch: Any, training: Any, validation: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            batch = jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), training)
            return jax.vmap(update, in_axes=(0, 0, 0, None))(*carry, rates, batch), None

        index = order(epoch).reshape(-1, NETWORK.batch_size)
        (params, opt_state), _ = jax.lax.scan(step, (params, opt_state), index)
        return params, opt_state, jax.vmap(lambda p: loss_fn(p, validation)[0])(params)

    best = np.full(MEMBERS, np.inf)
    for _ in baton.each():
        params = jax.tree.map(lambda x: jnp.broadcast_to(x, (MEMBERS, *x.shape)), NETWORK.params())
        opt_state = jax.vmap(optax.adam(1e-3).init)(params)
        best = np.full(MEMBERS, np.inf)
        for epoch in range(EPOCHS):
            params, opt_state, losses = run_epoch(params, opt_state, np.int32(epoch), training, validation)
            best = np.minimum(best, np.asarray(losses))
    return {"steps": MEMBERS * EPOCHS * NETWORK.steps, "best": best.tolist()}


def _same_members(outcomes: Outcomes) -> str:
    (ours, hand), steps = (outcome["best"] for outcome in outcomes.values()), {o["steps"] for o in outcomes.values()}
    worst = max(abs(a / b - 1) for a, b in zip(ours, hand, strict=True))
    if worst > 0.02 or len(steps) > 1:
        raise NotTheSame(f"the best losses differ by up to {worst:.1%}, the steps are {sorted(steps)}.")
    return f"{MEMBERS} best losses equal to {worst:.1%}, {steps.pop():,} steps"


CASES = [
    Case(
        "gpu-resident",
        f"{NAME}, resident, four callbacks, on a GPU",
        {**_blocks(), "scan by hand": lazily("_hand", "scan", NETWORK)},
        same_losses(rtol=ROUNDING),
        least=0.97,
        against=("scan by hand",),
        epochs=NETWORK.epochs,
        backend="gpu",
    ),
    Case(
        "gpu-streamed",
        f"{NAME}, streamed numpy batches, four callbacks, on a GPU",
        {
            **_blocks(streamed=True),
            "jit loop by hand": lazily("_hand", "steps", NETWORK, streamed=True),
            "chunked scan by hand": lazily("_hand", "chunks", NETWORK, 32),
        },
        same_losses(rtol=ROUNDING),
        least=0.95,
        against=("jit loop by hand", "chunked scan by hand"),
        epochs=NETWORK.epochs // 4,
        backend="gpu",
    ),
    Case(
        "gpu-saved",
        f"{NAME}, resident, five callbacks, on a GPU",
        {
            "jaxcb": lazily("_ours", "contestant", NETWORK, "five"),
            "scan by hand with Orbax": lazily("_hand", "scan", NETWORK, saves=True),
        },
        same_losses(rtol=ROUNDING),
        least=0.95,
        epochs=NETWORK.epochs,
        backend="gpu",
    ),
    Case(
        "gpu-sweep",
        f"{NAME}, {MEMBERS} learning rates, {EPOCHS} epochs as a whole run, on a GPU",
        {"jaxcb": _swept, "batched scan by hand": _vmapped},
        _same_members,
        least=0.8,
        backend="gpu",
    ),
]
