"""The rules by which jaxcb decides otherwise than Keras, each with what shows it. `docs/tables.py` prints them.

A rule that streams of metrics can show has an amendment (of Keras's class) or a case to put in the place of the
given one: Keras so changed decides as jaxcb does, on every stream. The others name the test that runs both.
"""

import dataclasses
from collections.abc import Callable, Iterator

from against_keras import _amendments as amendments
from against_keras import _conditions as conditions
from against_keras._case import Case

CALLBACKS, LOOP = "Callbacks", "The loop"
BOTH = "LearningRateScheduler with ReduceLROnPlateau"
MONITORS = ("EarlyStopping", "ReduceLROnPlateau", "ModelCheckpoint", BOTH)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A difference on purpose.

    Attributes:
        name: for counts and messages.
        where, keras, jaxcb, why: its row in the table, in Markdown.
        section: of the page.
        kinds: the comparisons that it is part of.
        bites: whether it can make a difference for a case.
        amend: a mixin for Keras's class.
        instead: the case with which Keras does what jaxcb does with the given one.
        shown_by: the test in `test_traps.py` that shows it, or `file::test` below `tests/`, where streams cannot.
    """

    name: str
    where: str
    keras: str
    jaxcb: str
    why: str
    section: str = CALLBACKS
    kinds: tuple[str, ...] = ()
    bites: Callable[[Case], bool] | None = None
    amend: type | None = None
    instead: Callable[[Case], Case] | None = None
    shown_by: str = ""


RULES: tuple[Rule, ...] = (
    Rule(
        "NaN first",
        "`EarlyStopping`, `ReduceLROnPlateau`, `ModelCheckpoint`: NaN as the first value",
        "becomes the best for ever, so nothing improves, and nothing is saved again",
        "never an improvement, and its weights never the best; the first report still stops nothing",
        "one bad validation should not disable the callback",
        kinds=MONITORS,
        bites=conditions.has_nan,
        amend=amendments.NaNIsNoBest,
    ),
    Rule(
        "float32",
        "monitors: arithmetic",
        "subtracts `min_delta` in float64, compares in float32",
        "float32 throughout",
        "the same decision on the device and on the host",
        kinds=MONITORS,
        bites=conditions.rounds,
        amend=amendments.Float32,
    ),
    Rule(
        "missing monitor",
        "`EarlyStopping`, `ReduceLROnPlateau`, `ModelCheckpoint(save_best_only=True)`: monitor missing",
        "a warning at each epoch, and never a stop or a cut; `ModelCheckpoint` saves anyway",
        "an error before the first step that lists the names",
        "a misspelt name should not cost a run, or the best weights",
        kinds=MONITORS,
        bites=conditions.is_missing,
        amend=amendments.MissingIsRefused,
    ),
    Rule(
        "baseline",
        "`EarlyStopping(baseline=)`",
        "a metric that keeps improving below the baseline never stops the run",
        "counts as no improvement until the baseline is beaten, so `patience` ends the run",
        "that is what the argument is for",
        kinds=("EarlyStopping",),
        bites=lambda case: case.arguments["baseline"] is not None,
        amend=amendments.BaselineEndsPatience,
    ),
    Rule(
        "cooldown",
        "`ReduceLROnPlateau(cooldown=1)`",
        "equals 0; c skips c - 1 epochs",
        "skips exactly c reports, as Keras with c + 1",
        "the documented meaning",
        kinds=("ReduceLROnPlateau", BOTH),
        bites=lambda case: case.arguments["cooldown"] > 0,
        instead=conditions.more_cooldown,
    ),
    Rule(
        "scheduler and plateau",
        "`LearningRateScheduler` with `ReduceLROnPlateau`",
        "each epoch overrides the cut",
        "they multiply",
        "warm-up and decay should not exclude a plateau",
        kinds=(BOTH,),
        bites=lambda case: len(case.epochs) > 1,
        instead=lambda case: case.replace(multiply=True),
    ),
    Rule(
        "schedules of any number",
        "`LearningRateScheduler`: what the schedule returns",
        "a Python float, or a `ValueError`: JAX arrays and whole numbers are refused",
        "any number; also optax schedules and JAX functions, in the compiled step",
        "the example in Keras's own documentation fails on its JAX backend",
        kinds=("LearningRateScheduler",),
        bites=conditions.returns_no_float,
        instead=conditions.as_float,
    ),
    Rule(
        "running mean",
        "`TerminateOnNaN`",
        "looks at the mean since the epoch began, on the host",
        "looks at the step's own loss, NaN or infinite, on the device",
        "found at the step where it happens, without a transfer per step; large losses are no overflow",
        kinds=("TerminateOnNaN",),
        bites=conditions.means_overflow,
        instead=lambda case: case.replace(running_mean=False),
    ),
    Rule(
        "best only, no report",
        "`ModelCheckpoint(save_best_only=True)`: an epoch without validation",
        "a warning, and it saves",
        "nothing to compare, so nothing is saved",
        "what was not measured is not the best",
        kinds=("ModelCheckpoint",),
        bites=conditions.skips_reports,
        amend=amendments.SavesReportsAlone,
    ),
    Rule(
        "names in paths",
        "`ModelCheckpoint(filepath=)`: a name that is not reported at this moment",
        "a `KeyError`",
        "its last value; a name that the run does not have is an error before the first step",
        "a run should not end at its first save",
        kinds=("ModelCheckpoint",),
        bites=conditions.asks_for_the_past,
        amend=amendments.RemembersReports,
    ),
    Rule(
        "best by step",
        "`ModelCheckpoint(save_best_only=True, save_freq=n)`",
        "saves at each due step with a validation metric, and fails in the first epoch with `loss`",
        "compares the last report at each due step",
        "it is what was asked for",
        kinds=("ModelCheckpoint",),
        bites=conditions.best_by_step,
        amend=amendments.ComparesAtEachDueStep,
    ),
    Rule(
        "steps per execution",
        "`ModelCheckpoint(save_freq=n)` with several steps per execution",
        "looks when an execution has ended and then counts anew, so it drifts",
        "due whenever `step % n == 0`, however many steps one call runs",
        "known from the step alone",
        kinds=("ModelCheckpoint",),
        bites=lambda case: case.steps_per_execution > 1,
        instead=lambda case: case.replace(steps_per_execution=1),
    ),
    Rule(
        "columns",
        "`CSVLogger`: columns",
        "`epoch`, and the metrics of the first epoch, with `val_` columns invented; later ones are dropped",
        "`epoch`, `step`, and the metrics, known before the first step",
        "a column that starts late is not lost; a validation in an epoch's middle has a row of its own",
        kinds=("CSVLogger",),
        bites=lambda case: True,
        amend=amendments.KnowsItsColumns,
    ),
    Rule(
        "decimals",
        "`CSVLogger`: numbers",
        "the float64 that a float32 becomes, `0.10000000149011612`",
        "the shortest decimal that reads back as the same float32, `0.1`",
        "that is all that was measured",
        kinds=("CSVLogger",),
        bites=conditions.prints_otherwise,
        amend=amendments.WritesFloat32,
    ),
    # What streams cannot show
    Rule(
        "append",
        "`CSVLogger(append=True)`",
        "does not look at the header",
        "another header is an error",
        "columns should not shift silently",
        shown_by="test_csv_append_looks_at_the_header",
    ),
    Rule(
        "weights and statistics",
        "`restore_best_weights`",
        "weights only, so that the averages of the optimizer's EMA are overwritten",
        "parameters and model state, such as batch statistics, as of the same moment; averages are kept apart",
        "weights and statistics belong together",
        shown_by="against_keras/test_traps_in_fit.py::test_restoring_leaves_averages_alone",
    ),
    Rule(
        "schedule and plateau",
        "`ReduceLROnPlateau` with a schedule in the optimizer",
        "`TypeError`",
        "they multiply",
        "warm-up and decay should not exclude a plateau",
        shown_by="test_a_plateau_over_a_schedule",
    ),
    Rule(
        "rate of a schedule",
        "`LearningRateScheduler`: `fn(epoch, lr)`",
        "`lr` is the rate in force; a `TypeError` inside the function is hidden by a second call without `lr`",
        "`lr` is the base rate, without the callbacks' factors; errors come out",
        "a factor should not enter twice",
        shown_by="test_a_type_error_inside_a_schedule_comes_out",
    ),
    Rule(
        "auto",
        '`mode="auto"`',
        "follows the compiled metrics; an error after the first epoch where it fails",
        "follows the name; an error at construction where it cannot tell",
        "known before the run",
        shown_by="test_auto_mode_is_known_before_the_run",
    ),
    Rule(
        "reports",
        "`patience`",
        "counts epochs that have the monitored value",
        'counts reports of the monitor, also with `eval_every=`; `patience_in="epochs"` or `"steps"` count those',
        "the same decision at any cadence of validation",
        shown_by="test_patience_counts_reports_at_any_cadence",
    ),
    Rule(
        "averages at an early stop",
        "`SwapEMAWeights(swap_on_epoch=True)` stopped early",
        "ends with the raw weights",
        "ends with the averages, as every run does",
        "how a run ends should not depend on why",
        shown_by="against_keras/test_traps_in_fit.py::test_an_early_stop_ends_with_the_averages",
    ),
    Rule(
        "swapping back",
        "`SwapEMAWeights`",
        "swaps back as a validation ends; the optimizer must be made with `use_ema=True`",
        "swaps back before the next step; the averages are the callback's own",
        "what acts on the validation, such as `restore_best_weights`, sees the weights that were validated",
        shown_by="against_keras/test_traps_in_fit.py::test_averages_need_no_optimizer_that_makes_them",
    ),
    Rule(
        "what is saved",
        "`ModelCheckpoint`: what is saved",
        "a `.keras` file with the architecture, or weights",
        "a directory that Orbax wrote; the whole train state, or params and model state",
        "code is not saved; keys, controls and named weights are",
        shown_by="against_keras/test_traps_in_fit.py::test_checkpoints_are_directories",
    ),
    Rule(
        "half a file",
        "`ModelCheckpoint`: a kill while saving",
        "may leave half a file in place of the old one",
        "the old one stays until the new one is complete",
        "that is when it is needed",
        shown_by="writers/test_orbax_writer.py::test_a_save_that_fails_leaves_the_old_checkpoint",
    ),
    Rule(
        "remote monitor",
        "`RemoteMonitor`",
        "waits for the server at each epoch, and drops what it does not take",
        "a thread sends, and sends again; the record holds `step`",
        "a slow server should not slow a run",
        shown_by="writers/test_http.py::test_a_server_that_hangs_does_not_hold_the_run",
    ),
    Rule(
        "stop_training",
        "`HostCallback`: `self.model.stop_training = True`",
        "stops the run",
        "an error; `self.stop(reason)` stops it",
        "not every model can be changed",
        shown_by="test_host_callback.py::test_kerass_way_to_stop_is_an_error_that_names_ours",
    ),
    Rule(
        "model in a host callback",
        "`HostCallback`: `self.model`",
        "what a method changes is trained on",
        "a view; changes do not reach the run",
        "the run's arrays live in a compiled program",
        shown_by="against_keras/test_traps_in_fit.py::test_what_a_host_callback_changes_stays_outside",
    ),
    Rule(
        "arguments",
        "arguments out of range",
        "partly accepted, such as a negative `factor` or `patience`, and unknown names",
        "an error at construction that shows the value",
        "known before the run",
        shown_by="test_arguments_out_of_range_are_refused",
    ),
    Rule(
        "resume",
        "a run that is killed and started again",
        "`BackupAndRestore` restores weights and optimizer; what callbacks remember is lost",
        "callbacks' states are part of the checkpoint, as are keys and the place in the data",
        "the resumed run ends as the other would have",
        section=LOOP,
        shown_by="test_what_callbacks_remember_survives",
    ),
    Rule(
        "batch values",
        "batch values",
        "running mean since the epoch began",
        "the step's own",
        "a running mean hides what happened at this step",
        section=LOOP,
        shown_by="against_keras/test_traps_in_fit.py::test_batch_hooks_see_the_steps_own_loss",
    ),
    Rule(
        "shared logs",
        "what a callback sees",
        "one dictionary that callbacks share and change, so their order matters",
        "the same immutable metrics for all",
        "grouping and order change no decision",
        section=LOOP,
        shown_by="test_what_a_callback_sees_does_not_depend_on_its_place",
    ),
    Rule(
        "effects",
        "when effects apply",
        "at once, inside the hook",
        "after all transitions of the moment, in callback order",
        "grouping and order change no decision",
        section=LOOP,
        shown_by="test_what_a_callback_sees_does_not_depend_on_its_place",
    ),
    Rule(
        "out of order",
        "batch hooks on the JAX backend",
        "run in threads where all are declared safe for it, and may then come out of order",
        "run in order",
        "the same run, the same log",
        section=LOOP,
        shown_by="against_keras/test_traps_in_fit.py::test_batch_hooks_come_in_order",
    ),
    Rule(
        "hook names",
        "names of hooks",
        "`on_train_batch_end`, `on_test_end`",
        "`on_batch_end`, `on_eval_end`; the Keras names are refused with the new one",
        "`LambdaCallback` and `HostCallback` take the Keras names",
        section=LOOP,
        shown_by="test_keras_hook_names_are_refused_with_the_new_ones",
    ),
    Rule(
        "hooks",
        "hooks",
        "`(self, epoch, logs)`, with side effects",
        "`(self, state, metrics) -> (state, actions)`, pure",
        "it can be compiled, replayed and tested",
        section=LOOP,
        shown_by="test_keras_hook_names_are_refused_with_the_new_ones",
    ),
)


def of(case: Case) -> Iterator[Rule]:
    """The rules that can make a difference for a case."""
    for rule in RULES:
        if case.kind in rule.kinds and rule.bites is not None and rule.bites(case):
            yield rule


def amendment(rule: Rule, kind: str) -> type | None:
    """The mixin of a rule for one of Keras's classes."""
    if rule.amend is amendments.NaNIsNoBest and kind == "EarlyStopping":
        return amendments.NaNStopsNothingFirst
    return rule.amend
