"""Programs are kept: what was traced and compiled for a run serves later runs that would trace the same.

There are three levels. A *kept program* is found by a key of everything that tracing depends on (`program_key`): it
gives compiled functions and facts that were found by tracing, so nothing is traced. If there is none, the hooks are
traced, and a kept program with equal traces shares its compiled functions: that is how paths, texts and functions for
the host need no other program. An *executable* is found by the key of the traced program: where only closures are new,
the run is traced again, and nothing is lowered or compiled.

No level refers to arrays. A compiled function takes and returns flat lists of arrays and our own structures, so
that the structure of a train state, which refers to the user's model and optimizer, is never part of it.
"""

import contextlib
import functools
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from jaxcb._src.utils.program_key import (
    NoProgramKey,
    Reference,
    context_key,
    key_of,
    leaf_key,
    references_in,
    trace_key,
)

_PROGRAMS = 32  # kept programs
_EXECUTABLES = 128  # kept executables; a run has about five
_OF_ONE_PROGRAM = 64  # compiled functions, over all shapes of batches
_lock = threading.RLock()
_seconds_compiling = 0.0  # in this process


def seconds_compiling() -> float:
    """Returns the seconds that this process has traced and compiled so far; a run takes the difference."""
    return _seconds_compiling


@contextlib.contextmanager
def _timed() -> Iterator[None]:
    """Adds the seconds of its body to those of compiling."""
    global _seconds_compiling
    started = time.monotonic()
    try:
        yield
    finally:
        with _lock:
            _seconds_compiling += time.monotonic() - started


class KeptProgram:
    """The compiled functions and facts of runs with the same key.

    Args:
        references: weak references to the functions in the key; the program is dropped once one of them is dead.

    Attributes:
        is_reused: whether an earlier run had the same key, or equal traces.
        number: a number that no other kept program has.
    """

    def __init__(self, references: list[Reference]) -> None:
        self._references = references
        self.is_reused = False
        self.number = next(_numbers)
        self._executables: dict[Hashable, Any] = {}
        self._facts: dict[Hashable, Any] = {}
        self._own_facts: dict[Hashable, Any] = {}

    @property
    def is_dead(self) -> bool:
        """Whether no run can have this key any more."""
        return any(reference.is_dead for reference in self._references)

    def get(self, name: Hashable) -> Any:
        """Returns a fact that a traced function has put here."""
        return self._facts[name]

    def put(self, name: Hashable, value: Any) -> None:
        """Sets a fact."""
        self._facts[name] = value

    def fact(self, name: Hashable, find: Callable[[], Any]) -> Any:
        """Returns a fact about the program; calls `find` if it is not known. It must refer to no arrays."""
        if name not in self._facts:
            self._facts[name] = find()
        return self._facts[name]

    def own_fact(self, name: Hashable, find: Callable[[], Any]) -> Any:
        """Returns a fact that holds for this key alone, and not for programs with equal traces."""
        if name not in self._own_facts:
            self._own_facts[name] = find()
        return self._own_facts[name]

    def share(self, make_key: Callable[[], Hashable]) -> None:
        """Shares compiled functions and facts with the kept program of equal traces, if there is one.

        Args:
            make_key: returns everything that the compiled functions depend on.
        """
        other = _find(make_key, _by_traces, self)
        if other is not self:
            self._executables, self._facts, self.is_reused = other._executables, other._facts, True

    def executable(self, key: Hashable, build: Callable[[], Callable[[], Any]]) -> Any:
        """Returns a compiled function.

        Args:
            key: identifies it.
            build: called if there is none for this key; it traces, and returns the function that compiles.
        """
        found = self._executables.get(key)
        if found is None:
            found = build()()
            self._keep(key, found)
        elif isinstance(found, Future):
            try:
                found = found.result()
            except BaseException:
                self._executables.pop(key, None)
                raise
            self._keep(key, found)
        return found

    def prepare(self, key: Hashable, build: Callable[[], Callable[[], Any]]) -> None:
        """Compiles in the background, if there is no compiled function for this key; `executable` then waits for it."""
        if key not in self._executables:
            self._keep(key, _background().submit(build()))

    def _keep(self, key: Hashable, value: Any) -> None:
        with _lock:
            self._executables[key] = value
            while len(self._executables) > _OF_ONE_PROGRAM:  # of a stream whose shapes keep changing
                del self._executables[next(iter(self._executables))]


@functools.cache
def _background() -> ThreadPoolExecutor:
    """Returns the threads that compile. XLA releases the interpreter's lock meanwhile."""
    return ThreadPoolExecutor(2, thread_name_prefix="jaxcb-compile")


_numbers = itertools.count()
_programs: OrderedDict[Hashable, KeptProgram] = OrderedDict()
_by_traces: OrderedDict[Hashable, KeptProgram] = OrderedDict()
_executables: OrderedDict[Hashable, Any] = OrderedDict()


def kept_program(make_key: Callable[[], Hashable]) -> KeptProgram:
    """Returns the kept program for a key; a new one if there is none.

    Args:
        make_key: returns everything that the program depends on, as `key_of` and `tree_key` compare it.

    Returns:
        The program. It is not kept where the key cannot be made, or without compilation (`jax.disable_jit`).
    """
    return _find(make_key, _programs)


