"""`RunPrograms`: the programs of a run, traced only if no earlier run has traced the same."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.checkpointing.request import traced_facts
from jaxcb._src.core.actions.base import HostAction, LogAction
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.actions.utils import is_lazy
from jaxcb._src.core.callback import STEP_HOOKS, Callback
from jaxcb._src.core.chain import Chain
from jaxcb._src.data.spec import DataSpec
from jaxcb._src.data.validation import HostSet, ResidentSet
from jaxcb._src.inspection.traced_step import TracedStep
from jaxcb._src.loop.compiled.device_state import DeviceState, StateForm, StatePacking
from jaxcb._src.loop.compiled.executor import Executor
from jaxcb._src.loop.compiled.member_map import Over
from jaxcb._src.loop.compiled.position import EvalSchedule
from jaxcb._src.loop.compiled.program import Program
from jaxcb._src.loop.compiled.program_spec import EvalSet, ProgramSpec, ValidationPlan, plan_program
from jaxcb._src.loop.compiled.record_buffer import RecordBuffers, buffer_limits
from jaxcb._src.loop.compiled.scan import Looped
from jaxcb._src.loop.compiled.state import LoopState, initial_state, owned
from jaxcb._src.loop.compiled.stepwise import Stepped
from jaxcb._src.loop.compiled.traced_functions import MemberMapping, RunFunctions, TracedFunctions
from jaxcb._src.loop.host.population import Population
from jaxcb._src.sharding.placement import Placement
from jaxcb._src.training.learning_rate import LearningRate, map_learning_rates
from jaxcb._src.training.probes import Probe
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.flat_jit import eval_shape
from jaxcb._src.utils.kept_programs import KeptFunction, KeptProgram, kept_program
from jaxcb._src.utils.program_key import NoProgramKey, Reference, key_of, tree_key
from jaxcb._src.utils.pytree import on_device, to_strong_types
from jaxcb._src.utils.xla import fast_compile_options


class Reported(NamedTuple):
    """What a run reports besides the metrics of its steps.

    Attributes:
        schedule: when to validate.
        probes: name -> probe.
        host_values: names of the validation metrics that the host computes.
        host_names: names of the host metrics.
    """

    schedule: EvalSchedule
    probes: Mapping[str, Probe]
    host_values: tuple[str, ...]
    host_names: tuple[str, ...]


@dataclass
class RunPrograms:
    """The programs of a run: everything that they depend on, and what tracing them finds.

    Facts and compiled functions are looked up in the kept program first. Tracing uses the functions of this run.

    Attributes:
        functions: steps and callbacks.
        train: shapes of the train state that the run starts from; for a population with a leading member axis.
        data: the training data.
        sets: prefix -> validation set.
        reported: what the run reports besides the metrics of its steps.
        population: configuration of a population; None for a single run.
        placement: shardings of a single run.
        debug: whether to check for NaN at every step.
    """

    functions: RunFunctions
    train: TrainState
    data: DataSpec
    sets: Mapping[str, ResidentSet | HostSet]
    reported: Reported
    population: Population | None
    placement: Placement
    debug: bool

    def __post_init__(self) -> None:
        callbacks, resident = self.functions.callbacks, []
        self.settings = jax.tree.leaves(to_strong_types(callbacks))
        self._tree = jax.tree.structure(callbacks)
        self.members = None if self.population is None else self.population.size
        key = self.data.key
        self.batch_axis = 0 if key is not None and jnp.ndim(key) and self.data.layout.shuffle else None
        for prefix, own in self.sets.items():
            if isinstance(own, ResidentSet):
                resident.append(EvalSet(prefix, own.rows, own.batch_size))
        fed = tuple(prefix for prefix, own in self.sets.items() if not isinstance(own, ResidentSet))
        self.validation = ValidationPlan(self.reported.schedule, tuple(resident), fed, self.reported.host_values)
        self._traced: dict[Any, TracedFunctions] = {}
        self.kept: KeptProgram = kept_program(self._key)

    def _key(self) -> Any:
        """Returns everything that the programs depend on, besides the shapes of their further arguments.

        Numbers of callbacks, a constant learning rate, seeds, lengths and the run directory are missing on purpose:
        they are arguments, or known to the host alone. Executor and strategy are in the names of the functions.
        """
        return tree_key(self.functions.callbacks), self._common_key()

    def _traced_key(self, spec: ProgramSpec) -> Any:
        """Returns everything that the programs depend on once the hooks were traced.

        Static fields of callbacks count as far as they change a trace, an action that acts on the device, or what is
        computed for one. Other actions are shapes; their paths, texts and functions are for the host.
        """
        hooks = spec.hooks.items()
        # a hook of a population sees the number of rows, so it is another function after a compaction
        sees_rows = bool(self.traced(self.members).populations)
        if self._wraps_optimizer or sees_rows or any(own.trace is None for _, own in hooks):
            raise NoProgramKey
        # `equal` decides how rows are packed; it tells nested functions apart that compute the same
        traces = tuple(
            (hook, own.trace, own.equal, own.never, tuple(map(_action_key, own.actions))) for hook, own in hooks
        )
        states, slots = tree_key(self._prepared[1]), tuple(sorted(self.functions.callbacks.slots().items()))
        return traces, slots, states, tree_key(self.settings), self._common_key()

    def _common_key(self) -> Any:
        """Returns the key of everything but the callbacks."""
        data, population, reported = self.data, self.population, self.reported
        functions = (self.functions.step, self.functions.eval_step, tuple(reported.probes.items()))
        choices = (reported.schedule, reported.host_values, reported.host_names, self.debug, buffer_limits())
        return (
            key_of(functions),
            key_of(choices),
            tree_key((self.train, data.example)),
            tuple((prefix, type(own), own.layout_key, tree_key(own.example)) for prefix, own in self.sets.items()),
            (data.layout, None if data.key is None else jnp.ndim(data.key)),
            None if population is None else (population.size, population.axes, population.frozen_axis),
            key_of((self.placement, self.placement.devices_key), mutable=True),
        )

    # The program

    def traced(self, members: int | None, over: Over = jax.vmap) -> TracedFunctions:
        """Returns the functions for a number of members; all programs of the run call the same ones.

        Args:
            members: size of the member axis; None for a single run.
            over: maps a step over the members.
        """
        if (members, over) not in self._traced:
            axes = None if self.population is None else jax.tree.unflatten(self._tree, list(self.population.axes))
            frozen_axis = None if self.population is None else self.population.frozen_axis
            mapping = MemberMapping(members, over, self.batch_axis, axes, self.placement, frozen_axis)
            self._traced[members, over] = TracedFunctions(
                self.functions, self.reported.probes, mapping, debug=self.debug
            )
        return self._traced[members, over]

    def spec(self, members: int | None) -> ProgramSpec:
        """Returns what is known of the program for a number of members. Traces hooks and steps if they are new."""
        spec = self.kept.own_fact(("spec", members), lambda: self._plan(members))
        if members == self.members and not self.kept.is_reused:
            self.kept.share(lambda: self._traced_key(spec))
        return spec

    def _plan(self, members: int | None) -> ProgramSpec:
        state, states = self._prepared
        settings = self.settings
        if members != self.members:  # shapes only: any rows of the right number serve
            assert self.population is not None
            axes, frozen = self.population.axes, state.frozen
            state, states = _with_rows((state, states), members)
            if self.population.frozen_axis is None:
                state = state.replace(frozen=frozen)
            settings = [x if axis is None else x[:members] for x, axis in zip(settings, axes, strict=True)]
        examples = {prefix: self.placement.shapes(own.example) for prefix, own in self.sets.items()}
        names, batch = self.reported.host_names, self.batch(members)
        return plan_program(self.traced(members), self.validation, names, state, states, settings, batch, examples)

    def executor(
        self, kind: str, members: int | None, over: Over, placement: Placement, block: int | None = None
    ) -> Executor:
        """Returns an executor, whose functions compile when they are called first.

        Args:
            kind: "looped" or "stepped".
            members: size of the member axis; None for a single run.
            over: maps a step over the members.
            placement: the devices; for a population those of its strategy.
            block: steps of a block of the looped executor; None for a loop that ends at any step.
        """
        layout = self.data.layout_for(stacked=kind == "looped")
        program = Program(self.traced(members, over), self.spec(members), self.validation, layout, block)
        return (Looped if kind == "looped" else Stepped)(program, self.kept, placement)

    def batch(self, members: int | None) -> Any:
        """Returns the shapes of a batch, with a member axis if each member has its own."""
        example = self.placement.shapes(self.data.example)
        return example if self.batch_axis is None else _with_axis(example, members)

    @functools.cached_property
    def _prepared(self) -> tuple[TrainState, Any]:
        """The shapes of the train state with its named weights and optimizer state, and of the callbacks' states."""
        return self.placement.shapes(eval_shape(self._with_callbacks, self.train, self.settings))

    def _with_callbacks(self, train: TrainState, settings: list[Any]) -> tuple[TrainState, Any]:
        """Returns the train state prepared for the run, and the callbacks' states. Traced."""

        def one(settings: list[Any], train: TrainState) -> tuple[TrainState, Any]:
            return prepared_state(train, jax.tree.unflatten(self._tree, settings))

        frozen, train = train.frozen, train.replace(frozen=None)
        if self.population is not None:
            one = jax.vmap(one, in_axes=(list(self.population.axes), 0))
        state, states = one(settings, train)
        return state.replace(frozen=frozen), states

    def step_capacity(self, spec: ProgramSpec) -> int:
        """Returns the steps whose records the buffers can hold."""
        return RecordBuffers(spec.hooks).capacity_of(STEP_HOOKS)

    # What is known of the step

    def traced_step(self) -> TracedStep:
        """Returns the traced step, with the location of its metrics."""
        return self.traced(self.members).traced(self._prepared[0], self.batch(self.members))

    def jaxpr(self) -> Any:
        """Returns the traced step as a jaxpr."""
        return self.traced(self.members).jaxpr(self._prepared[0], self.batch(self.members))

    def flops(self) -> float:
        """Returns the floating point operations of a step."""

        def count() -> float:
            before_update = self.spec(self.members).actions_of("on_before_update")
            return self.traced(self.members).flops(self._prepared[0], self.batch(self.members), before_update)

        return self.kept.fact("flops", count)

    def traced_facts(self) -> dict[str, Any]:
        """Returns facts about loss function and optimizer by their jaxprs, which the checkpoints of the run contain."""

        def find() -> dict[str, Any]:
            state = self._prepared[0]
            if self.population is not None:
                shared = self.population.frozen_axis is None
                state = _without_axis(state).replace(frozen=state.frozen if shared else _without_axis(state.frozen))
            step, batch = self.functions.step, self.placement.shapes(self.data.example)
            found, layout = traced_facts(step, state, batch, self.placement.with_mesh), self.placement.layout_text()
            return {name: {**fact, "layout": layout} for name, fact in found.items()}

        return self.kept.own_fact("traced facts", find)

    @property
    def _wraps_optimizer(self) -> bool:
        """Whether a callback changes the train state before the run."""
        return any(type(callback).setup is not Callback.setup for callback in self.functions.callbacks.callbacks)

    # The first loop state

    def start(self, train: TrainState, compile_first: Callable[[DeviceState], None] | None = None) -> DeviceState:
        """Returns the loop state before the first step, with copies of the arrays of a train state.

        A constant learning rate is an argument, like the numbers of the callbacks, so that a run with other ones needs
        no other program.

        Args:
            train: the train state.
            compile_first: called with the shapes of the loop state if the program that makes it must be compiled, so
                that the steps, which take longest, begin to compile before it. Not called for arrays that are bound to
                devices, since the shapes do not tell those of the loop state.
        """
        rate = getattr(train.tx, "rate", None) if train.opt_state is None else None
        if self.placement.mesh is not None:
            train = self.placement.put_state(train)
        leaves, tree = jax.tree.flatten(train)

        def start(leaves: list[Any], settings: list[Any], rate: Any) -> list[Any]:
            carry = self._first(jax.tree.unflatten(tree, leaves), settings, rate)
            bare = _with_static(carry, None, None)  # what is kept must not refer to the user's model and optimizer
            form = StateForm.of(bare)
            self.kept.put("form", form.changed(_with_weak_schedules))
            return StatePacking(form, ()).pack(bare)

        def options() -> dict[str, Any]:
            how: dict[str, Any] = {"compiler_options": fast_compile_options(self.placement.platform)}
            if self.placement.mesh is not None:
                carry = eval_shape(lambda train: self._first(train, self.settings, rate), self.train)
                _, arrays, _ = StateForm.of(carry).split(jax.tree.leaves(self.placement.carry_shardings(carry)))
                how["out_shardings"] = [self.placement.everywhere, *arrays]
            return how

        def traced(start: Any) -> None:
            bound = any(getattr(leaf, "committed", False) for leaf in jax.tree.leaves((leaves, self.settings)))
            if compile_first is not None and self.placement.mesh is None and not bound:
                shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in start.out_info]
                compile_first(DeviceState(shapes, self._form(train), tuple(jax.tree.leaves(train.frozen))))

        # not shared by equal traces, since the first states of the callbacks are not part of these
        function = KeptFunction(
            ("start", self.kept.number),
            start,
            self.kept,
            options=options,
            traced=traced,
            devices=self.placement.devices_key,
        )
        rate = jax.tree.map(lambda r: on_device(r, np.float32), rate)
        packed = function(leaves, self.settings, rate)
        return DeviceState(packed, self._form(train), tuple(jax.tree.leaves(train.frozen)))

    def _form(self, train: TrainState) -> StateForm:
        """Returns the form of the loop state, once the program that makes it was traced."""
        tx = train.tx
        if self._wraps_optimizer:
            tx = self._prepared[0].tx  # a callback has wrapped the optimizer
        form: StateForm = self.kept.get("form")
        return form.changed(lambda carry: _with_static(_with_schedules(carry), tx, train.adapter))

    def _first(self, train: TrainState, settings: list[Any], rate: Any) -> LoopState:
        """Returns the loop state before the first step. Traced."""
        if rate is not None:
            train = train.replace(tx=train.tx.with_rate(rate))  # pyright: ignore
        order = jax.eval_shape(self.data.layout.new_order, self.data.key, 0)
        # zeros: the order is drawn when the epoch begins
        order = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), order)
        state, states = self._with_callbacks(train, settings)
        return owned(initial_state(state, states, self.spec(self.members).metrics, order))


