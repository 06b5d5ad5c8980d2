"""Replaying a recorded run: against Keras's callback objects, called one record after the other."""

import os
import time
from typing import Any

import numpy as np
from _case import Case, NotTheSame, Outcomes
from _race import Baton

RECORDS, PEER = 1_000_000, 100_000  # Keras's objects take minutes for a million
PATIENCE, FACTOR = 50, 0.9999
ONE_KERNEL = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=4096"


def recorded(records: int) -> dict[str, np.ndarray]:
    """Losses that fall slowly, with noise: the first ones of a million."""
    rng = np.random.default_rng(0)
    trend = 1 / np.log(np.arange(RECORDS) + 3)
    losses = {name: trend + rng.normal(0, 0.02, RECORDS) for name in ("loss", "val_loss")}
    return {name: values[:records].astype(np.float32) for name, values in losses.items()}


def _ours(records: int, flags: str = "") -> Any:
    def train(baton: Baton) -> dict[str, Any]:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        import jaxcb as jc

        callbacks = [
            jc.EarlyStopping(patience=records),
            jc.EarlyStopping("loss", patience=records, min_delta=0.001, name="Second"),
            jc.ReduceLROnPlateau(factor=FACTOR, patience=PATIENCE),
            jc.ModelCheckpoint("weights", save_best_only=True),
        ]
        source, seconds = recorded(records), []
        for _ in baton.each():
            began = time.perf_counter()
            jc.replay(callbacks, source)
            seconds.append(time.perf_counter() - began)
        found = jc.replay(callbacks, {name: values[:PEER] for name, values in source.items()})
        fired = [action for own in found.actions for action in own]
        return {
            "best": float(found.states["EarlyStopping"].best),
            "second": int(found.states["Second"].best_epoch),
            "cuts": sum(isinstance(a, jc.actions.ScaleLearningRate) for a in fired),
            "saves": sum(isinstance(a, jc.actions.Checkpoint) for a in fired),
            "measured": seconds[-1] / records * 1e6,
        }

    return train


def _keras(records: int) -> Any:
    def train(baton: Baton) -> dict[str, Any]:
        import keras
        from keras import callbacks as kc

        class Model:
            """What the callbacks ask of one."""

            def __init__(self) -> None:
                self.stop_training, self.optimizer, self.saves = False, keras.optimizers.SGD(1.0), 0
                self.cuts = 0

            def save(self, path: str, overwrite: bool = True) -> None:
                self.saves += 1

        class Plateau(kc.ReduceLROnPlateau):
            """Counts what it does."""

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                waited = self.wait
                super().on_epoch_end(epoch, logs)
                self.model.cuts += waited >= self.patience - 1 and self.wait == 0 and logs["val_loss"] > self.best

        source = {name: values.tolist() for name, values in recorded(records).items()}
        model = own = None
        seconds = []
        for _ in baton.each():
            began = time.perf_counter()
            model = Model()
            own = [
                kc.EarlyStopping("val_loss", patience=records),
                kc.EarlyStopping("loss", patience=records, min_delta=0.001),
                Plateau("val_loss", factor=FACTOR, patience=PATIENCE),
                kc.ModelCheckpoint("weights.keras", "val_loss", save_best_only=True),
            ]
            for callback in own:
                callback.set_model(model)
                callback.on_train_begin()
            for epoch, (loss, val_loss) in enumerate(zip(source["loss"], source["val_loss"], strict=True)):
                logs = {"loss": loss, "val_loss": val_loss}
                for callback in own:
                    callback.on_epoch_end(epoch, logs)
            seconds.append(time.perf_counter() - began)
        assert model is not None
        assert own is not None
        did = {"best": own[0].best, "second": own[1].best_epoch, "cuts": model.cuts, "saves": model.saves}
        return did | {"measured": seconds[-1] / records * 1e6}

    return train


def _same_decisions(outcomes: Outcomes) -> str:
    ours, *others = outcomes.values()
    if any(abs(ours[name] - own[name]) > 1e-6 for own in others for name in ours if name != "measured"):
        raise NotTheSame(f"decisions differ: {outcomes}")
    return f"same best values, {ours['cuts']:,} cuts of the rate and {ours['saves']} saves"


def _case(name: str, records: int, **more: Any) -> Case:
    return Case(
        name, f"replay of {records:,} records, four callbacks, a record (Keras: of {PEER:,})",
        {
            "jaxcb": _ours(records),
            "jaxcb, the loop as one kernel": _ours(records, ONE_KERNEL),
            "Keras's objects": _keras(PEER),
        },
        _same_decisions, against=("Keras's objects",), most=0.01, unit="µs", fresh=True, **more,
    )  # fmt: skip


CASES = [_case("replay", RECORDS, rounds=3), _case("replay-quick", PEER, rounds=1, quick=True)]
