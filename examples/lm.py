"""A small language model of bytes, trained on the source text of Python's standard library.

    python examples/lm.py --run-dir runs/lm

The data is an endless stream of random windows, so the run is counted in steps: 1000 of them, an epoch every 250, a
validation every 125 on modules that the model never saw. `val_bits_per_byte` is how many bits it needs for a byte of
them; how far one gets by counting bytes, or pairs of them, stands beside it. It is the moving average of the weights
that is validated, that writes a sample of text at each validation, and that is left at the end.
"""

import argparse
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxcb as jc

CONTEXT, WIDTH, HEADS, LAYERS = 64, 96, 4, 2


def read_texts() -> tuple[np.ndarray, np.ndarray]:
    """Returns the modules of the standard library for training, and every twelfth of them for validation, uint8."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    validation = paths[::12]
    training = [path for path in paths if path not in validation]
    train, held = (np.frombuffer(b"\n".join(p.read_bytes() for p in part), np.uint8) for part in (training, validation))
    return train, held


def windows(text: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Gives batches of random windows for ever, int32 (batch_size, CONTEXT + 1)."""
    rng = np.random.default_rng(seed)
    every = np.lib.stride_tricks.sliding_window_view(text, CONTEXT + 1)  # a view: nothing is copied
    while True:
        yield every[rng.integers(len(every), size=batch_size)].astype(np.int32)


class Block(nnx.Module):
    """Attention to what came before, and two dense layers, each added to its input."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """From bytes, int32 (rows, length), to logits of the byte that follows each, (rows, length, 256)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        small = nnx.initializers.normal(0.02)
        self.bytes = nnx.Embed(256, WIDTH, embedding_init=small, rngs=rngs)
        self.places = nnx.Embed(CONTEXT, WIDTH, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens):
        x = self.bytes(tokens) + self.places(jnp.arange(tokens.shape[1]))[None]
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.bytes.attend(self.norm(x))  # the same table reads and writes


def loss_fn(model, tokens):
    logits = model(tokens[:, :-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
    return loss, {"bits_per_byte": loss / jnp.log(2.0)}


@nnx.jit(static_argnames="length")
def continued(model, tokens, key, length: int):
    """Draws the bytes that follow `tokens`, int32 (CONTEXT,), a little more soberly than the model would."""

    def draw(tokens, key):
        new = jax.random.categorical(key, model(tokens[None])[0, -1] / 0.7)
        return jnp.append(tokens[1:], new), new

    return jax.lax.scan(draw, tokens, jax.random.split(key, length))[1]


class Sample(jc.Callback):
    """Prints at each validation a continuation of a text by the model."""

    prompt: bytes = jc.static()
    length: int = jc.static(default=200)

    def on_eval_end(self, state, metrics):
        return state, jc.actions.Call(self.show, {"bits": metrics["val_bits_per_byte"]})

    def show(self, run: jc.Run) -> None:
        start = jnp.asarray(np.frombuffer(self.prompt[-CONTEXT:], np.uint8), jnp.int32)
        drawn = continued(run.model, start, jax.random.key(run.step), self.length)
        text = bytes(np.asarray(drawn, np.uint8)).decode(errors="replace")
        lines = (self.prompt.splitlines()[-1].decode() + text).splitlines()
        print(f"--- a sample at step {run.step}, {run.logs['bits']:.2f} bits a byte:")
        print("\n".join(f"    {line.rstrip()[:100]}" for line in lines if line.strip()))


def baselines(training: np.ndarray, validation: np.ndarray) -> dict[str, float]:
    """Bits for a byte of the validation text, by how often each byte, and each pair, stands in the training text."""
    single = np.bincount(training, minlength=256) + 1.0
    pairs = np.bincount(training[:-1].astype(int) * 256 + training[1:], minlength=65536).reshape(256, 256) + 0.01
    return {
        "counting bytes": -np.log2(single / single.sum())[validation].mean(),
        "counting pairs": -np.log2(pairs / pairs.sum(axis=1, keepdims=True))[validation[:-1], validation[1:]].mean(),
    }


def main(run_dir: Path, steps: int, batch_size: int, seed: int) -> jc.Result:
    training, validation = read_texts()
    held_out = validation[: len(validation) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1).astype(np.int32)
    epoch = max(2, steps // 4)
    result = jc.fit(
        Transformer(nnx.Rngs(seed)),
        loss_fn,
        windows(training, batch_size, seed),
        optimizer=lambda learning_rate: optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, b2=0.99, weight_decay=0.1)
        ),
        learning_rate=optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps, 3e-4),
        steps=steps,
        steps_per_epoch=epoch,
        validation_data=held_out[:: len(held_out) // 128],
        validation_batch_size=64,
        callbacks=[
            jc.callbacks.ModelSummary(depth=2),
            jc.SwapEMAWeights(swap_on_epoch=True, decay=0.98),
            jc.callbacks.Throughput(tokens_per_example=CONTEXT, verbose=1),
            jc.TerminateOnNaN(),
            jc.CSVLogger("log.csv"),
            Sample(validation[-20_000:].tobytes().partition(b"\ndef ")[0] + b"\n\ndef "),
        ],
        run_dir=run_dir,
        seed=seed,
        metrics={"grad_norm": jc.probes.grad_norm(every=10)},
        execution=jc.Execution(eval_every=epoch // 2),
        checkpointing=jc.Checkpointing(overwrite=True),
    )
    reached = result.history["val_bits_per_byte"][-1]
    print(f"trained on {len(training):,} bytes of {sysconfig.get_path('stdlib')}, bits for a byte of other modules:")
    for name, bits in (baselines(training, validation) | {"this model": reached}).items():
        print(f"  {name:16} {bits:.2f}")
    print("files  " + ", ".join(str(path) for path in result.files))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=Path("runs/lm"), help="where the files go (%(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="updates (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="windows in a batch (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the data")
    main(**vars(parser.parse_args()))
