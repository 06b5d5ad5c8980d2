"""Runs in a real Jupyter kernel: what a cell shows.

make docs
"""

import importlib.util

import pytest

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(importlib.util.find_spec("nbclient") is None, reason="`make docs` installs a kernel"),
]

BEFORE = """
import jax.numpy as jnp, optax, jaxcb as jc
x = jnp.linspace(-1, 1, 64)[:, None]
def fit(**more):
    loss_fn = lambda p, batch: jnp.mean((batch[0] @ p["w"] - batch[1]) ** 2)
    return jc.fit({"w": jnp.zeros((1, 1))}, loss_fn, (x, 3 * x), optimizer=optax.sgd, learning_rate=0.1, epochs=3,
                  callbacks=[jc.ReduceLROnPlateau("loss", patience=1, min_delta=10.0)], **more)
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The outputs of the cells: a run with lines, with a bar, without either; its result; a replay; a sweep."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")

    sources = (
        BEFORE,
        "result = fit()",
        "barred = fit(verbose=1)",
        "silent = fit(verbose=0)",
        "result",
        "result.plot()",
        "jc.replay(jc.EarlyStopping('loss', patience=1), result.history)",
        "raise KeyError('an error of the user')",
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    folder = str(tmp_path_factory.mktemp("notebook"))
    nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": folder}}
    ).execute()
    return [cell.outputs for cell in book.cells]


def printed(outputs, stream="stdout"):
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == stream)


def test_a_run_prints_a_line_for_each_epoch(cells):
    lines = printed(cells[1]).splitlines()
    assert [line.split(" · ")[0] for line in lines if line.startswith("epoch")] == [f"epoch {n}/3" for n in (1, 2, 3)]
    assert not printed(cells[1], "stderr")


def test_without_widgets_a_bar_is_lines(cells):
    if importlib.util.find_spec("ipywidgets") is not None:
        pytest.skip("with ipywidgets there is a bar")
    assert printed(cells[2]).count("\nepoch") == 3
    assert not printed(cells[2], "stderr")


def test_silence_is_silence(cells):
    assert cells[3] == []


def test_a_result_is_a_table_with_curves(cells):
    (output,) = cells[4]
    page = output.data["text/html"]
    assert "<table" in page
    assert page.count("<svg") == page.count("</svg>") > 0
    assert "learning rate times 0.1 after epoch 2" in page
    assert ".jaxcb .key" in page.partition("</style>")[0]  # it brings its own style, below a class of its own
    assert output.data["text/plain"].startswith("Result(")


def test_a_plot_is_one_picture(cells):
    (output,) = cells[5]
    assert "image/png" in output.data


def test_a_replay_says_what_it_found(cells):
    (output,) = cells[6]
    assert "stopped_epoch" in output.data["text/plain"]


def test_an_error_of_a_cell_is_the_users(cells):
    (output,) = cells[7]
    assert output.ename == "KeyError"
