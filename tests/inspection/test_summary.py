"""What a model is made of: as a value, and as a run prints it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from loop._runs import fit, make_params, make_state

import jaxcb as jc
from jaxcb._src.inspection.summary import as_text, shown, summarize
from jaxcb._src.inspection.traced_step import TracedStep
from jaxcb._src.writers.host import SummaryWriter
from jaxcb.writers import Context


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, param_dtype=jnp.bfloat16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.head(self.dropout(x))


def net_loss(model, batch):
    return jnp.mean(model(batch).astype(jnp.float32) ** 2)


IMAGES = np.ones((6, 5, 5, 1), np.float32)


def test_every_array_stands_in_it_once_with_its_part_of_the_total():
    summary = jc.model_summary(Net(nnx.Rngs(0)), net_loss, IMAGES)
    lines = {line.path: line for line in summary.lines}
    assert {path: line.trainable for path, line in lines.items()} == {
        **dict.fromkeys(("conv/bias", "conv/kernel", "head/bias", "head/kernel", "norm/bias", "norm/scale"), True),
        **dict.fromkeys(("norm/mean", "norm/var"), False),
    }
    head = lines["head/kernel"]
    assert (head.shape, head.dtype, head.parameters, head.bytes) == ((4, 2), "bfloat16", 8, 16)
    assert head.flops == 2.0 * 6 * 4 * 2
    assert lines["norm/scale"].flops == 0.0
    assert summary.trainable == 4 + 36 + 2 + 8 + 4 + 4
    assert summary.parameters == summary.trainable + 8
    assert summary.flops == summary.step == sum(line.flops for line in summary.lines)


def test_groups_add_up():
    summary = jc.model_summary(Net(nnx.Rngs(0)), net_loss, IMAGES)
    grouped = summary.grouped(1)
    assert [(line.path, line.trainable, line.arrays) for line in grouped.lines] == [
        ("conv", True, 2),
        ("head", True, 2),
        ("norm", True, 2),
        ("norm", False, 2),
    ]
    assert grouped.lines[1].dtype == "bfloat16"
    for total in ("parameters", "trainable", "bytes", "flops"):
        assert getattr(grouped, total) == getattr(summary, total)
    assert summary.grouped(9) == summary


def test_a_run_prints_the_step_that_it_trains(capsys):
    fit(
        epochs=1,
        batch_size=8,
        callbacks=[jc.callbacks.ModelSummary()],
        model=Net(nnx.Rngs(0)),
        loss_fn=net_loss,
        data=IMAGES,
        validation_data=None,
    )
    out = capsys.readouterr().out
    assert not any(line != line.rstrip() for line in out.splitlines())
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert lines["conv/kernel"].split("float32")[1].split()[:3] == ["36", "144", "B"]
    assert "not trained:" in out
    assert out.splitlines()[-1].startswith("66 parameters · 58 trained, 8 not · 244 B")


def test_a_run_shows_the_flops_of_its_step(capsys):
    fit(epochs=1, batch_size=35, callbacks=[jc.callbacks.ModelSummary(), jc.callbacks.ModelSummary(verbose=0)])
    out = capsys.readouterr().out
    assert out.count("forward pass 210 FLOP per batch · training step") == 2


def test_a_writer_without_a_step_makes_do_with_the_arrays(capsys):
    writer = SummaryWriter(Context(None, SimpleNamespace(state=make_state(), traced_step=None, frozen=()), 0, 1))
    writer.write(SimpleNamespace(action=jc.actions.Summarize(verbose=0)))
    assert capsys.readouterr().out == "4 parameters · 4 trained, 0 not · 16 B · 77 B of gradients and optimizer state\n"


def test_without_a_step_there_are_no_flops():
    summary = jc.model_summary(make_params())
    assert (summary.flops, summary.step) == (None, None)
    assert all(line.flops is None for line in summary.grouped(1).lines)
    assert "FLOP" not in str(summary)
    assert "4 parameters · 4 trained, 0 not · 16 B" in as_text(summary)


@pytest.mark.parametrize(
    ("quantity", "base", "text"),
    [
        (0, 1000, "0 B"),
        (999, 1000, "999 B"),
        (1000, 1000, "1.00 kB"),
        (1536, 1024, "1.50 KiB"),
        (2.5e10, 1000, "25.0 GB"),
    ],
)
def test_quantities_are_written_for_reading(quantity, base, text):
    assert shown(quantity, "B", base=base) == text


def test_an_optimizer_of_matrices_changes_no_forward_pass():
    params = {"w": jnp.ones((8, 8))}
    fn = jc.Step(lambda p, x: jnp.mean((x @ p["w"]) ** 2))
    state = jc.TrainState.create(params=params, tx=optax.contrib.muon(1e-3))
    traced = jax.jit(fn).trace(state, jnp.ones((4, 8)))
    summary = summarize(state, TracedStep(traced.jaxpr, state, jnp.ones((4, 8)), {}))
    assert summary.flops == 2.0 * 4 * 8 * 8
    assert summary.step > 2 * summary.flops


def test_flops_need_both_a_loss_and_a_batch():
    with pytest.raises(ValueError, match="got a batch but no loss_fn"):
        jc.model_summary(make_params(), batch=IMAGES)
    with pytest.raises(ValueError, match="got a loss_fn but no batch"):
        jc.model_summary(make_params(), net_loss)
