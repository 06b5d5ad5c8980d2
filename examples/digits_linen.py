"""Handwritten digits with Flax Linen: another network, and all else as in `digits.py`.

    python examples/digits_linen.py --run-dir runs/digits_linen

`jc.linen` initialises the module and makes it a model that is called as `model(x)`: parameters, batch
statistics, dropout keys and the `train` argument are passed for the loss function, so it stays the same.
"""

from _digits_data import load
from digits import arguments, train
from flax import linen as nn

import jaxcb as jc


class CNN(nn.Module):
    """Two convolutions and a linear layer, with batch normalisation and dropout."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(32, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Conv(64, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


if __name__ == "__main__":
    options = arguments(run_dir="runs/digits_linen")
    (images, _), _, _ = load()
    train(jc.linen(CNN(), images[:1], seed=options["seed"]), **options)
