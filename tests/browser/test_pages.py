"""TensorBoard's pages in a real browser: what a run has written is what they show.

    make browser

The screenshots lie in `runs/browser/`, or where JAXCB_SCREENSHOTS says.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser._webdriver import CHROMIUM, DRIVER, MISSING, Browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=MISSING),
]

ROOT = Path(__file__).parent.parent.parent
SCREENSHOTS = Path(os.environ.get("JAXCB_SCREENSHOTS", ROOT / "runs" / "browser"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of a TensorBoard that shows the digits example."""
    pytest.importorskip("sklearn")
    run_dir = tmp_path_factory.mktemp("run")
    example = [sys.executable, str(ROOT / "examples" / "digits.py"), "--run-dir", str(run_dir)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    epochs = os.environ.get("JAXCB_BROWSER_EPOCHS", "12")
    subprocess.run([*example, "--epochs", epochs], env=environment, check=True, capture_output=True)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run_dir / "logs"), "--port", "0"]
    server = subprocess.Popen([*command, "--host", "localhost"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    yield next(found for line in server.stderr if (found := re.search(r"http://localhost:\d+", line))).group()
    server.terminate()
    server.wait()
    server.stderr.close()


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(site, window):
    """Opens a page of TensorBoard, and keeps a picture of it at the test's end."""
    opened = []

    def open_page(name):
        window.open(f"{site}/#{name}")
        opened.append(name)
        return window

    yield open_page
    window.settle()
    for name in opened:
        window.screenshot(SCREENSHOTS / f"{name.split('&')[0]}.png")


def test_scalars_are_drawn_as_curves_of_both_runs(page):
    browser = page("timeseries")
    browser.wait("return text().includes('epoch_loss')")
    browser.run("""
        all('button').find(e => e.getAttribute('aria-label') === 'Close side pane').click();
        for (const name of ['activations', 'gradients', 'updates']) {
            const group = all('button').find(e => e.textContent.trim().startsWith(name));
            if (group && all('histogram-card').length) group.click();
        }
        const box = all('input').find(e => e.placeholder.startsWith('Filter tags'));
        box.value = 'epoch_(loss|accuracy|learning_rate)';
        box.dispatchEvent(new Event('input', {bubbles: true}));
    """)
    browser.wait("return all('scalar-card').length == 3")
    browser.wait("return all('scalar-card').every(e => e.querySelector('line-chart'))")
    cards = {text.split()[0]: text for text in browser.run("return all('scalar-card').map(e => text(e))")}
    assert set(cards) == {"epoch_accuracy", "epoch_learning_rate", "epoch_loss"}
    for name in ("epoch_accuracy", "epoch_loss"):
        assert "train" in cards[name]
        assert "validation" in cards[name]
    assert "validation" not in cards["epoch_learning_rate"]


def test_histograms_of_each_array_are_drawn(page):
    browser = page("histograms&tagFilter=(weights|gradients|updates|activations)/(conv1|norm1)")
    drawn = "all('vz-histogram-timeseries').filter(e => (e.shadowRoot || e).querySelectorAll('path').length > 2).length"
    browser.wait(f"return {drawn} > 7")
    for tag in ("activations/conv1", "gradients/conv1/kernel", "updates/norm1/scale", "weights/conv1/kernel"):
        browser.wait(f"return text().includes('{tag}')")


def test_the_graph_shows_the_modules_and_opens(page):
    browser = page("graphs&run=train")
    nodes = "return all('g.node').map(e => e.getAttribute('data-name'))"
    browser.wait("return all('g.node').length")
    assert {"CNN", "loss", "batch", "softmax_cross_entropy_with_integer_labels"} <= set(browser.run(nodes))
    browser.run("""
        const shape = all('g.node').find(e => e.getAttribute('data-name') === 'CNN').querySelector('g.nodeshape');
        shape.dispatchEvent(new MouseEvent('dblclick', {bubbles: true}));
    """)
    browser.wait("return all('g.node').some(e => e.getAttribute('data-name') === 'CNN/head')")
    modules = {f"CNN/{name}" for name in ("conv1", "norm1", "conv2", "norm2", "dropout", "head")}
    assert modules <= set(browser.run(nodes))
    edges = browser.run(r"return all('g.edge text').map(e => e.textContent.trim().replaceAll('\u00d7', 'x'))")
    assert {"64x8x8x1", "64x1024"} <= set(edges)
    browser.run("all('.icon-button, paper-button, a').find(e => text(e).includes('Fit to screen')).click()")


def test_the_projector_shows_the_digits(page):
    browser = page("projector")
    browser.wait("return /Points: *288/.test(text())")
    assert "digits epoch" in browser.run("return text()")


def test_images_are_shown(page):
    browser = page("images")
    browser.wait("return all('img').some(e => e.src.includes('individualImage') && e.naturalWidth > 0)")
    assert "confusion" in browser.run("return text()")


def test_the_configuration_is_shown(page):
    browser = page("text")
    browser.wait("return text().includes('batch_size')")
    assert "EarlyStopping(" in browser.run("return text()")


def test_the_hyperparameters_are_shown(page):
    browser = page("hparams")
    browser.wait("return text().includes('ReduceLROnPlateau.patience') && text().includes('final/val_loss')")
    assert "dropout" in browser.run("return text()")