def _find(
    make_key: Callable[[], Hashable], kept: OrderedDict[Hashable, KeptProgram], new: KeptProgram | None = None
) -> KeptProgram:
    """Returns the kept program for a key; if there is none, it keeps `new`, or a new one."""
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return new or KeptProgram([])
    try:
        key = make_key(), context_key()
    except NoProgramKey:
        return new or KeptProgram([])
    try:
        hash(key)
    except TypeError:  # a static part of a pytree has no hash
        return new or KeptProgram([])
    with _lock:
        for dead in [k for k, program in kept.items() if program.is_dead]:
            del kept[dead]
        program = kept.get(key)
        if program is None:
            program = kept[key] = new or KeptProgram(references_in(key))
        elif new is None:
            program.is_reused = True
        kept.move_to_end(key)
        while len(kept) > _PROGRAMS:
            kept.popitem(last=False)
        return program


def compilation_of(traced: Any, given: Hashable, options: dict[str, Any]) -> Callable[[], Any]:
    """Lowers a traced function, unless the same program was compiled before.

    Args:
        traced: what `jax.jit(fn).trace(*args)` returns.
        given: what the program depends on besides the trace: structure and shardings of the arguments, which of them
            are donated, and the devices.
        options: the further arguments of `jax.jit`.

    Returns:
        A function that compiles, or finds what was compiled. Any thread may call it.
    """
    structure, context = jax.tree.structure(traced.out_info), context_key()

    def find_key() -> Hashable:
        """Returns the key of the executable; None for a program that no other run can use."""
        try:
            key = trace_key(traced.jaxpr.jaxpr, traced.jaxpr.consts), structure, given, key_of(options, mutable=True)
            hash(key)
        except (NoProgramKey, TypeError):  # TypeError: something in it has no hash
            return None
        return key, context

    # The first program of a process makes its key later, while others wait for XLA anyway
    key = find_key() if _executables else None
    with _lock:
        if key in _executables:
            _executables.move_to_end(key)
            known = _executables[key]
            return lambda: known
    lowered = traced.lower()

    def finish() -> Any:
        with _timed():
            new = lowered.compile()
        own = key or find_key()
        if own is not None:
            with _lock:
                _executables[own] = new
                while len(_executables) > _EXECUTABLES:
                    _executables.popitem(last=False)
        return new

    return finish


def clear_caches() -> None:
    """Drops all programs that are kept for later runs.

    `fit`, `Loop.run`, `evaluate`, `predict`, `sweep` and `replay` keep what they have compiled, so that the next call
    with the same functions and shapes compiles nothing. Like `jax.jit`, they read globals, closures and mutable objects
    when they trace: call this after such a change, or to free the memory of the programs.

    Example:
        >>> import jaxcb as jc
        >>> jc.clear_caches()
    """
    with _lock:
        _programs.clear()
        _by_traces.clear()
        _executables.clear()


class KeptFunction:
    """A jitted function whose executables are kept.

    Args:
        name: distinguishes the functions of a program.
        fn: the function. Its arguments and results are arrays in lists, dicts and our own classes.
        program: where the executables are kept.
        donate: positions of donated arguments.
        options: returns further arguments of `jax.jit`; called only to trace.
        traced: called with what was traced, before it is lowered and compiled.
        devices: the devices, as part of the key of an executable.
        varies: returns a key of the arguments that may differ in shape from those of the last call. The complete key
            would cost a small step as much as its dispatch.
    """

    def __init__(
        self,
        name: Hashable,
        fn: Callable[..., Any],
        program: KeptProgram,
        *,
        donate: tuple[int, ...] = (),
        options: Callable[[], dict[str, Any]] = dict,
        traced: Callable[[Any], None] = lambda traced: None,
        devices: Hashable = None,
        varies: Callable[..., Hashable] = lambda *args: None,
    ) -> None:
        self._name, self._fn, self._program = name, fn, program
        self._donate, self._options, self._devices, self._varies = donate, options, devices, varies
        self._traced = traced
        self._by_variant: dict[Hashable, Any] = {}

    def __call__(self, *args: Any) -> Any:
        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            return self._fn(*args)
        return self.executable(*args)(*args)

    def executable(self, *args: Any) -> Any:
        """Returns the compiled function for arguments of these shapes."""
        variant = self._varies(*args)
        known = self._by_variant.get(variant)
        if known is None:
            known = self._program.executable(self._key(args), lambda: self._build(args))
            self._by_variant[variant] = known
        return known

    def prepare(self, *args: Any) -> None:
        """Traces for arguments of these shapes, and compiles in the background; the first call waits for it."""
        self._program.prepare(self._key(args), lambda: self._build(args))

    def _key(self, args: Any) -> tuple[Hashable, ...]:
        leaves, structure = jax.tree.flatten(args)
        return self._name, structure, tuple(map(leaf_key, leaves))

    def lower(self, *args: Any) -> Any:
        """Traces and lowers the function."""
        return self._trace(self._options(), args).lower()

    def _trace(self, options: dict[str, Any], args: Any) -> Any:
        return jax.jit(self._fn, donate_argnums=self._donate, **options).trace(*args)

    def _build(self, args: Any) -> Callable[[], Any]:
        with _timed():
            options = self._options()
            traced = self._trace(options, args)
        self._traced(traced)  # may build another function, which is timed by itself
        with _timed():
            return compilation_of(traced, (self._key(args)[1:], self._donate, self._devices), options)
