"""LambdaCallback: Keras's names and arguments."""

import pytest

import jaxcb as jc


class Run:
    """What a host action is given."""

    epoch, batch, logs = 3, 7, {"loss": 0.5}


def test_functions_get_kerass_arguments():
    seen = []
    callback = jc.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(("epoch", epoch, logs)),
        on_train_batch_end=lambda batch, logs: seen.append(("batch", batch)),
        on_train_begin=lambda logs: seen.append(("train", logs)),
    )
    assert callback.hooks() == {"on_epoch_end", "on_batch_end", "on_train_begin"}
    for hook in ("on_train_begin", "on_batch_end", "on_epoch_end"):
        _, action = getattr(callback, hook)((), jc.Metrics({"loss": 0.5}))
        action.fn(Run())
    assert seen == [("train", Run.logs), ("batch", 7), ("epoch", 3, Run.logs)]


def test_the_call_carries_the_metrics():
    _, (action,) = jc.chain(jc.LambdaCallback(on_epoch_end=print)).on_epoch_end(
        {"LambdaCallback": ()}, jc.Metrics({"a": 2.0})
    )
    assert isinstance(action, jc.actions.Call)
    assert float(action.values["a"]) == 2.0


def test_same_functions_are_the_same_program():
    assert jc.LambdaCallback(on_epoch_end=print) == jc.LambdaCallback(on_epoch_end=print)


def test_an_unknown_name_is_refused():
    with pytest.raises(TypeError, match="on_epoch_ends"):
        jc.LambdaCallback(on_epoch_ends=print)


@pytest.mark.parametrize(
    ("hook", "function", "says"),
    [
        (
            "on_epoch_end",
            lambda logs: None,
            r"on_epoch_end is called as fn\(epoch, logs\), but got a function with the signature \(logs\)",
        ),
        ("on_train_begin", lambda epoch, logs: None, r"on_train_begin is called as fn\(logs\)"),
        ("on_train_batch_end", 3, r"on_train_batch_end must be a function of \(batch, logs\), got 3"),
    ],
)
def test_wrong_arity_is_refused(hook, function, says):
    with pytest.raises(TypeError, match=says):
        jc.LambdaCallback(**{hook: function})
