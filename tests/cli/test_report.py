"""The report: one valid page that needs nothing else, has texts for all pictures, and says what the run did."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cli._runs import train
from hypothesis import given
from hypothesis import strategies as st
from loop._runs import loss_fn, make_data, make_params

import jaxcb as jc
from jaxcb._src.history.reader import read_records
from jaxcb._src.plotting import page
from jaxcb._src.plotting.series import Curves, Mark
from jaxcb._src.plotting.svg import chart, parallel_coordinates
from jaxcb._src.report.curves import marks_of
from jaxcb._src.report.run_folder import RunFolder

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


def test_a_result_its_notebook_and_the_command_line_have_one_page(runs, call, tmp_path):
    folder, results = runs
    result = results["stopped"]
    assert result.report(tmp_path / "new" / "a.html") == tmp_path / "new" / "a.html"
    _, text = check(tmp_path / "new" / "a.html")
    call("report", folder / "stopped", "-o", tmp_path / "b.html")
    assert (tmp_path / "b.html").read_text() == text
    shown = result._repr_html_()
    assert shown.startswith('<div class="jaxcb"><style>')
    assert shown.partition("<h1>")[2].removesuffix("\n</div>") == text.partition("<h1>")[2].removesuffix(
        "\n</body></html>\n"
    )


def test_a_result_whose_folder_is_another_run_now_has_a_page_of_its_own(runs, tmp_path):
    """Of the same curves, marks and decisions; what only the folder has is missing."""
    result = runs[1]["stopped"]
    result.report(tmp_path / "a.html")
    dataclasses.replace(result, run_dir=None).report(tmp_path / "b.html")
    (_, whole), (_, alone) = check(tmp_path / "a.html"), check(tmp_path / "b.html")
    for part in ("Curves", "Decisions"):
        cut = [text.partition(f"<h2>{part}</h2>")[2].partition("<h2>")[0] for text in (whole, alone)]
        assert cut[0] == cut[1]
        assert len(cut[0]) > 1000
    assert "<h2>Checkpoints</h2>" not in alone
    assert (tmp_path / "missing").exists() is False
    moved = dataclasses.replace(result, run_dir=tmp_path / "missing")
    assert "<h2>Checkpoints</h2>" not in moved._repr_html_()


def test_a_sweep_in_memory_has_the_table_of_its_folder(folder, tmp_path):
    """The same rows and drawings from a result as from the folder, for each member, too."""
    result = jc.sweep(
        make_params, loss_fn, make_data(48), over={"optimizer.learning_rate": [0.01, 0.3]}, optimizer=optax.sgd,
        epochs=3, batch_size=8, validation_data=make_data(20, seed=1), verbose=0, run_dir=tmp_path / "sweep",
        callbacks=[jc.EarlyStopping(patience=2), jc.callbacks.HTMLReport()],
    )  # fmt: skip
    result.report(tmp_path / "a.html")
    assert (tmp_path / "sweep" / "report.html").read_text() == (tmp_path / "a.html").read_text()
    dataclasses.replace(result, run_dir=None).report(tmp_path / "b.html")
    (root, whole), (_, alone) = check(tmp_path / "a.html"), check(tmp_path / "b.html")
    drawings = [svg.get("aria-label") for svg in root.iter(f"{SVG}svg")]
    assert all(label in alone for label in drawings)
    assert whole.partition("<tbody>")[2].count("<tr>") - 2 > alone.partition("<tbody>")[2].count("<tr>") - 2
    result[1].report(tmp_path / "member.html")
    _, text = check(tmp_path / "member.html")
    assert "sweep, member 1" in text
    assert "Decisions" in text


def test_it_is_renewed_at_each_save_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcb._src.report.writer._SHARE", 0)  # at every save
    page, seen = tmp_path / "run" / "pages" / "now.html", []

    class Looks(jc.HostCallback):
        def on_checkpoint_saved(self, checkpoint):
            text = page.read_text()
            state = re.search(r"state</th><td>(\w+)", text)[1]
            seen.append((checkpoint.step, state, int(re.search(r"epochs</th><td>(\d+)", text)[1])))

    every = jc.BackupAndRestore(tmp_path / "run", save_freq="epoch")
    given = {"epochs": 3, "callbacks": [jc.callbacks.HTMLReport("pages/now.html"), every, Looks()]}
    train(tmp_path / "run", **given)
    assert [state for _, state, _ in seen[:2]] == ["running", "running"]
    assert [epoch for *_, epoch in seen] == sorted(epoch for *_, epoch in seen)
    assert len({epoch for *_, epoch in seen}) > 1
    _, text = check(page)
    assert "<td>finished</td>" in text
    assert "pages/now.html" in RunFolder(tmp_path / "run").record.made
    page.unlink()
    train(tmp_path / "run", resume=True, **given)  # it is over, so nothing is written
    assert not page.exists()
    train(tmp_path / "run", resume=True, **(given | {"epochs": 4}))
    root, text = check(page)
    assert any("resumed at step 18" in title.text for title in root.iter(f"{SVG}title"))
    assert "What ran (2 of 2)" in text


def test_a_report_that_cannot_be_written_is_a_warning_and_one_without_a_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    report = jc.callbacks.HTMLReport(str(tmp_path / "file" / "a.html"))
    with pytest.warns(RuntimeWarning, match="the report could not be written"):
        result = train(tmp_path / "run", epochs=1, callbacks=[report])
    assert int(result.state.step) == 6
    with pytest.raises(ValueError, match=r"HTMLReport: .* this run saves nothing. Pass run_dir="):
        train(None, epochs=1, callbacks=[jc.callbacks.HTMLReport()])
    train(None, epochs=1, callbacks=[jc.callbacks.HTMLReport()], execution=jc.Execution(fast_dev_run=1))


def test_numbers_that_are_not_finite_are_marked(tmp_path):
    records = read_records({"loss": [1.0, np.nan, np.nan], "val_loss": [1.0, 2.0, np.inf]})
    marks = {mark.text: mark.x for mark in marks_of(records, [], None, ()) if mark.kind == "alert"}
    assert marks == {
        "loss is nan for the first time in epoch 2": 2.0,
        "val_loss is inf for the first time in epoch 3": 3.0,
    }


def test_texts_of_a_hostile_run_are_texts(tmp_path):
    words = "<script>alert(1)</script>\x00\x1b[31m\"'&"
    curves = Curves(words, {words: (np.arange(3.0), np.arange(3.0))}, None, (Mark(1.0, "stop", words),))
    parts = [page.charts([curves]), page.table([words], [[words]], words), page.facts([(words, words)])]
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
