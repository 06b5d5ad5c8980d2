"""Values that no argument takes, for the arguments of the public functions and of every callback.

Each is refused before the first step, by an error that names the argument, or is listed as accepted.
"""

import inspect

import pytest
from bad_values import _callbacks, _others, _training
from bad_values._others import ACCEPTED, SAID
from bad_values._values import refusal

import jaxcb as jc

FUNCTIONS = _training.FUNCTIONS | _others.FUNCTIONS
CASES = [
    (function, argument, value)
    for function, (_, arguments) in FUNCTIONS.items()
    for argument, values in arguments.items()
    for value in values
    if not any(value is known or repr(value) == repr(known) for known in ACCEPTED.get(argument, ()))
]

# What the table leaves out, and why.
EVERYTHING = "*"
MADE_BY_A_RUN = [
    *("Metrics", "Result", "Run", "TrainState", "callbacks.Chain", "callbacks.NamedWeights", "models.LinenModel"),
    *("probes.StepView", "probes.Reported", "search.LRFind", "search.LargestBatch", "search.Replay"),
    *("search.SweepResult", "testing.Driven", "testing.HookCall", "testing.Stream", "writers.CheckpointSaved"),
    *("writers.Context", "writers.TrackedRecord", "writers.TrackedRun", "writers.Writer"),
]
MADE_BY_A_LOG = ["logs.LogFormat", "logs.Records"]
BASES = ["Callback", "PopulationCallback", "callbacks.StoppingCallback", "models.Adapter"]
LEFT_OUT = {
    **dict.fromkeys([*MADE_BY_A_RUN, *MADE_BY_A_LOG, *BASES], EVERYTHING),
    "Out": EVERYTHING,  # what a loss function returned is checked where it is called
    "static": EVERYTHING,  # the arguments of `dataclasses.field`, which checks them
    "probes.Evaluator": EVERYTHING,  # the classes that these functions make
    "probes.HostMetric": EVERYTHING,
    "probes.Probe": EVERYTHING,
    "models.Pytree": EVERYTHING,
    "models.Linen": "module eval_module",
    "testing.streams": EVERYTHING,  # a strategy of Hypothesis, which checks it
    "testing.check_population": EVERYTHING,  # for another kind of callback; its arguments are those of all laws
    "load": "target",  # any pytree
    "probes.reported": "value",  # any array
    "linen": "kwargs",  # of the user's module
    "models.linen": EVERYTHING,  # the same functions under a second name
    "models.with_state": EVERYTHING,
    "make_callback": "hooks",  # tried as on_epoch_end
    "distributed.initialize": "options",  # of `jax.distributed.initialize`
    **dict.fromkeys((f"testing.{law}" for law in _others.LAWS), "metrics max_examples"),  # as of check_callback
    "testing.drive": "host_metrics show",
    "callbacks.WandbLogger": "init",  # of `wandb.init`
    "callbacks.TrackioLogger": "init",  # of `trackio.init`
    "callbacks.LambdaCallback": "never",  # refused by name, as is tested with the callback
}


def public():
    """Yields the name of each public function and class, and its parameters; actions are values that a hook returns."""
    modules = {name: getattr(jc, name) for name in dir(jc) if inspect.ismodule(getattr(jc, name))}
    faces = {"": jc} | {f"{name}.": face for name, face in modules.items() if name not in ("actions", "errors")}
    for prefix, face in faces.items():
        for name in face.__all__:
            value = getattr(face, name)
            callback = inspect.isclass(value) and issubclass(value, jc.Callback)
            error = inspect.isclass(value) and issubclass(value, Exception)
            if callable(value) and not error and not (callback and not prefix):  # callbacks: those of jc.callbacks
                yield prefix + name, list(inspect.signature(value).parameters)


@pytest.fixture
def never_runs(monkeypatch):
    def train(self):
        raise RuntimeError("the run began")

    monkeypatch.setattr("jaxcb._src.loop.host.driver.Driver.train", train)


def test_every_argument_of_every_public_function_is_tried():
    tried = {name: set(arguments) for name, (_, arguments) in FUNCTIONS.items()}
    for name, argument, _ in _callbacks.CASES:
        tried.setdefault(f"callbacks.{name}", set()).add(argument)
    missing = {}
    for name, arguments in public():
        left_out = LEFT_OUT.get(name, "").split()
        rest = [a for a in arguments if a not in tried.get(name, ()) and a not in left_out and "*" not in left_out]
        if rest:
            missing[name] = rest
    assert not missing, "add values for these, or say in LEFT_OUT why there are none"
    print(f"{len(CASES)} values of functions, {len(_callbacks.CASES)} of callbacks")
    assert len(CASES) + len(_callbacks.CASES) >= 400


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arguments_of_functions(never_runs, function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = FUNCTIONS[function][0]
    found = [refusal(call, argument, value, SAID.get(argument)) for f, argument, value in CASES if f == function]
    assert not any(found), "\n".join(filter(None, found))
    assert not list(tmp_path.iterdir()), "a refused call leaves no file"


@pytest.mark.parametrize("name", sorted({name for name, _, _ in _callbacks.CASES}))
def test_arguments_of_callbacks(name):
    kind, found = _callbacks.callbacks()[name], []
    for of, argument, value in _callbacks.CASES:
        if of == name:
            given = {k: v for k, v in _callbacks.REQUIRED.get(name, {}).items() if k != argument}
            # `chain` checks names, which it gives to all others
            found.append(
                refusal(
                    lambda given=given, **more: jc.chain(kind(**given, **more)), argument, value, SAID.get(argument)
                )
            )
    assert not any(found), "\n".join(filter(None, found))
