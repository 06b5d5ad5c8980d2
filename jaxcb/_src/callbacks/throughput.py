"""`Throughput`: logs how fast a run trains."""

from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jax import Array

from jaxcb._src.core.actions.logging import Print
from jaxcb._src.core.actions.tensorboard import Scalars
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_interval, check_number, check_verbose
from jaxcb._src.utils.pytree import static


class Throughput(Callback):
    """Logs steps, examples and tokens per second, the model's FLOPs utilization and the device's memory.

    The rates are those of the last dispatched chunk of steps whose end the host has seen, without validation and
    compilation; measuring never waits for the device. They are curves in TensorBoard under `throughput/`. The averages
    of the whole run are a point each, under `throughput/run_`: all that a run has that ends within its first chunk.

    Args:
        every: "epoch", or a number of steps.
        tokens_per_example: tokens per row of a batch; None for no token rate.
        peak_flops: peak FLOPs per second of the run's devices together; None to look up known devices, at dense
            bfloat16. The utilization (MFU) is the FLOPs of a step, as XLA counts them, with loops such as scanned
            layers as often as they run, divided by the peak FLOPs of its duration.
        verbose: 1 prints a line at each report, and the averages of the whole run at its end.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import jaxcb as jc
        >>> seen = {"steps_per_second": 50.0, "examples_per_step": 32, "step_flops": 1e9,
        ...         "peak_flops": 1e12, "device_memory": 0, "elapsed": 1.0}
        >>> _, actions = jc.callbacks.Throughput().on_epoch_end((), jc.Metrics({}, host=seen))
        >>> round(float(actions[1].values["throughput/mfu"]), 3)
        0.05

    Source: PaLM (Chowdhery et al. 2022), appendix B, for the utilization.
    """

    logs_only: ClassVar[bool] = True

    every: int | Literal["epoch"] = static(default="epoch")
    tokens_per_example: Any = None
    peak_flops: Any = None
    verbose: int = static(default=0)

    def __post_init__(self) -> None:
        self._set("every", check_interval("Throughput", "every", self.every))
        check_verbose("Throughput", self.verbose)
        for name in ("tokens_per_example", "peak_flops"):
            if getattr(self, name) is not None:
                self._set(name, check_number("Throughput", name, getattr(self, name), least=0))
        if self.peak_flops == 0:
            raise ValueError("Throughput: peak_flops must be above 0, got 0. Leave it out for that of the device.")

    def hooks(self) -> frozenset[str]:
        hooks = {"on_epoch_end" if self.every == "epoch" else "on_batch_end"}
        return frozenset(hooks | {"on_train_end"})

    def on_batch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, self._report(metrics, metrics.step % self.every == 0)

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, self._report(metrics, jnp.ones((), bool))

    def on_train_end(self, state: Any, metrics: Metrics) -> Any:
        rates = self._rates(metrics, metrics.step.astype(jnp.float32) / metrics["elapsed"])
        known = metrics["elapsed"] > 0
        # also for a run that is over before one of its chunks was measured
        actions: list[Any] = [Scalars({f"throughput/run_{name}": rate for name, rate in rates.items()}, when=known)]
        if self.verbose:
            text = "Whole run, with compilation and validation: " + _line(rates)
            actions.append(Print(text, values=rates, when=known))
        return state, tuple(actions)

    def _report(self, metrics: Metrics, due: Array) -> Any:
        rates = self._rates(metrics, metrics["steps_per_second"])
        peak = metrics["peak_flops"] if self.peak_flops is None else self.peak_flops
        mfu = metrics["steps_per_second"] * metrics["step_flops"] / peak
        memory = metrics["device_memory"]
        known = due & jnp.isfinite(metrics["steps_per_second"])
        actions: list[Any] = [
            Scalars({f"throughput/{name}": rate for name, rate in rates.items()}, when=known),
            Scalars({"throughput/mfu": mfu}, when=known & jnp.isfinite(mfu)),
            Scalars({"throughput/device_memory": memory}, when=due & jnp.isfinite(memory)),
        ]
        if self.verbose:
            actions.append(Print("Epoch {epoch}, step {step}: " + _line(rates), values=rates, when=known))
        return tuple(actions)

    def _rates(self, metrics: Metrics, steps_per_second: Array) -> dict[str, Array]:
        rates = {
            "steps_per_second": steps_per_second,
            "examples_per_second": steps_per_second * metrics["examples_per_step"],
        }
        if self.tokens_per_example is not None:
            rates["tokens_per_second"] = rates["examples_per_second"] * self.tokens_per_example
        return rates


def _line(rates: dict[str, Array]) -> str:
    return ", ".join(f"{{{name}:,.1f}} {name.split('_')[0]}/s" for name in rates)
