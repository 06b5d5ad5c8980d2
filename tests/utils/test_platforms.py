"""What Windows and macOS lack: one module asks for it, and does without."""

import ast
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc
from jaxcb._src.checkpointing.lock import lock_run_dir
from jaxcb._src.storage.orbax import _link
from jaxcb._src.utils import platforms
from jaxcb._src.utils.platforms import has_ended, is_locked, link_or_copy, only_writer, this_process, try_lock
from jaxcb._src.writers.files import AppendFile

HERE = Path(jc.__file__).parent
MODULES = {"fcntl", "msvcrt", "pwd", "grp", "resource", "termios", "winreg"}
ASKED = {
    *("os.fork", "os.getuid", "os.kill", "os.mkfifo", "os.name", "os.readlink", "os.register_at_fork", "os.symlink"),
    *("os.sched_getaffinity", "os.sysconf", "os.uname", "sys.platform", "platform.system", "signal.SIGKILL"),
    *("signal.SIGALRM", "signal.SIGUSR1", "signal.setitimer"),
}  # fmt: skip


def asked(source: str) -> set[str]:
    """What a module uses that not all systems have: modules, attributes, and paths of Linux."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            found |= MODULES & set(names)
        if isinstance(node, ast.Attribute):
            found |= ASKED & {ast.unparse(node)}
            found |= {"symlink_to"} & {node.attr}
        if isinstance(node, ast.Constant) and str(node.value).startswith("/proc"):
            found.add("/proc")
    return found


def test_one_module_alone_asks_for_what_not_all_systems_have():
    found = {path.relative_to(HERE).as_posix(): asked(path.read_text()) for path in HERE.rglob("*.py")}
    assert len(found) > 200
    assert [name for name, what in found.items() if what] == ["_src/utils/platforms.py"]
    assert found["_src/utils/platforms.py"] >= {"fcntl", "os.sysconf", "os.kill", "sys.platform", "/proc", "symlink_to"}


@pytest.fixture
def windows(monkeypatch, tmp_path):
    """What Windows does not have is not there."""

    def refuse(*args, **kwargs):
        raise OSError(22, "A required privilege is not held by the client")

    plain = os.open

    def open_file(path, *args, **kwargs):
        if not isinstance(path, int) and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(platforms, "fcntl", None)
    monkeypatch.setattr(platforms, "WINDOWS", True)
    monkeypatch.setattr(platforms, "_PROC", tmp_path / "nothing")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.delattr(os, "sysconf")


@pytest.fixture
def macos(monkeypatch, tmp_path):
    """It has locks, and no list of them."""
    monkeypatch.setattr(platforms, "_PROC", tmp_path / "nothing")


def held_and_released(directory: Path) -> tuple[bool, bool]:
    """Whether a directory is locked while a lock is held, and then."""
    descriptor = try_lock(directory)
    assert descriptor is not None
    held = is_locked(directory)
    with pytest.raises(BlockingIOError):
        try_lock(directory)
    os.close(descriptor)
    return held, is_locked(directory)


def test_a_lock_is_seen_while_it_is_held(tmp_path):
    assert held_and_released(tmp_path) == (True, False)
    assert not is_locked(tmp_path / "none")


@pytest.mark.usefixtures("macos")
def test_a_lock_is_seen_without_a_list_of_locks(tmp_path):
    assert held_and_released(tmp_path) == (True, False)
    assert not is_locked(tmp_path / "none")


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(platforms.fcntl, "flock", refuse)
    assert try_lock(tmp_path) is None
    with only_writer(0), lock_run_dir(tmp_path):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("windows")
def test_without_locks_two_runs_may_use_one_folder(tmp_path):
    with lock_run_dir(tmp_path / "run"), lock_run_dir(tmp_path / "run"):
        assert not is_locked(tmp_path / "run")


@pytest.mark.usefixtures("windows")
def test_without_locks_text_of_others_is_kept(tmp_path):
    first, second = (AppendFile(tmp_path / "log.csv", append=True, shared=True) for _ in range(2))
    for i in range(3):
        for file, name in ((first, "a"), (second, "b")):
            file.write(f"{name},{i}\n")
            file.flush()
    first.close()
    second.close()
    assert (tmp_path / "log.csv").read_text().split() == ["a,0", "b,0", "a,1", "b,1", "a,2", "b,2"]


def test_this_process_lives_and_its_child_has_ended(tmp_path, monkeypatch):
    here = this_process()
    boot, space, pid, started = here.split(" ")
    assert int(pid) == os.getpid()
    assert not has_ended(here)
    assert has_ended(f"{boot} {space} {pid} {int(started) + 1}")  # one that had its id before
    assert not has_ended(f"another {space} {pid} {int(started) + 1}")  # of another machine
    monkeypatch.setattr(platforms, "_PROC", tmp_path)
    assert this_process() == ""
    assert not has_ended(here)


@pytest.mark.parametrize("refused", [False, True], ids=["links", "copies"])
def test_links_have_the_contents(tmp_path, monkeypatch, refused):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "inner").write_text("inner")
    (source / "file").write_text("outer")
    target.mkdir()
    if refused:

        def refuse(*args, **kwargs):
            raise OSError(22, "A required privilege is not held by the client")

        monkeypatch.setattr(Path, "symlink_to", refuse)
    _link(source, target)
    assert (target / "file").read_text() == "outer"
    assert (target / "folder" / "inner").read_text() == "inner"
    assert (target / "file").is_symlink() is not refused
    assert link_or_copy.__module__ == platforms.__name__


def test_the_memory_is_known_or_a_number_that_each_machine_has(monkeypatch):
    known = platforms.memory()
    assert known is not None
    assert platforms.least_memory() == known > platforms._MEMORY // 4
    monkeypatch.delattr(os, "sysconf")
    assert platforms.memory() is None
    assert platforms.least_memory() == platforms._MEMORY


@pytest.mark.parametrize("windows", [False, True])
def test_the_cache_is_where_the_system_has_it(tmp_path, monkeypatch, windows):
    monkeypatch.setattr(platforms, "WINDOWS", windows)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert platforms.cache_directory() == tmp_path / ("local" if windows else "xdg")
    monkeypatch.delenv("LOCALAPPDATA")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert platforms.cache_directory() == Path.home() / ("AppData/Local" if windows else ".cache")


def loss_fn(params, batch):
    return jnp.mean((batch @ params["w"] - 1.0) ** 2)


def train(directory: Path, epochs: int, *, resume: bool = False) -> jc.Result:
    rows = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
    return jc.fit(
        {"w": jnp.ones(2)},
        loss_fn,
        rows,
        optimizer=optax.adam,
        learning_rate=0.1,
        epochs=epochs,
        batch_size=4,
        verbose=0,
        run_dir=directory,
        resume=resume,
        callbacks=[jc.CSVLogger("log.csv"), jc.EarlyStopping("loss", patience=2)],
    )


def test_a_run_resumes_without_what_windows_lacks(tmp_path, request):
    """The same numbers and the same log as on Linux."""
    whole = train(tmp_path / "linux", 4)
    request.getfixturevalue("windows")
    train(tmp_path / "windows", 2)
    assert list((tmp_path / "windows" / "checkpoints").glob("step_*"))
    resumed = train(tmp_path / "windows", 4, resume=True)
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])
    assert (tmp_path / "windows" / "log.csv").read_text() == (tmp_path / "linux" / "log.csv").read_text()
