"""Probes: looks inside the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop import _runs

import jaxcb as jc
from jaxcb._src.writers.history import HistoryWriter

EXECUTORS = ("looped", "stepped")


class Watch(jc.Callback):
    """Records what it sees of one metric at every step, before and after the update."""

    monitor: str = jc.static(default="norm")

    def _row(self, metrics):
        seen = {"value": metrics[self.monitor]}
        return jc.actions.LogCSV(seen, {"value": metrics.fresh(self.monitor)}, "watch.csv")

    def on_batch_end(self, state, metrics):
        return state, self._row(metrics)


def by_hand(steps, shuffle_seedless=True):
    """The gradients' norms of a plain loop over the same batches in their order."""
    x, y = _runs.make_data()
    params, tx = _runs.make_params(), optax.adam(0.05)
    opt_state, norms, updates_norms = tx.init(params), [], []
    for step in range(steps):
        start = (step % 5) * 16
        batch = (x[start : start + 16], y[start : start + 16])
        grads = jax.grad(lambda p, b: _runs.loss_fn(p, b)[0])(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        norms.append(float(optax.tree.norm(grads)))
        updates_norms.append(float(optax.tree.norm(updates)))
        params = optax.apply_updates(params, updates)
    return norms, updates_norms


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("every", [1, 2, 7])
def test_a_probe_sees_the_gradients_of_a_hand_written_loop_when_it_is_due(tmp_path, executor, every):
    _runs.fit(
        executor,
        epochs=3,
        shuffle=False,
        callbacks=[Watch()],
        run_dir=tmp_path,
        metrics={"norm": jc.probe(lambda look: optax.tree.norm(look.grads), every=every)},
    )
    rows = (tmp_path / "watch.csv").read_text().splitlines()[1:]
    norms, _ = by_hand(15)
    for step, row in enumerate(rows, 1):
        seen = row.split(",")[-1]
        if step % every:
            assert seen == "NA"
        else:
            np.testing.assert_allclose(float(seen), norms[step - 1], rtol=1e-4)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_history_holds_the_mean_over_the_looks_of_an_epoch(executor):
    history = _runs.fit(
        executor,
        epochs=4,
        shuffle=False,
        callbacks=[],
        validation_data=None,
        metrics={"norm": jc.probes.update_norm(every=7)},
    ).history
    _, norms = by_hand(20)
    looks = {6: 1, 13: 2}  # steps 7 and 14 lie in the epochs 1 and 2
    np.testing.assert_allclose(history["norm"][[1, 2]], [norms[6], norms[13]], rtol=1e-4)
    assert history.reported("norm").tolist() == [False, True, True, False], looks


@pytest.mark.parametrize("executor", EXECUTORS)
def test_probes_change_nothing_of_the_run(executor):
    bare = _runs.fit(executor, epochs=3)
    probed = _runs.fit(executor, epochs=3, metrics={"n": jc.probes.grad_norm(every=3)})
    for name in bare.history:
        np.testing.assert_allclose(bare.history[name], probed.history[name], rtol=1e-5)


def test_a_probe_that_is_not_due_is_not_run():
    ran = []

    def look(seen):
        jax.debug.callback(lambda: ran.append(1))
        return optax.tree.norm(seen.grads)

    _runs.fit(epochs=4, callbacks=[], validation_data=None, metrics={"norm": jc.probe(look, every=8)})
    jax.effects_barrier()
    assert len(ran) == 2  # of 20 steps


def test_layers_have_their_own_norms():
    params = {"a": {"w": jnp.full((3, 1), 0.5), "b": jnp.zeros(())}, "c": jnp.ones(())}

    def loss_fn(p, batch):
        return jnp.mean((batch[0] @ p["a"]["w"] + p["a"]["b"] * p["c"] - batch[1]) ** 2)

    result = _runs.fit(
        model=params,
        loss_fn=loss_fn,
        epochs=1,
        callbacks=[],
        metrics={"p": jc.probes.param_norm(per_layer=True), "r": jc.probes.update_ratio()},
    )
    assert {"p/a", "p/c", "r"} <= set(result.history)
    assert 0 < result.history["r"][0] < 1


def test_a_probe_sees_outputs_that_the_loss_hands_out():
    def loss_fn(params, batch):
        x, y = batch
        outputs = x @ params["w"] + params["b"]
        return jc.Out(jnp.mean((outputs - y) ** 2), aux={"outputs": outputs})

    result = _runs.fit(
        loss_fn=loss_fn, epochs=1, callbacks=[], metrics={"rows": jc.probe(lambda p: p.aux["outputs"].shape[0])}
    )
    assert 6 < result.history["rows"][0] <= 16


def test_callbacks_see_probes_before_the_update():
    """Gradients that are too large are skipped in the very step."""

    class SkipLarge(jc.Callback):
        def probes(self):
            return {"norm": jc.probe(lambda look: optax.tree.norm(look.grads))}

        def on_before_update(self, state, metrics):
            return state, jc.actions.SkipUpdate(when=metrics.fresh("norm") & (metrics["norm"] > 0.0))

    result = _runs.fit(epochs=2, callbacks=[SkipLarge()])
    for start, end in zip(jax.tree.leaves(_runs.make_params()), jax.tree.leaves(result.params), strict=True):
        np.testing.assert_array_equal(start, end)
    assert int(result.state.step) == 10


def test_what_fails_names_the_probe():
    with pytest.raises(AttributeError) as caught:
        _runs.fit(metrics={"odd": jc.probe(lambda look: look.gradients, every=10)})  # pyright: ignore[reportAttributeAccessIssue]
    assert "This happened in the probe 'odd'" in "\n".join(caught.value.__notes__)
    with pytest.raises(TypeError, match=r"metrics\['norm'\] is a function. Make it with jc\.probe"):
        _runs.fit(metrics={"norm": lambda look: 0.0})
    with pytest.raises(ValueError, match=r"every must be a whole number of at least 1, got 0"):
        jc.probe(lambda look: 0.0, every=0)
    with pytest.raises(ValueError, match="'loss' is the name of the probe 'loss'"):
        _runs.fit(metrics={"loss": jc.probes.grad_norm()})


def test_a_step_that_hides_its_gradients_is_refused_before_the_first_step():
    def train_step(state, batch):
        return state, {"loss": jnp.zeros(())}

    with pytest.raises(ValueError, match=r"the probe 'norm' needs the gradients before the update"):
        jc.Loop(train_step).run(
            _runs.make_state(), _runs.make_data(), epochs=1, verbose=0, metrics={"norm": jc.probes.grad_norm()}
        )


def test_two_callbacks_share_a_look_and_cannot_differ_in_it():
    pair = [jc.callbacks.NormMonitor(every=2, of="grad_norm"), jc.callbacks.NormMonitor(every=2, of="grad_norm")]
    assert list(jc.chain(*pair).probes()) == ["grad_norm"]
    with pytest.raises(ValueError, match="NormMonitor and NormMonitor_2 both define the probe 'grad_norm'"):
        jc.chain(pair[0], jc.callbacks.NormMonitor(every=3, of="grad_norm")).probes()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_gradients_of_ones_own_serve_probes_and_before_update(executor):
    """`Step.from_gradients` is the same step as that of the loss, where it computes the same gradients."""

    def gradients(state, batch):
        (loss, metrics), grads = jax.value_and_grad(_runs.loss_fn, has_aux=True)(state.params, batch)
        return grads, {"loss": loss, **metrics}

    ends = []
    for step in (jc.Step.from_gradients(gradients), jc.Step(_runs.loss_fn)):
        loop = jc.Loop(
            step, callbacks=[jc.callbacks.SpikeDetection(), jc.callbacks.NormMonitor(every=1, of="grad_norm")]
        )
        result = loop.run(
            _runs.make_state(), _runs.make_data(), epochs=2, batch_size=16, verbose=0, run_dir=None,
            execution=jc.Execution(executor=executor, fast_dev_run=10),
        )  # fmt: skip
        ends.append(result)
    np.testing.assert_allclose(ends[0].history["grad_norm"], ends[1].history["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(ends[0].params["w"], ends[1].params["w"], rtol=1e-5)


def test_members_have_their_own_readings():
    states = [_runs.make_state(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    probe = {"norm": jc.probes.grad_norm(every=3)}
    together = _runs.make_driver([], stacked, members=3, epochs=2, metrics=probe)
    together.train()
    rows = together.writer(HistoryWriter).history["norm"]
    for i, state in enumerate(states):
        alone = _runs.make_driver([], state, epochs=2, metrics=probe)
        alone.train()
        np.testing.assert_allclose(rows[:, i], alone.writer(HistoryWriter).history["norm"], rtol=1e-4)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_look_is_fresh_once_before_the_update_and_once_after_the_step(executor):
    class Count(jc.Callback):
        def init(self):
            return {"before": 0, "after": 0}

        def on_before_update(self, state, metrics):
            return {**state, "before": state["before"] + metrics.fresh("g")}, None

        def on_batch_end(self, state, metrics):
            return {**state, "after": state["after"] + metrics.fresh("g")}, None

    result = _runs.fit(executor, epochs=2, callbacks=[Count()], metrics={"g": jc.probes.grad_norm(every=3)})
    counted = result.callback_states["Count"]
    assert (int(counted["before"]), int(counted["after"])) == (3, 3)  # of 10 steps


def test_weights_that_are_restored_before_the_update_do_not_get_it():
    """The update was made of the weights that were there before; it is dropped with them."""

    class Back(jc.Callback):
        def slots(self):
            return {"start": "optimizer"}

        def on_before_update(self, state, metrics):
            return state, (
                jc.actions.Snapshot("start", when=metrics.step == 0),
                jc.actions.Restore("start", when=metrics.step == 4),
            )

    result = _runs.fit(steps=5, epochs=None, callbacks=[Back()], validation_data=None)
    for start, end in zip(jax.tree.leaves(_runs.make_params()), jax.tree.leaves(result.params), strict=True):
        np.testing.assert_array_equal(start, end)
    assert int(result.state.learning_rate.count) == 0
