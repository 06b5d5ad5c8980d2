"""Damaged run folders: every file cut, changed, removed or replaced, and how the run resumes.

Each case must end identical to a run that was never damaged, identical with a warning, or with one error that names the
file. A folder is made once for each state, and copied.
"""

import collections
import random
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc

X = np.linspace(-1.0, 1.0, 32, dtype=np.float32)[:, None]
EPOCHS = 4
LOGS = ("history.csv", "log.csv", "log.jsonl")
STATES = ("finished", "interrupted")


class Crash(Exception):
    """Ends a run without a save."""


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def fit(run_dir, epochs=EPOCHS, crash=None):
    def fail(epoch, logs):
        if epoch == crash:
            raise Crash

    return jc.fit(
        {"w": jnp.zeros((1, 1))}, loss_fn, (X, 3 * X),
        optimizer=optax.adam, learning_rate=0.1, epochs=epochs, batch_size=8, run_dir=run_dir, resume=True, verbose=0,
        callbacks=[
            jc.CSVLogger("log.csv"),
            jc.callbacks.JSONLogger("log.jsonl"),
            jc.TensorBoard("logs", write_graph=False),
            jc.ModelCheckpoint("best", "loss", save_best_only=True, save_weights_only=True),
            jc.BackupAndRestore("unused", save_freq="epoch"),
            jc.LambdaCallback(on_epoch_end=fail, name="crash"),
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run that was never damaged, a shorter one that ended, and one that crashed."""
    at = tmp_path_factory.mktemp("damage")
    whole = fit(at / "whole")
    fit(at / "finished", epochs=2)
    with pytest.raises(Crash):
        fit(at / "interrupted", crash=2)
    return at, whole


def cut_to_nothing(path):
    path.write_bytes(b"")


def cut_by_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_by_some(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 3] ^= 1
    path.write_bytes(data)


def remove(path):
    path.unlink()


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = (cut_to_nothing, cut_by_half, cut_by_some, flip, remove, replace_by_folder)


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def names(path: Path):
    """What an error or a warning may call a file: a checkpoint is named as a whole."""
    if path.parts[0] in ("checkpoints", "result"):
        return {path.parts[1]}
    return {path.parts[0] if path.parts[0] == "best" else path.name}


def is_same(folder, result, whole, ignored):
    for x, y in zip(*map(jax.tree.leaves, (result.params, whole[1].params)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert set(result.history) == set(whole[1].history)
    for name in result.history:
        np.testing.assert_array_equal(result.history[name], whole[1].history[name])
    for name in LOGS:
        if name not in ignored:
            assert (folder / name).read_bytes() == (whole[0] / "whole" / name).read_bytes(), name


def outcome(folders, tmp_path, state, damaged):
    """Damages a copy of a folder, resumes it, and returns how that ended."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders[0] / state, folder)
    for path, damage in damaged:
        if (folder / path).is_file():
            damage(folder / path)
    called = set().union(*(names(path) for path, _ in damaged))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = fit(folder)
        except (ValueError, FileExistsError, IsADirectoryError) as error:
            refused = error
        else:
            refused = None
    if refused is not None:
        assert any(name in str(refused) for name in called), f"names none of {called}: {refused}"
        assert type(refused) in (ValueError, FileExistsError) or "cannot write the" in str(refused), repr(refused)
        return "an error that names the file"
    is_same(folder, result, folders, {path.name for path, _ in damaged} if caught else ())
    said = [str(w.message) for w in caught if "with another request" not in str(w.message)]
    assert all(text.startswith("jaxcb: ") for text in said), said
    return "identical, with a warning" if said else "identical"


def check(folders, tmp_path, cases):
    """Runs cases, and returns how many ended in which way."""
    wrong, counts = [], collections.Counter()
    for state, damaged in cases:
        try:
            counts[outcome(folders, tmp_path, state, damaged)] += 1
        except Exception as error:
            shown = "; ".join(f"{damage.__name__} {path}" for path, damage in damaged)
            wrong.append(f"{state}, {shown}: {type(error).__name__}: {error!s:.300}")
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)
    return counts


def test_damaged_checkpoints_and_results_do_not_matter(folders, tmp_path):
    """The checkpoint before is used, or the training continues from its end to the result."""
    files = files_of(folders[0] / "finished")
    result = next(path for path in files if path.parts[0] == "result" and path.name == "manifest.json")
    newest = [path for path in files if path.parts[0] == "checkpoints"][-1]
    cases = [("finished", [(result, cut_by_half)]), ("finished", [(newest, replace_by_folder), (result, remove)])]
    assert check(folders, tmp_path, cases) == {"identical, with a warning": 2}


@pytest.mark.everyday(2)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_logs_are_noticed(folders, tmp_path, damage):
    logs = [path for path in files_of(folders[0] / "interrupted") if path.name in (*LOGS, "run.jsonl")]
    check(folders, tmp_path, [("interrupted", [(path, damage)]) for path in logs])


@pytest.mark.long
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_with_every_damage(folders, tmp_path, state, damage):
    files = files_of(folders[0] / state)
    counts = check(folders, tmp_path, [(state, [(path, damage)]) for path in files])
    print(state, damage.__name__, dict(counts))


@pytest.mark.long
@pytest.mark.parametrize("state", STATES)
def test_pairs_of_damaged_files(folders, tmp_path, state):
    files, draw = files_of(folders[0] / state), random.Random(0)
    pairs = [[(path, draw.choice(DAMAGES)) for path in draw.sample(files, 2)] for _ in range(60)]
    print(state, "pairs", dict(check(folders, tmp_path, [(state, pair) for pair in pairs])))
