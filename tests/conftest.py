"""Settings of all tests: strict JAX, a compilation cache, and the Hypothesis profiles."""

import contextlib
import ctypes
import gc
import importlib.metadata
import math
import os
import signal
import zlib

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
# Before JAX is imported: programs that compile in less than half of the time. Most of the compiling of a small program
# is the work of jax 0.10's emitters of fused kernels; later versions know no other. Compiling the parts of a program in
# several threads is slower where several processes test.
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    + ["--xla_cpu_use_fusion_emitters=false"] * importlib.metadata.version("jax").startswith("0.10.")
    + [os.environ.get("XLA_FLAGS", "")]
)

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from _blocks import VARIABLE, use_blocks
from _patience import PATIENCE

HERE = Path(__file__).parent
MEMORY = 1100 << 20  # bytes of a process, and
GROWTH = 200 << 20  # bytes since the last time, at which it drops what it has compiled

EXECUTORS = ("looped", "stepped")
CACHE = {
    "jax_compilation_cache_dir": str(HERE / ".jax_cache"),
    "jax_persistent_cache_min_compile_time_secs": 0.15,  # to write costs time, too
    "jax_persistent_cache_enable_xla_caches": "none",
}
jax.config.update("jax_numpy_rank_promotion", "raise")
for _name, _value in CACHE.items():
    jax.config.update(_name, _value)

_COMMON = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("quick", max_examples=10, derandomize=True, database=None, **_COMMON)
hypothesis.settings.register_profile("deep", max_examples=150, **_COMMON)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--block 7` runs every looped run in blocks of 7 steps."""
    parser.addoption("--block", type=int, default=None, help="steps of a block of the looped executor")
    parser.addoption("--cases", choices=("some", "other"), default="some", help="which cases are everyday tests")


def pytest_configure(config: pytest.Config) -> None:
    """`-m deep`, or JAXCB_DEEP=1, looks at many more examples, other ones each time."""
    if config.getoption("block"):
        os.environ[VARIABLE] = str(config.getoption("block"))
    if os.environ.get(VARIABLE):
        use_blocks()
    deep = config.getoption("markexpr") == "deep" or os.environ.get("JAXCB_DEEP") == "1"
    hypothesis.settings.load_profile("deep" if deep else "quick")
    config.pluginmanager.register(BoundedMemory())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the cases as long that are not everyday tests.

    Of two cases that differ in the executor alone, one is an everyday test, and of the cases of a test that is marked
    `everyday(n)`, n are. A hash of the name chooses them. `--cases other` chooses other ones; `make test-newest` does.
    """
    other = config.getoption("cases") == "other"
    pairs: dict[str, dict[str, pytest.Item]] = {}
    for item in _not_long(items):
        executor = getattr(getattr(item, "callspec", None), "params", {}).get("executor")
        if executor in EXECUTORS:
            pairs.setdefault(item.nodeid.replace(executor, "executor"), {})[executor] = item
    for name, pair in pairs.items():
        if len(pair) == len(EXECUTORS):
            which = (_hash(name) + other) % len(EXECUTORS)
            # `--block` changes the looped executor
            pair["stepped" if config.getoption("block") else EXECUTORS[which]].add_marker(pytest.mark.long)
    cases: dict[str, list[pytest.Item]] = {}
    for item in _not_long(items):
        if item.get_closest_marker("everyday") is not None:
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    for of in cases.values():
        marker = of[0].get_closest_marker("everyday")
        assert marker is not None
        of.sort(key=lambda item: _hash(item.nodeid), reverse=other)
        for item in of[marker.args[0] :]:
            item.add_marker(pytest.mark.long)


def _not_long(items: list[pytest.Item]) -> list[pytest.Item]:
    return [item for item in items if item.get_closest_marker("long") is None]


def _hash(name: str) -> int:
    return zlib.crc32(name.encode())


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leaves what the imports have made to no garbage collection: to walk all of it took a sixth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """No implicit promotion of dtypes: for what is all our own arithmetic."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def children_share_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts compile as the tests do."""
    for name in CACHE:
        monkeypatch.setenv(name.upper(), str(getattr(jax.config, name)))


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C reaches this process and its children, also where a shell runs the tests in the background.

    There SIGINT is ignored from the start, which children inherit, and Python sets no handler for it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _no_clock() -> Iterator[None]:
    """Switches off what a run does by the clock: no test depends on how fast the machine is."""
    from jaxcb._src.checkpointing import checkpointer
    from jaxcb._src.data.stream import prefetch

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prefetch, "_JOIN_SECONDS", PATIENCE)  # else a thread that ends late is left to itself
        patched.setattr(checkpointer, "SAVE_SECONDS", math.inf)  # else a slow run saves once more
        yield


class BoundedMemory:
    """Drops compiled programs after a test, once the process is large; also after the examples in docstrings."""

    def __init__(self) -> None:
        self._after_clearing = 0

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        """Drops them if the process has grown."""
        if _resident_bytes() <= max(MEMORY, self._after_clearing + GROWTH):
            return
        import jaxcb as jc

        jc.clear_caches()
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # the freed memory stays with the process otherwise
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._after_clearing = _resident_bytes()


def _resident_bytes() -> int:
    """The memory of this process; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
