"""What a run shows: lines, a bar, or nothing."""

import re
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from loop._runs import fit

import jaxcb as jc
from jaxcb._src.writers.progress import ProgressWriter
from jaxcb._src.writers.run_handle import Record
from jaxcb.writers import Context

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run(**changes):
    return fit(**({"epochs": 3, "callbacks": []} | changes))


def test_verbose_0_is_silent(capsys):
    run(verbose=0)
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "")


@pytest.mark.parametrize("verbose", [1, 2, None])
def test_without_a_terminal_there_is_a_line_an_epoch(capsys, verbose):
    result = run(verbose=verbose)
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"jaxcb: looped executor \(as requested\)", lines[0])
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 3
    for number, line in enumerate(epochs, 1):
        assert line.startswith(f"epoch {number}/3 · step {5 * number} · ")
        assert f"loss {result.history['loss'][number - 1]:.4g} · " in line
        assert f"val_loss {result.history['val_loss'][number - 1]:.4g}" in line
        assert "learning_rate 0.05" in line
        assert "base_learning_rate" not in line
        assert line.split(" · ")[2].startswith("loss ")  # then other metrics, validation, the rate, and the seconds
        assert re.search(r" · learning_rate 0.05 · [\d.e-]+ s(, after [\d.]+ s of compiling)?$", line)
    assert "\x1b" not in "".join(lines)
    assert "" not in lines


def test_the_reason_of_a_stop_is_said_once(capsys):
    run(verbose=2, callbacks=[jc.EarlyStopping("loss", patience=1, min_delta=1e6)])
    out = capsys.readouterr().out
    assert out.count("EarlyStopping: loss has not improved for 1 reports") == 1
    assert "stopped in epoch 2" in out


def test_validations_amid_an_epoch_have_lines_of_their_own_with_fresh_values_only(capsys):
    run(verbose=2, epochs=1, eval_every=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [re.search(r"step (\d+)", line).group(1) for line in lines] == ["2", "4", "5"]
    assert " loss " not in lines[0]
    assert "val_loss" in lines[0]
    assert " loss " in lines[2]


def test_a_run_of_steps_names_no_number_of_epochs(capsys):
    run(verbose=2, epochs=None, steps=7)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split(" · ")[:2] for line in lines] == [["epoch 1", "step 5"], ["epoch 2", "step 7"]]


def test_a_callbacks_own_lines_are_printed_even_where_the_run_is_silent(capsys):
    run(verbose=0, callbacks=[jc.EarlyStopping("loss", patience=1, min_delta=1e6, verbose=1)])
    assert capsys.readouterr().out.startswith("Epoch 2: early stopping, loss has not improved for 1 reports")


def test_the_users_own_progress_bar_is_not_doubled(capsys):
    run(verbose=None, callbacks=[jc.ProgressBar(verbose=2)])
    assert capsys.readouterr().out.count("epoch 1/3 ") == 1


@pytest.fixture
def terminal(monkeypatch):
    """What rich takes for a terminal."""
    monkeypatch.setattr("rich._console", None)  # it looks at the terminal once
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.parametrize("verbose", [1, None])
def test_on_a_terminal_a_bar_shows_and_goes_away(capsys, terminal, monkeypatch, verbose):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(
        "jaxcb._src.writers.progress._PAUSE", 0.0
    )  # so short a run would be over before the next drawing
    run(verbose=verbose, epochs=4, steps_per_execution=2)
    raw = capsys.readouterr().out
    assert "\x1b[?25l" in raw  # the cursor is hidden
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")  # and comes back
    text = ANSI.sub("", raw)
    assert re.search(r"epoch \d/4 .*━.*\d/5 ", text)
    # lines of finished epochs stay
    for number in range(1, 5):
        assert f"epoch {number}/4 · step {5 * number} · " in text


