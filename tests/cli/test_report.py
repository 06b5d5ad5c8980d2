"""The report: one valid page that needs nothing else, has texts for all pictures, and says what the run did."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest
from cli._runs import train
from hypothesis import given
from hypothesis import strategies as st

import jaxcb as jc
from jaxcb._src.plotting import page
from jaxcb._src.plotting.series import Curves, Mark
from jaxcb._src.plotting.svg import chart, parallel_coordinates

SVG = "{http://www.w3.org/2000/svg}"
MOST_BYTES = 2_000_000


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def check(path):
    """A page is well-formed, loads nothing, runs nothing, and has a text for each picture."""
    text = path.read_text()
    assert text.startswith("<!DOCTYPE html>")
    root = ElementTree.fromstring(text.split("\n", 1)[1])
    elements = Elements(text).found
    names = {name for name, _ in elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "video", "audio", "form", "base"}
    for name, attributes in elements:
        for attribute, value in attributes.items():
            assert not attribute.startswith("on")
            if attribute in ("src", "href", "srcset", "action"):
                assert value.startswith("data:image/"), (name, attribute)
        if name == "img":
            assert attributes["alt"]
        if name == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert {"html", "head", "title", "body", "h1"} <= names
    assert any(a.get("name") == "viewport" for n, a in elements if n == "meta")
    assert ("html", {"lang": "en"}) in elements
    assert len(text.encode()) < MOST_BYTES
    return root, text


def test_a_run_is_a_page_with_curves_marks_decisions_and_configuration(call, folder, tmp_path):
    said = call("report", folder / "stopped", "-o", tmp_path / "new" / "a.html", "--json")
    assert said.code == 0
    root, text = check(tmp_path / "new" / "a.html")
    assert said.json["bytes"] == len(text.encode())
    marks = [title.text for title in root.iter(f"{SVG}title")]
    assert any(mark.startswith("EarlyStopping: val_loss has not improved") for mark in marks)
    assert any(mark.startswith("best val_loss") for mark in marks)
    assert any(mark.startswith("learning rate times 0.5") for mark in marks)
    for words in ("What fired", "What nearly fired", "EarlyStopping.patience", "batch_size", "checkpoints/step_"):
        assert words in text


def test_a_sweep_has_its_table_parallel_coordinates_and_curves(call, folder, tmp_path):
    call("report", folder / "some" / "sweep", "-o", tmp_path / "a.html")
    root, text = check(tmp_path / "a.html")
    assert "optimizer.learning_rate" in text
    labels = [svg.get("aria-label") for svg in root.iter(f"{SVG}svg")]
    assert any(label.startswith("Parallel coordinates of 3 members") for label in labels)
    assert any("of 3 runs" in label for label in labels)


def test_several_runs_are_compared(call, folder, tmp_path):
    names = ("stopped", "finished", "killed")
    call("report", *(folder / name for name in names), "-o", tmp_path / "a.html")
    _, text = check(tmp_path / "a.html")
    assert "What differs" in text
    assert all(name in text for name in names)


def test_images_that_were_logged_are_shown(call, tmp_path):
    class Draws(jc.Callback):
        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Image("pixels", jnp.full((8, 8, 3), 0.5))

    train(tmp_path / "run", epochs=2, more=[Draws(), jc.TensorBoard("tb", write_graph=False)])
    call("report", tmp_path / "run", "-o", tmp_path / "a.html")
    _, text = check(tmp_path / "a.html")
    assert 'alt="pixels at step 12"' in text
    assert "data:image/png;base64," in text


def test_a_result_writes_its_report_and_a_notebook_shows_its_curves(runs, tmp_path):
    result = runs[1]["stopped"]
    assert result.report(tmp_path / "new" / "a.html") == tmp_path / "new" / "a.html"
    root, text = check(tmp_path / "new" / "a.html")
    assert str(result.stop_reason) in text
    assert len(list(root.iter(f"{SVG}svg"))) == 3  # loss, mae, learning rate
    assert result._repr_html_().startswith("<table>")
    assert "<svg" in result._repr_html_()


def test_texts_of_a_hostile_run_are_texts(tmp_path):
    words = "<script>alert(1)</script>\x00\x1b[31m\"'&"
    curves = Curves(words, {words: (np.arange(3.0), np.arange(3.0))}, None, (Mark(1.0, "stop", words),))
    parts = [*page.charts([curves]), page.table([words], [[words]], words), page.facts([(words, words)])]
    (tmp_path / "a.html").write_text(page.document(words, parts))
    _, text = check(tmp_path / "a.html")
    assert "\x1b" not in text


@given(
    st.lists(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=30), min_size=1, max_size=3),
    st.sampled_from(["loss", "val_accuracy"]),
)
def test_a_chart_of_any_numbers_is_well_formed_and_inside_of_its_frame(columns, metric):
    runs = [Curves(f"r{i}", {metric: (np.arange(1.0, len(c) + 1), np.asarray(c))}) for i, c in enumerate(columns)]
    drawn = chart(runs, [metric], "title")
    root = ElementTree.fromstring(drawn)
    for path in root.iter(f"{SVG}path"):
        if path.get("class") == "curve":
            numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", path.get("d"))]
            assert all(-1 <= x <= 641 for x in numbers[::2])
            assert all(-1 <= y <= 241 for y in numbers[1::2])


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6) | st.just(float("nan"))), min_size=1, max_size=20))
def test_parallel_coordinates_of_any_numbers(rows):
    if all(np.isnan(b) for _, b in rows):
        rows = [*rows, (0.0, 1.0)]
    drawn = parallel_coordinates({"a": [a for a, _ in rows], "b": [b for _, b in rows]}, "b", True)
    ElementTree.fromstring(drawn)


@pytest.mark.long
def test_a_run_of_100000_epochs_is_a_small_page(call, tmp_path, folder):
    import shutil

    run = shutil.copytree(folder / "stopped", tmp_path / "run")
    rng = np.random.default_rng(0)
    with (run / "history.csv").open("w") as file:
        file.write("step,epoch,base_learning_rate,learning_rate,loss,val_loss\n")
        file.writelines(f"{i + 1},{i},0.1,0.1,{a:.7g},{b:.7g}\n" for i, (a, b) in enumerate(rng.random((100_000, 2))))
    assert call("report", run, "-o", tmp_path / "a.html").code == 0
    check(tmp_path / "a.html")
