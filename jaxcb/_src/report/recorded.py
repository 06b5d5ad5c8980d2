"""The callbacks of a recorded run, made again, and replayed on its history."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxcb._src.core.callback import STEP_HOOKS
from jaxcb._src.core.chain import Chain, chain
from jaxcb._src.history.reader import Records
from jaxcb._src.replay.grid import host_device
from jaxcb._src.replay.program import Replayed, program_of, replay_function, run
from jaxcb._src.report.callback_text import make_recorded
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.utils.errors import DataError, MissingMetricError
from jaxcb._src.utils.pytree import to_strong_types


class Recorded(NamedTuple):
    """The callbacks of a run, made again.

    Attributes:
        chain: those that could be made, and have a hook that the history can replay.
        unexplained: name -> why not, for the others.
    """

    chain: Chain
    unexplained: dict[str, str]


def recorded_callbacks(run_folder: RunFolder, records: Records) -> Recorded:
    """Makes the callbacks of a run again, from the description in its checkpoint."""
    made, missing = make_recorded(run_folder.config.get("callbacks", {}), run_folder.facts.get("callbacks", {}))
    return _replayable(made, missing, records)


def live_callbacks(callbacks: Chain, records: Records) -> Recorded:
    """Returns the callbacks of a run of this process that a replay can run, those of the user's own classes, too."""
    deciding = [callback.replace(name=name) for name, callback in callbacks.items() if not callback.logs_only]
    return _replayable(deciding, {}, records)


def _replayable(callbacks: Sequence[Any], missing: dict[str, str], records: Records) -> Recorded:
    """Leaves out callbacks that a replay cannot run, and says why."""
    spec, rows = program_of(records, None)
    usable = []
    for callback in callbacks:
        hooks = callback.hooks()
        lost = sorted(hooks & set(STEP_HOOKS))
        if lost and not hooks - set(STEP_HOOKS):
            missing[callback.name] = f"it acts at every batch ({', '.join(lost)}), and the history has epochs"
            continue
        try:
            jax.eval_shape(lambda rows, one=callback: run(chain(one), rows, spec), rows)
        except MissingMetricError as error:
            missing[callback.name] = str(error)
        except ValueError as error:  # its actions need what a replay has not: controls, accumulation
            missing[callback.name] = f"a replay cannot run it: {error}"
        else:
            usable.append(callback)
    return Recorded(chain(*usable), missing)


def replayed(callbacks: Chain, records: Records, learning_rate: Any = None) -> Replayed:
    """Returns all that a replay computes, with the states after each record, on the host."""
    spec, rows = program_of(records, learning_rate)
    with jax.default_device(device := host_device()):
        whole = jax.device_get(to_strong_types(callbacks))
        return jax.device_get(replay_function("each", run, whole, spec, device)(rows))


def records_of(run_folder: RunFolder, member: int | None) -> Records | None:
    """Returns the records of a run, or of a member of a sweep; None before the first record.

    Raises:
        DataError: for a damaged history, and for a member that does not exist, or is needed and missing.
    """
    run_folder.check_history()
    members = run_folder.members
    if not members:
        return None
    if member not in members:
        if None in members:
            raise DataError(f"{run_folder.shown} is a single run, so it has no member {member}. Leave --member out.")
        known = ", ".join(map(str, list(members)[:12])) + (", ..." if len(members) > 12 else "")
        raise DataError(f"{run_folder.shown} is a sweep: expected one of its members {known}, got {member} (--member).")
    return members[member]
