"""`Loop`: the compiled loop around a step of the user's own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import AsCallback, as_chain
from jaxcb._src.loop.config import RunArguments
from jaxcb._src.loop.result import Result
from jaxcb._src.loop.run import run_training
from jaxcb._src.training.probes import Probe
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.local_path import local_path


class Loop:
    """A compiled training loop around your own step, with callbacks.

    Args:
        train_step: `(train_state, batch) -> (train_state, metrics)`, pure; metrics is a dict of names to
            arrays. `Step(loss_fn)` is one that also serves `on_before_update`.
        eval_step: `(train_state, batch) -> metrics`, for validation.
        callbacks: callbacks in the order in which their actions apply.

    Example:
        >>> import jaxcb as jc, jax, jax.numpy as jnp, optax
        >>> def train_step(state, batch):
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.mean((batch @ p - 1.0) ** 2))(state.params)
        ...     return state.apply_gradients(grads), {"loss": loss}
        >>> state = jc.TrainState.create(params=jnp.zeros(2), tx=optax.sgd(0.1))
        >>> loop = jc.Loop(train_step, callbacks=[jc.TerminateOnNaN()])
        >>> result = loop.run(state, jnp.ones((8, 2)), epochs=5, batch_size=4, verbose=0)
        >>> int(result.state.step), result.history["loss"].shape
        (10, (5,))
    """

    def __init__(
        self,
        train_step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]],
        eval_step: Callable[[TrainState, Any], Mapping[str, Any]] | None = None,
        *,
        callbacks: Sequence[Callback | AsCallback] | Callback | AsCallback | None = (),
    ) -> None:
        if not callable(train_step):
            raise TypeError(f"train_step must be a function of (train_state, batch), got {type(train_step).__name__}.")
        self.train_step, self.eval_step = train_step, eval_step
        self.callbacks = as_chain(callbacks)

    def run(
        self,
        train_state: TrainState,
        train_data: Any,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        steps_per_epoch: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        remainder: str = "train",
        resident: bool | str = "auto",
        validation_data: Any = None,
        validation_freq: int | Sequence[int] = 1,
        eval_every: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        probes: Mapping[str, Probe] | None = None,
        evaluators: Mapping[Any, Callable[[Any], Any]] | None = None,
        host_metrics: Mapping[str, Callable[[], Any]] | None = None,
        seed: int = 0,
        run_dir: str | Path | None = None,
        resume: bool | str = False,
        overwrite: bool = False,
        on_save_error: str = "raise",
        steps_per_execution: int | str = "auto",
        executor: str = "auto",
        mesh: Mesh | None = None,
        sharding: Any = None,
        verbose: int | str = "auto",
        debug: bool = False,
        fast_dev_run: int | bool = False,
    ) -> Result:
        """Trains.

        Args:
            train_state: the state to start from; its arrays stay valid.
            train_data: a pytree of arrays with a common leading axis, kept on the device; or an iterable of
                batches (a list is one), walked anew each epoch.
            epochs: how many epochs to train.
            steps: how many updates to do; with `epochs`, whichever comes first.
            steps_per_epoch: steps of an epoch; one pass over the data where None.
            batch_size: rows of a batch, for arrays; 32 where None.
            shuffle: whether arrays get a new order each epoch, drawn from `seed` and the epoch.
            remainder: "train" on a smaller last batch, or "drop" it.
            resident: whether arrays stay on the devices, whole on each; "auto" where they take no more than half of the
                memory that is left there. Otherwise the host gathers each batch; the batches are the same.
            validation_data: as `train_data`, or a dict of named sets.
            validation_freq: validate every n-th epoch, or after the listed (1-based) epochs.
            eval_every: validate every n steps instead, and at the end.
            validation_steps: at most that many validation batches.
            validation_batch_size: rows of a validation batch; `batch_size` where None.
            probes: name -> `probe(fn, every=...)`: looks inside the step, for which the train_step must be a `Step`.
            evaluators: name -> `fn(model)`, run by the host at each validation; a tuple of names for as many results.
            host_metrics: name -> function of nothing that returns a number, read between two calls of the compiled
                loop.
            seed: of the data's order.
            run_dir: where the run's files go. The run is saved there at least every 60 seconds, and at its end.
            resume: "auto" goes on with the run that is in `run_dir`, where there is one: it then ends as if it had
                never been cut short. A run that has come to its end returns its result at once.
            overwrite: whether a run that is in `run_dir` may be replaced.
            on_save_error: "raise" or "warn" where the run cannot be saved.
            steps_per_execution: steps of one call of the compiled loop; "auto" measures.
            executor: "auto", "looped" or "stepped".
            mesh: the devices to train on, such as `jax.make_mesh((jax.device_count(),), ("data",))`; the default one
                where None. `batch_size` is that of all of them together. See docs/devices.md.
            sharding: how the train state is split over the mesh: "fsdp" by size; "replicated"; a dict of path patterns
                to `PartitionSpec`, such as `{"**/kernel": P(None, "model")}`; by the model's own partition metadata,
                where it has any, where None.
            verbose: "auto" for a bar on a terminal and lines elsewhere, 0, 1 for the bar, 2 for lines.
            debug: run step by step without compiling, so that pdb and print work, and stop at the first NaN, naming
                step and leaf. The functions are first called once with shapes alone.
            fast_dev_run: try everything on that many batches (True for one), and leave no files.

        Returns:
            A `Result`.

        Raises:
            ValueError: for arguments that do not fit together.
            DataError: for data that cannot be trained on.
            MissingMetricError: for a monitor that no step reports.
        """
        if not isinstance(train_state, TrainState):
            raise TypeError(
                f"Loop.run takes a TrainState, such as jc.TrainState.create(params=..., tx=...), got a "
                f"{type(train_state).__name__}."
            )
        if run_dir is not None:
            run_dir = local_path("Loop.run", "run_dir", run_dir)
        given = [train_state]
        del train_state  # see `run_training`
        return run_training(
            self.train_step,
            self.eval_step,
            self.callbacks,
            given.pop(),
            train_data,
            RunArguments(
                epochs=epochs,
                steps=steps,
                steps_per_epoch=steps_per_epoch,
                batch_size=batch_size,
                shuffle=shuffle,
                remainder=remainder,
                resident=resident,
                validation_data=validation_data,
                validation_freq=validation_freq,
                eval_every=eval_every,
                validation_steps=validation_steps,
                validation_batch_size=validation_batch_size,
                probes=probes,
                evaluators=evaluators,
                host_metrics=host_metrics,
                seed=seed,
                run_dir=run_dir,
                resume=resume,
                overwrite=overwrite,
                on_save_error=on_save_error,
                steps_per_execution=steps_per_execution,
                executor=executor,
                mesh=mesh,
                sharding=sharding,
                verbose=verbose,
                debug=debug,
                fast_dev_run=fast_dev_run,
            ),
        )