def test_the_bar_goes_away_after_an_error_too(capsys, terminal):
    def fails(epoch, logs):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        run(verbose=1, callbacks=[jc.LambdaCallback(on_epoch_end=fails)])
    raw = capsys.readouterr().out
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")


def test_what_compiling_took_is_said_once_and_not_where_nothing_was_compiled(capsys):
    loss = lambda p, b: jnp.mean((b[0] @ p["w"] + p["b"] - b[1]) ** 2) * 1.25  # noqa: E731
    for compiles in (True, False):
        run(verbose=2, loss_fn=loss)
        out = capsys.readouterr().out
        assert out.count("s of compiling") == compiles
        assert out.count("s of them compiling") == compiles


# The writer alone


def status(step, *, epoch=0, cursor=None, yielded=False, **window):
    cursor = step if cursor is None else cursor
    return SimpleNamespace(step=step, epoch=epoch, cursor=cursor, window=window, yielded=yielded, awaits=False)


@pytest.fixture
def bar(terminal):
    context = Context(None, None, 1, 3)
    context.steps_per_epoch = 10
    writer = ProgressWriter(context)
    writer.prepare(jc.actions.LogProgress({}, {}, 1))
    yield writer
    writer.close()


def set_clock(monkeypatch, clock):
    """The writer's own clock: threads of others ask the real one."""
    monkeypatch.setattr("jaxcb._src.writers.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))


def test_the_bar_tells_position_metrics_and_speed(bar, monkeypatch):
    clock = iter([100.0, 102.0, 103.0, 104.0])
    set_clock(monkeypatch, clock)
    bar.tick(status(0, loss=np.float32(np.nan)))
    task = bar._bar.tasks[0]
    assert (task.description, task.completed, task.total) == ("epoch 1/3", 0, 10)
    assert task.fields["figures"] == task.fields["speed"] == ""
    bar.tick(status(8, loss=np.float32(0.51234)))
    assert (task.completed, task.fields["figures"], task.fields["speed"]) == (8, "loss 0.5123", "4 steps/s")
    bar.tick(status(12, epoch=1, cursor=2, loss=np.float32(0.25)))
    assert (task.description, task.completed, task.fields["speed"]) == ("epoch 2/3", 2, "4 steps/s")
    bar.tick(status(30, epoch=3, cursor=0))
    assert task.description == "epoch 3/3"  # the run is over; there is no fourth


def test_the_speed_stays_where_several_updates_come_at_one_step(bar, monkeypatch):
    set_clock(monkeypatch, iter([100.0, 102.0, 102.1, 102.2, 104.2]))
    bar.tick(status(0))
    task = bar._bar.tasks[0]
    bar.tick(status(4, yielded=True))
    assert task.fields["speed"] == "2 steps/s"
    bar.tick(status(4, yielded=True))  # a host callback is about to run
    bar.tick(status(4))
    assert task.fields["speed"] == "2 steps/s"
    bar.tick(status(104))
    assert task.fields["speed"] == "45 steps/s"


@pytest.mark.parametrize("waits", ["yielded", "awaits"])
def test_the_bar_shows_the_position_while_the_host_acts(bar, monkeypatch, waits):
    set_clock(monkeypatch, iter([100.0, 100.01, 100.02]))
    bar.tick(status(0))
    bar.tick(status(5))  # a moment later: not drawn
    task = bar._bar.tasks[0]
    assert task.completed == 0
    now = status(8)
    setattr(now, waits, True)
    bar.tick(now)
    assert task.completed == 8


def test_epochs_of_one_dispatch_share_its_seconds_by_their_steps(monkeypatch, capsys):
    writer = ProgressWriter(Context(None, None, 2, 3))
    clock, compiled = [writer._line_at], [0.0]
    monkeypatch.setattr("jaxcb._src.writers.progress.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("jaxcb._src.writers.progress.seconds_compiling", lambda: writer._compiled + compiled[0])
    for building, seconds, steps in ((2.0, 8.0, (10, 20, 30)), (0.0, 3.0, (40,))):
        compiled[0], clock[0] = building, clock[0] + seconds
        for step in steps:
            values = {"loss": np.float32(step)}
            action = jc.actions.LogProgress(values, {"loss": np.True_}, 2)
            writer.write(Record(action, "on_epoch_end", step, step // 10 - 1, 10))
            writer.write(Record(jc.actions.Print("between"), "on_epoch_end", step, 0, 10))
        writer.flush()
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/3 · step 10 · loss 10 · 2 s, after 2 s of compiling", "between",
        "epoch 2/3 · step 20 · loss 20 · 2 s", "between",
        "epoch 3/3 · step 30 · loss 30 · 2 s", "between",
        "epoch 4/3 · step 40 · loss 40 · 3 s", "between",
    ]  # fmt: skip


def test_each_of_several_rates_comes_after_the_metrics(capsys):
    writer = ProgressWriter(Context(None, None, 2, 3))
    names = ("accuracy", "learning_rate/body", "learning_rate/head", "loss", "val_loss")
    action = jc.actions.LogProgress({n: np.float32(0.5) for n in names}, dict.fromkeys(names, np.True_), 2)
    writer.write(Record(action, "on_epoch_end", 10, 0, 10))
    writer.flush()
    shown = [part.split()[0] for part in capsys.readouterr().out.split(" · ")[2:-1]]
    assert shown == ["loss", "accuracy", "val_loss", "learning_rate/body", "learning_rate/head"]


def test_lines_that_come_together_draw_the_bar_once(bar, monkeypatch, capsys):
    clock = iter([100.0, 100.05, 100.2, 100.21, 100.22])
    set_clock(monkeypatch, clock)
    bar.tick(status(0))
    printed = []
    draw = bar._bar.console.print

    def note(*what, **how):
        printed.extend(w for w in what if isinstance(w, str))  # rich prints controls of its own, too
        draw(*what, **how)

    monkeypatch.setattr(bar._bar.console, "print", note)
    for epoch in range(40):
        bar.write(Record(jc.actions.Print("after {epoch}"), "on_epoch_end", 10 * (epoch + 1), epoch, 10))
    bar.tick(status(400, epoch=40, cursor=0))
    assert printed == []  # it was drawn a moment ago
    bar.tick(status(401, epoch=40, cursor=1))
    assert printed == ["\n".join(f"after {epoch}" for epoch in range(1, 41))]
    bar.write(Record(jc.actions.Print("a host function prints next"), "on_epoch_end", 401, 40, 1))
    bar.tick(status(401, epoch=40, cursor=1))
    assert len(printed) == 1
    bar.tick(status(401, epoch=40, cursor=1, yielded=True))
    bar.write(Record(jc.actions.Print("the last one"), "on_train_end", 401, 40, 1))
    bar.close()
    assert printed[1:] == ["a host function prints next", "the last one"]


def test_the_writer_closes_twice_without_harm(bar, capsys):
    bar.tick(status(1))
    bar.close()
    bar.close()
    print_action = jc.actions.Print("after {step}")
    bar.write(Record(print_action, "on_train_end", 5, 0, 5))
    assert capsys.readouterr().out.endswith("after 5\n")


def test_lines_are_printed_as_they_are(bar, capsys):
    bar.tick(status(1))
    text = "[bold]not markup[/bold] 'quoted' " + "x" * 300
    bar.write(Record(jc.actions.Print(text), "on_epoch_end", 1, 0, 1))
    bar.close()
    out = ANSI.sub("", capsys.readouterr().out)
    assert text in out


def test_without_a_bar_nothing_ticks(capsys):
    writer = ProgressWriter(Context(None, None, 2, 3))
    writer.prepare(jc.actions.LogProgress({}, {}, 2))
    writer.tick(status(5))
    writer.close()
    assert capsys.readouterr().out == ""
