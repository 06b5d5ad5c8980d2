"""Which signals a run takes, and which it leaves to whoever has them."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from loop import _runs

import jaxcb as jc
from jaxcb._src.loop.host.stops import Interrupted, Signals

ROOT = Path(jc.__file__).parents[1]
ENDINGS = {signal.SIGTERM: SystemExit, signal.SIGINT: KeyboardInterrupt}
every_signal = pytest.mark.parametrize("signum", list(ENDINGS), ids=lambda signum: signum.name)


def others(signum, frame):
    """A handler of somebody else."""


@contextlib.contextmanager
def handled(signum, handler):
    before = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, before)


def told(*signums, at=1):
    """Sends this process signals at an epoch's end."""

    def tell(epoch, logs):
        for signum in signums if epoch == at else ():
            os.kill(os.getpid(), signum)

    return jc.LambdaCallback(on_epoch_end=tell, name=f"told at {at}")


def train(*callbacks):
    return _runs.fit(epochs=3, callbacks=list(callbacks), validation_data=None)


@every_signal
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.default_int_handler], ids=["default", "Python's default"])
def test_a_signal_with_its_default_ends_the_run(signum, handler):
    with handled(signum, handler):
        with pytest.raises(ENDINGS[signum]):
            train(told(signum))
        assert signal.getsignal(signum) is handler


@every_signal
@pytest.mark.parametrize("handler", [signal.SIG_IGN, others], ids=["ignored", "somebody else's"])
def test_a_signal_that_is_ignored_or_handled_is_left_alone(signum, handler):
    with handled(signum, handler):
        assert int(train(told(signum)).state.step) == 15
        assert signal.getsignal(signum) is handler


def test_where_one_is_ignored_the_other_is_taken():
    with handled(signal.SIGINT, signal.SIG_IGN), pytest.raises(SystemExit) as caught:
        train(told(signal.SIGINT, signal.SIGTERM))
    assert caught.value.code == 143


@every_signal
@pytest.mark.parametrize("handler", [signal.SIG_IGN, others], ids=["ignored", "somebody else's"])
def test_a_handler_that_is_set_during_a_run_stays(signum, handler):
    change = jc.LambdaCallback(on_epoch_begin=lambda epoch, logs: signal.signal(signum, handler))
    with handled(signum, signal.SIG_DFL):
        assert int(train(change, told(signum)).state.step) == 15
        assert signal.getsignal(signum) is handler


@every_signal
def test_a_run_in_another_thread_takes_no_signal(signum):
    found = []

    def enter():
        with Signals() as signals:
            found.append((signal.getsignal(signum), signals.received))

    before = signal.getsignal(signum)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(before, None)]


@every_signal
def test_a_signal_that_came_before_the_wait_ends_it(signum):
    with handled(signum, signal.SIG_DFL), Signals() as signals:
        signal.raise_signal(signum)
        with pytest.raises(Interrupted), signals.interrupting():
            pytest.fail("the body waits")
        assert not signals.waiting


IN_THE_BACKGROUND = """
import signal
from loop.host.test_signals import told, train
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
train(told(signal.SIGINT), told(signal.SIGTERM, at=2))
"""


@pytest.mark.slow
def test_ctrl_c_does_not_end_what_a_script_put_in_the_background_and_sigterm_does():
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parents[2])])
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -c "$1" & wait $!', sys.executable, IN_THE_BACKGROUND],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 143, done.stderr
