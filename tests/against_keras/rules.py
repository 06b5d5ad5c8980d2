"""The differences between jaxcb and Keras, each with a test. `docs/tables.py` prints them.

A rule that streams of metrics can show has an amendment (a mixin for Keras's class) or a replacement for the case. With
it, Keras decides as jaxcb does, on every stream. The other rules name the test that runs both libraries.
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
    """An intentional difference.

    Attributes:
        name: for counts and messages.
        where, keras, jaxcb, why: its row in the table, in Markdown.
        section: of the page.
        kinds: the comparisons that it belongs to.
        bites: whether it can change the decisions of a case.
        amend: a mixin for Keras's class.
        instead: the case with which Keras decides as jaxcb does with the given one.
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
        "becomes the best for the rest of the run: nothing improves, and nothing is saved again",
        "never an improvement, and its weights are never the best; the first report never stops the run",
        "one bad validation should not disable the callback",
        kinds=MONITORS,
        bites=conditions.has_nan,
        amend=amendments.NaNIsNoBest,
    ),
    Rule(
        "float32",
        "monitors: arithmetic",
        "subtracts `min_delta` in float64, compares in float32",
        "uses float32 for both",
        "the same decision on the device and on the host",
        kinds=MONITORS,
        bites=conditions.rounds,
        amend=amendments.Float32,
    ),
    Rule(
        "missing monitor",
        "`EarlyStopping`, `ReduceLROnPlateau`, `ModelCheckpoint(save_best_only=True)`: monitor missing",
        "a warning at each epoch, and no stop or cut; `ModelCheckpoint` saves anyway",
        "an error before the first step that lists the names",
        "a misspelt name should not waste a run or lose the best weights",
        kinds=MONITORS,
        bites=conditions.is_missing,
        amend=amendments.MissingIsRefused,
    ),
    Rule(
        "baseline",
        "`EarlyStopping(baseline=)`",
        "a metric that keeps improving below the baseline never stops the run",
        "is no improvement until the baseline is beaten, so `patience` ends the run",
        "this is the purpose of the argument",
        kinds=("EarlyStopping",),
        bites=lambda case: case.arguments["baseline"] is not None,
        amend=amendments.BaselineEndsPatience,
    ),
    Rule(
        "cooldown",
        "`ReduceLROnPlateau(cooldown=1)`",
        "equals 0; c skips c - 1 epochs",
        "c skips exactly c reports, as c + 1 in Keras",
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
        "`LearningRateScheduler`: return value of the schedule",
        "a Python float, or a `ValueError`: JAX arrays and integers are refused",
        "any number; also optax schedules and JAX functions, in the compiled step",
        "the example in Keras's own documentation fails on its JAX backend",
        kinds=("LearningRateScheduler",),
        bites=conditions.returns_no_float,
        instead=conditions.as_float,
    ),
    Rule(
        "running mean",
        "`TerminateOnNaN`",
        "checks the mean since the start of the epoch, on the host",
        "checks the loss of the step for NaN and infinity, on the device",
        "found at the step where it happens, without a transfer per step; large losses do not overflow a sum",
        kinds=("TerminateOnNaN",),
        bites=conditions.means_overflow,
        instead=lambda case: case.replace(running_mean=False),
    ),
    Rule(
        "best only, no report",
        "`ModelCheckpoint(save_best_only=True)`: an epoch without validation",
        "a warning, and it saves",
        "nothing to compare, so nothing is saved",
        "weights that were not validated are not the best",
        kinds=("ModelCheckpoint",),
        bites=conditions.skips_reports,
        amend=amendments.SavesReportsAlone,
    ),
    Rule(
        "names in paths",
        "`ModelCheckpoint(filepath=)`: a name that is not reported in this hook call",
        "a `KeyError`",
        "its last value; a name that the run does not have is an error before the first step",
        "a run should not fail at its first save",
        kinds=("ModelCheckpoint",),
        bites=conditions.asks_for_the_past,
        amend=amendments.RemembersReports,
    ),
    Rule(
        "best by step",
        "`ModelCheckpoint(save_best_only=True, save_freq=n)`",
        "saves at each due step with a validation metric, and fails in the first epoch with `loss`",
        "compares the last report at each due step",
        "this is what the arguments mean",
        kinds=("ModelCheckpoint",),
        bites=conditions.best_by_step,
        amend=amendments.ComparesAtEachDueStep,
    ),
    Rule(
        "steps per execution",
        "`ModelCheckpoint(save_freq=n)` with several steps per execution",
        "checks at the end of an execution and restarts its count there, so that the interval drifts",
        "due whenever `step % n == 0`, for any number of steps per execution",
        "the steps of the saves follow from the arguments",
        kinds=("ModelCheckpoint",),
        bites=lambda case: case.steps_per_execution > 1,
        instead=lambda case: case.replace(steps_per_execution=1),
    ),
    Rule(
        "columns",
        "`CSVLogger`: columns",
        "`epoch`, and the metrics of the first epoch, with assumed `val_` columns; later ones are dropped",
        "`epoch`, `step`, and the metrics, known before the first step",
        "a column that starts late is not lost; a validation in the middle of an epoch has a separate row",
        kinds=("CSVLogger",),
        bites=lambda case: True,
        amend=amendments.KnowsItsColumns,
    ),
    Rule(
        "decimals",
        "`CSVLogger`: numbers",
        "the float64 that a float32 becomes, `0.10000000149011612`",
        "the shortest decimal that reads back as the same float32, `0.1`",
        "a float32 has no more digits",
        kinds=("CSVLogger",),
        bites=conditions.prints_otherwise,
        amend=amendments.WritesFloat32,
    ),
    # What streams cannot show
    Rule(
        "append",
        "`CSVLogger(append=True)`",
        "does not check the header",
        "another header is an error",
        "columns should not shift silently",
        shown_by="test_csv_append_looks_at_the_header",
    ),
    Rule(
        "weights and statistics",
        "`restore_best_weights`",
        "weights only, so that the averages of the optimizer's EMA are overwritten",
        "parameters and model state, such as batch statistics, of the same step; averages are separate",
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
        "`lr` is the current rate; a `TypeError` inside the function is hidden by a second call without `lr`",
        "`lr` is the base rate, without the callbacks' factors; errors are raised",
        "a factor should not be applied twice",
        shown_by="test_a_type_error_inside_a_schedule_comes_out",
    ),
    Rule(
        "auto",
        '`mode="auto"`',
        "follows the compiled metrics; if this fails, an error after the first epoch",
        "follows the name; if this fails, an error at construction",
        "known before the run",
        shown_by="test_auto_mode_is_known_before_the_run",
    ),
    Rule(
        "reports",
        "`patience`",
        "counts epochs that have the monitored value",
        'counts reports of the monitor, at any `eval_every`; `patience_in="epochs"` or `"steps"` count those',
        "the same decision at any frequency of validation",
        shown_by="test_patience_counts_reports_at_any_cadence",
    ),
    Rule(
        "averages at an early stop",
        "`SwapEMAWeights(swap_on_epoch=True)` stopped early",
        "ends with the raw weights",
        "ends with the averages, as every run does",
        "the final weights should not depend on the reason for the end",
        shown_by="against_keras/test_traps_in_fit.py::test_an_early_stop_ends_with_the_averages",
    ),
    Rule(
        "swapping back",
        "`SwapEMAWeights`",
        "swaps back at the end of a validation; the optimizer must be made with `use_ema=True`",
        "swaps back before the next step; the averages are the callback's own",
        "callbacks that act on the validation, such as `restore_best_weights`, use the validated weights",
        shown_by="against_keras/test_traps_in_fit.py::test_averages_need_no_optimizer_that_makes_them",
    ),
    Rule(
        "what is saved",
        "`ModelCheckpoint`: what is saved",
        "a `.keras` file with the architecture, or weights",
        "a directory in Orbax's format; the whole train state, or params and model state",
        "code is not saved; keys, controls and named weights are",
        shown_by="against_keras/test_traps_in_fit.py::test_checkpoints_are_directories",
    ),
    Rule(
        "half a file",
        "`ModelCheckpoint`: killed while saving",
        "may leave an incomplete file in place of the old one",
        "the old one is kept until the new one is complete",
        "a killed run needs its last checkpoint",
        shown_by="writers/test_orbax_writer.py::test_a_save_that_fails_leaves_the_old_checkpoint",
    ),
    Rule(
        "remote monitor",
        "`RemoteMonitor`",
        "waits for the server at each epoch, and drops records that it refuses",
        "a thread sends, and retries; the record contains `step`",
        "a slow server should not slow a run",
        shown_by="writers/trackers/test_http.py::test_a_server_that_hangs_does_not_hold_the_run",
    ),
    Rule(
        "stop_training",
        "`HostCallback`: `self.model.stop_training = True`",
        "stops the run",
        "an error; `self.stop(reason)` stops it",
        "not every model is mutable",
        shown_by="callbacks/test_host_callback.py::test_kerass_way_to_stop_is_an_error_that_names_ours",
    ),
    Rule(
        "model in a host callback",
        "`HostCallback`: `self.model`",
        "changes by a method affect the training",
        "a view; changes do not affect the run",
        "the arrays of the run belong to a compiled program",
        shown_by="against_keras/test_traps_in_fit.py::test_what_a_host_callback_changes_stays_outside",
    ),
    Rule(
        "arguments",
        "arguments out of range",
        "some are accepted, such as a negative `factor` or `patience`, and unknown names",
        "an error at construction that shows the value",
        "known before the run",
        shown_by="test_arguments_out_of_range_are_refused",
    ),
    Rule(
        "resume",
        "a run that is killed and started again",
        "`BackupAndRestore` restores weights and optimizer; callback states are lost",
        "callback states, random keys and the data position are part of the checkpoint",
        "the resumed run has the same result as an uninterrupted one",
        section=LOOP,
        shown_by="test_what_callbacks_remember_survives",
    ),
    Rule(
        "batch values",
        "batch values",
        "running mean since the start of the epoch",
        "the values of the step",
        "a running mean hides the value of the step",
        section=LOOP,
        shown_by="against_keras/test_traps_in_fit.py::test_batch_hooks_see_the_steps_own_loss",
    ),
    Rule(
        "shared logs",
        "input of callbacks",
        "one dictionary that callbacks share and change, so that their order matters",
        "the same immutable metrics for all callbacks",
        "grouping and order change no decision",
        section=LOOP,
        shown_by="test_what_a_callback_sees_does_not_depend_on_its_place",
    ),
    Rule(
        "effects",
        "time of effects",
        "at once, inside the hook",
        "after all transitions of the hook call, in callback order",
        "grouping and order change no decision",
        section=LOOP,
        shown_by="test_what_a_callback_sees_does_not_depend_on_its_place",
    ),
    Rule(
        "out of order",
        "batch hooks on the JAX backend",
        "run in threads if all are declared safe for it, and may then be called out of order",
        "run in order",
        "the same run gives the same log",
        section=LOOP,
        shown_by="against_keras/test_traps_in_fit.py::test_batch_hooks_come_in_order",
    ),
    Rule(
        "hook names",
        "names of hooks",
        "`on_train_batch_end`, `on_test_end`",
        "`on_batch_end`, `on_eval_end`; the Keras names are an error that contains the new name",
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
    """Returns the rules that can change the decisions of a case."""
    for rule in RULES:
        if case.kind in rule.kinds and rule.bites is not None and rule.bites(case):
            yield rule


def amendment(rule: Rule, kind: str) -> type | None:
    """Returns the mixin of a rule for one of Keras's classes."""
    if rule.amend is amendments.NaNIsNoBest and kind == "EarlyStopping":
        return amendments.NaNStopsNothingFirst
    return rule.amend
