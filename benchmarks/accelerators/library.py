"""The program that jaxcb compiles for a run, obtained from `fit` itself."""

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
from targets import Target

from jaxcb._src.loop import run
from jaxcb._src.loop.compiled.device_state import DeviceState, StateForm
from jaxcb._src.loop.programs import RunPrograms
from jaxcb._src.sharding.placement import Placement


class _BuiltError(Exception):
    """Ends a run where it would begin to train."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver


def _stop(driver: Any, why: str, context: Any) -> None:
    driver.chunk = driver.feed.next(driver._pace.length, wait=True)
    driver.close()
    raise _BuiltError(driver)


def _shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _start(self: RunPrograms, train: Any, compile_first: Any = None) -> DeviceState:
    """Replaces `RunPrograms.start` on a mesh whose devices run nothing: the first loop state, as shapes."""
    del compile_first  # nothing compiles
    carry = jax.eval_shape(lambda train: self._first(train, self.settings, None), self.train)
    form = StateForm.of(carry)
    numbers, arrays, _ = form.split(jax.tree.leaves(jax.tree.map(_shape, carry, self.placement.carry_shardings(carry))))
    vector = jax.ShapeDtypeStruct((len(numbers),), "int32", sharding=self.placement.everywhere)
    return DeviceState([vector, *arrays], form)


def _everywhere(self: Placement, tree: Any) -> Any:
    return jax.tree.map(lambda x: _shape(x, self.everywhere), tree)


def _batch(self: Placement, tree: Any, *, axis: int = 0) -> Any:
    return jax.tree.map(lambda x: _shape(x, self.batch_sharding(axis)), tree)


# Methods of the library -> what takes their places, where the devices of a mesh run nothing.
ON_A_MESH = {
    (Placement, "put_everywhere"): _everywhere,
    (Placement, "put_batch"): _batch,
    (RunPrograms, "start"): _start,
}


def _driver(fit: Callable[[], Any], target: Target) -> Any:
    """Returns the driver of a run that is built and does not train.

    Args:
        fit: calls `jc.fit` or `jc.sweep`, with the mesh of the target.
        target: the devices. On a mesh all arrays are shapes, since its devices hold none.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(run, "_train", _stop))
        # where executor and blocks are chosen, as on a machine with these devices
        stack.enter_context(mock.patch.object(Placement, "platform", target.backend))
        if target.mesh is not None:
            for (owner, name), function in ON_A_MESH.items():
                stack.enter_context(mock.patch.object(owner, name, function))
        try:
            fit()
        except _BuiltError as built:
            return built.driver
    raise RuntimeError("fit returned without building a run.")


def traced(fit: Callable[[], Any], target: Target) -> Any:
    """Returns the traced program of a chunk of steps, as the run would compile it.

    Args:
        fit: calls `jc.fit` or `jc.sweep`, with the mesh of the target.
        target: the devices.
    """
    driver = _driver(fit, target)
    device = driver.device
    inputs = device.inputs_of(driver.chunk, driver._host_metrics.read(0), 1)
    if target.mesh is not None:
        # JAX's own arrays are those that a dispatch transfers: key, settings and numbers
        own = Placement(target.mesh).everywhere
        inputs = jax.tree.map(lambda x: x if isinstance(x, jax.ShapeDtypeStruct) else _shape(x, own), inputs)
    leaves, inputs = target.place((device.live.leaves, inputs))
    live = DeviceState(leaves, device.live.form)
    function = device.executor._chunk._kept_function(live, tuple(range(len(leaves))))
    return function._trace(function._options(), (leaves, [None] * len(leaves), live.frozen, inputs))
