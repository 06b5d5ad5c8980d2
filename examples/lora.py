"""LoRA: a transformer that reads upright digits learns turned ones, by a few per cent of its parameters.

    python examples/lora.py --run-dir runs/lora

A small transformer learns the digits, each image being eight tokens of a row of pixels. Then `nnx.LoRA` puts a product
of two thin matrices beside each linear layer, and `trainable=nnx.LoRAParam` trains these alone, on images that are
turned by a quarter. The rest is read-only: it has no gradients and no moments, is neither copied nor saved, and reads
upright digits as before. Beside it: the loop that one would write by hand, which ends with the same numbers.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _digits_data import load
from flax import nnx

import jaxcb as jc

WIDTH, HEADS, LAYERS = 64, 4, 2


class Block(nnx.Module):
    """Attention between all rows of an image, and two dense layers, each added to its input."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.qkv, self.out = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        heads = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        query, key, value = jnp.moveaxis(heads, 2, 0)
        x = x + self.out(jax.nn.dot_product_attention(query, key, value).reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """From images, (rows, 8, 8, 1), to logits of ten digits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed, self.places = nnx.Linear(8, WIDTH, rngs=rngs), nnx.Embed(8, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm, self.head = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, images):
        x = self.embed(images[..., 0]) + self.places(jnp.arange(8))[None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


def with_lora(model: Transformer, rank: int, seed: int) -> Transformer:
    """Returns a copy with a LoRA beside each linear layer of the blocks; at first it computes the same."""
    model, rngs = nnx.clone(model), nnx.Rngs(seed)
    for block in model.blocks:
        for name in ("qkv", "out", "up", "down"):
            layer = getattr(block, name)
            lora = nnx.LoRA(layer.in_features, rank, layer.out_features, base_module=layer, rngs=rngs)
            setattr(block, name, lora)
    return model


def loss_fn(model, batch):
    images, labels = batch
    logits = model(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}


def turned(part):
    """Turns the images by a quarter."""
    images, labels = part
    return np.ascontiguousarray(np.rot90(images, axes=(1, 2))), labels


def by_hand(model: Transformer, data, *, epochs: int, batch_size: int, rate: float) -> list[float]:
    """The loop that `trainable=` replaces. Trains the LoRA of `model` in place, and returns the loss of each epoch."""
    graph, lora, rest = nnx.split(model, nnx.LoRAParam, ...)
    tx = optax.adam(rate)
    state = tx.init(lora)

    @jax.jit
    def step(lora, state, batch):
        def loss(lora):
            return loss_fn(nnx.merge(graph, lora, rest), batch)[0]

        value, grads = jax.value_and_grad(loss)(lora)
        updates, state = tx.update(grads, state, lora)
        return optax.apply_updates(lora, updates), state, value

    losses = []
    for _ in range(epochs):
        total = 0.0
        for start in range(0, len(data[0]), batch_size):
            batch = tuple(jnp.asarray(part[start : start + batch_size]) for part in data)
            lora, state, value = step(lora, state, batch)
            total += float(value) * len(batch[0])
        losses.append(total / len(data[0]))
    nnx.update(model, lora)
    return losses


def size_of(directory: Path) -> int:
    """Bytes of all files in a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def main(run_dir: Path, epochs: int, base_epochs: int, rank: int, seed: int) -> dict[str, float]:
    training, validation, test = load()
    base = jc.fit(
        Transformer(nnx.Rngs(seed)),
        loss_fn,
        training,
        optimizer=optax.adam,
        learning_rate=2e-3,
        epochs=base_epochs,
        batch_size=64,
        validation_data=validation,
        callbacks=[jc.EarlyStopping(patience=10, restore_best_weights=True), jc.ModelCheckpoint("base")],
        seed=seed,
        run_dir=run_dir / "base",
        checkpointing=jc.Checkpointing(overwrite=True),
        verbose=0,
    ).model
    model, rate = with_lora(base, rank, seed + 1), 5e-3
    reference = with_lora(base, rank, seed + 1)
    result = jc.fit(
        model,
        loss_fn,
        turned(training),
        optimizer=optax.adam,
        learning_rate=rate,
        trainable=nnx.LoRAParam,
        epochs=epochs,
        batch_size=64,
        shuffle=False,  # the loop by hand takes the batches in order
        callbacks=[jc.callbacks.ModelSummary(verbose=0), jc.ModelCheckpoint("lora")],
        run_dir=run_dir / "lora",
        checkpointing=jc.Checkpointing(overwrite=True),
    )
    losses = by_hand(reference, turned(training), epochs=epochs, batch_size=64, rate=rate)
    reached = {
        "the base, upright digits": jc.evaluate(base, loss_fn, test)["accuracy"],
        "the base, turned digits": jc.evaluate(base, loss_fn, turned(test))["accuracy"],
        "its LoRA, turned digits": jc.evaluate(result.model, loss_fn, turned(test))["accuracy"],
        "the LoRA by hand, turned digits": jc.evaluate(reference, loss_fn, turned(test))["accuracy"],
    }
    for name, accuracy in reached.items():
        print(f"  {name:33}{accuracy:8.1%}")
    # the programs differ, so rounding does, and many steps let it grow
    difference = np.max(np.abs(result.history["loss"][:3] / np.asarray(losses[:3]) - 1))
    print(f"  losses of the first epochs, by jaxcb and by hand, differ by {difference:.1e}")
    small, large = size_of(run_dir / "lora" / "lora"), size_of(run_dir / "base" / "base")
    print(f"  a checkpoint of the LoRA has {small / 1024:.0f} KiB, one of the base {large / 1024:.0f} KiB")
    return reached | {"difference": float(difference)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=Path("runs/lora"), help="where the files go (%(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="of the LoRA (%(default)s)")
    parser.add_argument("--base-epochs", type=int, default=60, help="of the base, at most (%(default)s)")
    parser.add_argument("--rank", type=int, default=2, help="of the LoRA (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the data")
    main(**vars(parser.parse_args()))
