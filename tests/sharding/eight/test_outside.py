"""What leaves a run over a mesh: files, events, numbers of probes, weights for functions of the host."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._events import events_of
from sharding.eight._cases import fit, layouts, loss_fn, make_data, make_params

import jaxcb as jc


@pytest.mark.long
def test_probes_evaluators_and_host_validation_see_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # NormMonitor writes below the current directory
    seen = {}

    def run(name, how):
        def note(run):
            seen.setdefault(name, []).append(float(np.sum(run.state.params["a"]["kernel"])))

        x, y = make_data(50, seed=1)
        return fit(
            epochs=3,
            validation_data=[(x[:32], y[:32]), (x[32:], y[32:])],  # fed by the host; the last does not divide
            callbacks=[jc.callbacks.NormMonitor(every=3), _Note(note)],
            metrics={
                "norm": jc.probe(lambda look: optax.tree.norm(look.grads), every=2),
                "weight": jc.probes.evaluator(lambda params: jnp.sum(params["b"]["kernel"])),
            },
            **how,
        )

    one, many = run("one", {}), run("fsdp", layouts()["fsdp"])
    assert {"norm", "weight", "val_loss"} <= one.history.keys()
    assert one.history.keys() == many.history.keys()
    for name in one.history:
        np.testing.assert_allclose(many.history[name], one.history[name], rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(seen["fsdp"], seen["one"], rtol=1e-4, atol=1e-4)
    assert len(seen["one"]) == 3


class _Note(jc.Callback):
    """Hands the run to a function of the host at each epoch's end."""

    note: object = jc.static()

    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Call(self.note)


@pytest.mark.long
def test_tensorboard_and_checkpoints_of_a_split_state(tmp_path):
    found = {}
    for name, how in {"one": {}, "fsdp": layouts()["fsdp"]}.items():
        directory = tmp_path / name
        board = jc.TensorBoard(directory / "logs", histogram_freq=1, histograms=("params", "grads"), write_graph=True)
        keep = jc.ModelCheckpoint(directory / "weights", monitor="val_loss", save_best_only=True)
        fit(epochs=2, callbacks=[board, keep], **how)
        found[name] = sorted(
            value.tag
            for run in (directory / "logs", *(directory / "logs").glob("*/"))
            for event in events_of(run)
            for value in event.summary.value
        )
        loaded = jc.load(directory / "weights", make_params())
        assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, make_params())
        found[name, "loss"] = jc.evaluate(loaded, loss_fn, make_data(50, seed=1), batch_size=32)["loss"]
    assert any("kernel" in tag for tag in found["one"])
    assert found["fsdp"] == found["one"]
    np.testing.assert_allclose(found["fsdp", "loss"], found["one", "loss"], rtol=1e-4)