def _action_key(action: Any) -> Any:
    """Returns the key of an action as far as the programs depend on it."""
    if isinstance(action, LogAction | HostAction | Stop) and not is_lazy(action):
        return type(action), tuple((x.shape, x.dtype) for x in jax.tree.leaves(action))
    return tree_key(action)


def _with_static(carry: LoopState, tx: Any, adapter: Any) -> LoopState:
    return carry.replace(train=carry.train.replace(tx=tx, adapter=adapter))


def _with_weak_schedules(carry: LoopState) -> LoopState:
    """Returns the loop state with weak references to the schedules of the user, whose closures may hold arrays.

    A program is found by its key, in which functions compare by identity: so the same ones exist when it is used. A
    schedule that compares by value, such as a partial, is kept, since another one may be used then.
    """

    def weak(rate: LearningRate) -> LearningRate:
        try:
            key = key_of(rate.schedule)
        except NoProgramKey:
            return rate
        return rate.replace(schedule=key) if isinstance(key, Reference) else rate

    return map_learning_rates(weak, carry)


def _with_schedules(carry: LoopState) -> LoopState:
    """Inverts `_with_weak_schedules`."""

    def strong(rate: LearningRate) -> LearningRate:
        return rate.replace(schedule=rate.schedule.target) if isinstance(rate.schedule, Reference) else rate

    return map_learning_rates(strong, carry)


def prepared_state(state: TrainState, callbacks: Chain) -> tuple[TrainState, Any]:
    """Returns the train state prepared for a new run (with slots for named weights), and the callbacks' states."""
    kept = {key: copy for key, copy in state.weights.items() if key not in callbacks.slots()}
    state = state.init_optimizer().replace(weights=kept, stop=jnp.zeros_like(state.stop))
    return callbacks.setup(state).with_slots(callbacks), callbacks.init()


def _with_axis(shapes: Any, size: int | None) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), shapes)


def _without_axis(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)


def _with_rows(shapes: Any, size: int | None) -> Any:
    """Returns the shapes for another number of members."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), shapes)
