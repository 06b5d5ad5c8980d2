"""PyTorch Lightning as a contestant, with its own callbacks."""

import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from _networks import FOREVER, Network
from _race import Baton
from pytorch_lightning import callbacks as lc
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class _Module(pl.LightningModule):
    """The network, with the weights that the others start from."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for m, n in zip((1, *network.convolutions), network.convolutions, strict=False):
            layers += [nn.Conv2d(m, n, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2), _ChannelsLast(), nn.Flatten()]
        layers += [nn.Linear(*network.sizes)]
        self.net, self.rate = nn.Sequential(*layers), network.learning_rate
        weighted = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
        for layer, own in zip(weighted, network.params(), strict=True):
            w = own["w"].transpose(3, 2, 0, 1) if own["w"].ndim == 4 else own["w"].T
            layer.weight.data = torch.tensor(np.ascontiguousarray(w))
            layer.bias.data = torch.tensor(own["b"])

    def _measured(self, batch: Any, prefix: str) -> Any:
        x, y = batch
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        values = {f"{prefix}loss": loss, f"{prefix}accuracy": (logits.argmax(-1) == y).float().mean()}
        self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch: Any, index: int) -> Any:
        return self._measured(batch, "")

    def validation_step(self, batch: Any, index: int) -> None:
        self._measured(batch, "val_")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=FOREVER)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class _ChannelsLast(nn.Module):
    """The order in which the linear layer of the others sees its inputs."""

    def forward(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1)


def whole_runs(network: Network, *, epochs: int) -> Callable[[Baton], dict[str, Any]]:
    """A turn is a whole run: early stopping, plateau, checkpoint, CSV and TensorBoard, with the bar on."""

    def train(baton: Baton) -> dict[str, Any]:
        warnings.filterwarnings("ignore")
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        sets = [
            TensorDataset(torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.tensor(y.astype(np.int64)))
            for x, y in network.data()
        ]
        did: dict[str, Any] = {}
        for _ in baton.each():
            with tempfile.TemporaryDirectory() as directory:
                save = lc.ModelCheckpoint(
                    f"{directory}/saves", "{epoch}", monitor="val_accuracy", mode="max", save_top_k=1,
                    save_weights_only=True,
                )  # fmt: skip
                trainer = pl.Trainer(
                    accelerator="auto", max_epochs=epochs, enable_model_summary=False, num_sanity_val_steps=0,
                    logger=[CSVLogger(directory), TensorBoardLogger(directory)],
                    callbacks=[lc.EarlyStopping("val_loss", patience=FOREVER), save, lc.TQDMProgressBar()],
                )  # fmt: skip
                trainer.fit(
                    _Module(network),
                    DataLoader(sets[0], batch_size=network.batch_size, shuffle=True),
                    DataLoader(sets[1], batch_size=network.validation_rows),
                )
                found = {name: float(value) for name, value in trainer.callback_metrics.items()}
                did = {"steps": trainer.global_step, "loss": found["loss"], "accuracy": found["val_accuracy"]}
        return did

    return train
