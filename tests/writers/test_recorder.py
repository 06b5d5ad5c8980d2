"""`Recorder`: logs and host actions of a hand-written loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcb as jc

CALLBACKS = [jc.CSVLogger("log.csv"), jc.EarlyStopping("loss", patience=2), jc.History()]
LOSSES = np.float32([3.0, 2.0, 2.5, 2.25, 1.0])


def test_a_hand_loop_writes_what_replay_decides(tmp_path):
    chain = jc.chain(*CALLBACKS)
    state = chain.init()
    train = jc.TrainState.create(params=jnp.zeros(()), callbacks=chain)
    with jc.Recorder(tmp_path, callbacks=chain, verbose=0) as recorder:
        for epoch, loss in enumerate(LOSSES):
            train = train.replace(step=train.step + 1)
            state, actions = chain.on_epoch_end(state, jc.Metrics({"loss": loss}, step=train.step, epoch=epoch))
            train = jc.apply(actions, train)
            recorder.perform(actions, train, epoch=epoch)
            if bool(train.stop):
                break
    assert (tmp_path / "log.csv").read_text() == "epoch,step,loss\n0,1,3.0\n1,2,2.0\n2,3,2.5\n3,4,2.25\n"
    again = jc.replay(jc.EarlyStopping("loss", patience=2), tmp_path)
    assert recorder.stop_reason == again.stop_reason
    assert {f.name for f in recorder.files} == {"log.csv", "history.csv"}


def test_the_stack_of_a_scan_is_written_moment_by_moment(tmp_path):
    chain = jc.chain(CALLBACKS[0])

    def step(carry, loss):
        state, count = carry
        metrics = jc.Metrics({"loss": loss}, step=count + 1, epoch=0)
        state, actions = chain.on_epoch_end(state, metrics)
        return (state, count + 1), actions

    (_, count), actions = jax.jit(lambda: jax.lax.scan(step, (chain.init(), jnp.int32(0)), LOSSES))()
    with jc.Recorder(tmp_path, callbacks=chain) as recorder:
        recorder.perform(actions, step=count)
    rows = (tmp_path / "log.csv").read_text().splitlines()[1:]
    assert rows == ["0,1,3.0", "0,2,2.0", "0,3,2.5", "0,4,2.25", "0,5,1.0"]


def test_host_actions_get_the_state_of_the_loop(tmp_path):
    seen = []
    actions = (jc.actions.Call(lambda run: seen.append(run.state.params)), jc.actions.Checkpoint("saved"))
    callback = jc.chain(jc.make_callback(on_epoch_end=lambda state, metrics: (state, actions)))
    train = jc.TrainState.create(params=jnp.arange(3.0))
    _, actions = callback.on_epoch_end(callback.init(), jc.Metrics({"loss": 1.0}))
    with jc.Recorder(tmp_path) as recorder:
        recorder.perform(actions, train)
    np.testing.assert_array_equal(seen[0], train.params)
    from orbax.checkpoint import v1 as ocp

    load = ocp.load if hasattr(ocp, "load") else ocp.load_pytree  # before Orbax 0.12
    saved = load(str(tmp_path / "saved"), {"params": train.params, "model_state": None}, checkpointable_name="state")
    np.testing.assert_array_equal(saved["params"], train.params)


def test_everything_is_durable_on_every_way_out(tmp_path):
    chain = jc.chain(CALLBACKS[0])
    _, actions = chain.on_epoch_end(chain.init(), jc.Metrics({"loss": 1.0}))

    def fails_later():
        with jc.Recorder(tmp_path) as recorder:
            recorder.perform(actions, step=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_later()
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2


def test_what_is_wrong_is_said():
    _, action = jc.CSVLogger("log.csv").on_epoch_end((), jc.Metrics({"loss": 1.0}))
    with jc.Recorder(callbacks=jc.chain(jc.History())) as recorder:
        with pytest.raises(ValueError, match="perform needs the step: pass the train state, or step="):
            recorder.perform(action)
        with pytest.raises(
            ValueError, match="got an action of an unknown callback, but the recorder was made for History"
        ):
            recorder.perform(action, step=1)


def test_what_is_no_stack_beside_one_belongs_to_its_last_moment(tmp_path):
    _, one = jc.CSVLogger("one.csv").on_epoch_end((), jc.Metrics({"loss": 1.0}))
    _, many = jax.vmap(jc.CSVLogger("many.csv").on_epoch_end, in_axes=(None, 0))(
        (), jax.vmap(lambda v: jc.Metrics({"loss": v}))(LOSSES)
    )
    with jc.Recorder(tmp_path, verbose=0) as recorder:
        recorder.perform((one, many), step=5)
    assert (tmp_path / "one.csv").read_text().splitlines()[1:] == ["0,5,1.0"]
    assert len((tmp_path / "many.csv").read_text().splitlines()) == 6
