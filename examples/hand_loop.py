"""Callbacks in loops of your own: a Python loop, and the same one compiled as a whole.

    python examples/hand_loop.py

A callback is a pair of pure functions, `init` and a transition `(state, metrics) -> (state, actions)`, so it
runs wherever JAX code runs. Only the loop differs here; step, callbacks and outcome are the same.
"""

import jax
import jax.numpy as jnp
import optax

import jaxcb as jc

EPOCHS = 200
CALLBACKS = jc.chain(
    jc.EarlyStopping(patience=6, restore_best_weights=True),
    jc.ReduceLROnPlateau(factor=0.3, patience=2),
)


def make_data(seed: int, rows: int = 64):
    x_key, noise_key = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(x_key, (rows, 16))
    return x, x @ jnp.linspace(-1.0, 1.0, 16) + 0.5 * jax.random.normal(noise_key, (rows,))


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


TRAIN, VALIDATION = make_data(1), make_data(2)
BATCHES = jax.tree.map(lambda a: a.reshape(8, 8, *a.shape[1:]), TRAIN)  # 8 batches of 8 rows


def new_state() -> jc.TrainState:
    """`adjustable_lr` lets callbacks change the rate; `callbacks=` makes room for the best weights."""
    params = {"w": jnp.zeros(16), "b": jnp.zeros(())}
    return jc.TrainState.create(params=params, tx=jc.adjustable_lr(optax.sgd, learning_rate=0.1), callbacks=CALLBACKS)


def train_step(state: jc.TrainState, batch):
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
    return state.apply_gradients(grads), loss


def close_epoch(state: jc.TrainState, callback_state, epoch):
    """Validates, asks the callbacks, and does what they say."""
    metrics = jc.Metrics({"val_loss": loss_fn(state.params, VALIDATION)}, step=state.step, epoch=epoch)
    callback_state, actions = CALLBACKS.on_epoch_end(callback_state, metrics)
    return jc.apply(actions, state), callback_state, metrics, actions


def close_run(state: jc.TrainState, callback_state, metrics):
    """Calls the last hook, which restores the best weights."""
    callback_state, actions = CALLBACKS.on_train_end(callback_state, metrics)
    return jc.apply(actions, state), callback_state


def python_loop():
    """Compiled parts in a Python loop: here there is a host, which can read and print."""
    step, close = jax.jit(train_step), jax.jit(close_epoch)
    state, callback_state, metrics = new_state(), CALLBACKS.init(), None
    for epoch in range(EPOCHS):
        for i in range(8):
            state, _ = step(state, jax.tree.map(lambda a, i=i: a[i], BATCHES))
        state, callback_state, metrics, actions = close(state, callback_state, epoch)
        fired = jc.fired(actions)
        names = ", ".join(type(action).__name__ for action in fired)
        print(f"  epoch {epoch + 1:2}: val_loss {metrics['val_loss']:.4f}  {names}")
        if jc.stop_requested(actions):
            print(
                *(f"  {a.owner}: {jc.actions.fill(a, epoch=epoch)}" for a in fired if isinstance(a, jc.actions.Stop)),
                sep="\n",
            )
            break
    return close_run(state, callback_state, metrics)


@jax.jit
def compiled_loop():
    """The whole run as one program: batches in a `scan`, epochs in a `while_loop`, nothing on the host."""

    def one_epoch(carry):
        state, callback_state, _, epoch = carry
        state, _ = jax.lax.scan(train_step, state, BATCHES)
        state, callback_state, metrics, _ = close_epoch(state, callback_state, epoch)
        return state, callback_state, metrics, epoch + 1

    def goes_on(carry):
        state, *_, epoch = carry
        return ~state.stop & (epoch < EPOCHS)

    start = one_epoch((new_state(), CALLBACKS.init(), None, 0))
    state, callback_state, metrics, _ = jax.lax.while_loop(goes_on, one_epoch, start)
    return close_run(state, callback_state, metrics)


def main() -> tuple[jc.TrainState, jc.TrainState]:
    ends = []
    for name, loop in {"a Python loop": python_loop, "a compiled loop": compiled_loop}.items():
        print(f"{name}:")
        state, callback_state = loop()
        memory = callback_state["EarlyStopping"]
        print(f"  {int(state.step)} steps; best val_loss {memory.best:.4f} in epoch {int(memory.best_epoch) + 1}")
        print(f"  val_loss of the weights at the end: {loss_fn(state.params, VALIDATION):.4f}")
        ends.append(state)
    return ends[0], ends[1]


if __name__ == "__main__":
    main()
