"""The report in a real browser: three widths, on paper, no request, and HTML without an error.

    make browser

The screenshots lie in `runs/browser/`, or where JAXCB_SCREENSHOTS says; docs/command_line.md shows some of them.
"""

import base64

import jax.numpy as jnp
import optax
import pytest
from browser._webdriver import CHROMIUM, DRIVER, MISSING, Browser
from browser.test_pages import SCREENSHOTS
from cli._runs import train
from loop._runs import loss_fn, make_data, make_params

import jaxcb as jc
from jaxcb._src.report.report import write_report
from jaxcb._src.report.run_folder import RunFolder

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=MISSING),
]
WIDTHS = (360, 768, 1280)
KINDS = ("run", "sweep", "runs")


class Draws(jc.Callback):
    """Logs an image."""

    def on_epoch_end(self, state, metrics):
        ramp = jnp.linspace(0, 1, 32 * 32 * 3)
        return state, jc.actions.Image("pixels", ramp.reshape(32, 32, 3))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a run with images, of a sweep, and of two runs compared."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "digits", more=[Draws(), jc.TensorBoard("tb", write_graph=False)])
    train(folder / "patient", patience=50)
    jc.sweep(
        make_params, loss_fn, make_data(48), over={"optimizer.learning_rate": [0.01, 0.03, 0.1, 0.3, 0.5]},
        optimizer=optax.sgd, epochs=6, batch_size=8, validation_data=make_data(20, seed=1),
        callbacks=[jc.EarlyStopping(patience=2)], run_dir=folder / "rates", verbose=0,
    )  # fmt: skip
    chosen = {"run": ["digits"], "sweep": ["rates"], "runs": ["digits", "patient"]}
    return {
        kind: write_report([RunFolder(folder / name) for name in names], names, folder / f"{kind}.html")
        for kind, names in chosen.items()
    }


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open("about:blank")
        browser.requested()  # those of the browser's own first page
        yield browser


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_each_width_and_requests_nothing(pages, window, kind, width):
    window.set_width(width)
    window.open(pages[kind].as_uri())
    window.whole_page(SCREENSHOTS / f"report_{kind}_{width}.png")
    assert window.run("return document.documentElement.scrollWidth") <= width
    requested = [url for url in window.requested() if not url.startswith(("data:image/", "about:"))]
    assert requested == [pages[kind].as_uri()]
    # what is wider than the screen can be scrolled, and no picture or text is cut off
    cut = window.run("""
        return [...document.querySelectorAll('h1, h2, p, svg, img, td')].filter(e => {
            const box = e.getBoundingClientRect();
            return box.right > innerWidth + 1 && !e.closest('.scroll');
        }).map(e => e.outerHTML.slice(0, 200));
    """)
    assert cut == []
    sizes = window.run("""
        return [...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height);
    """)
    assert min(sizes) > 8  # pixels: a height of a line that can be read


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_drawn_and_have_texts(pages, window, kind):
    window.set_width(1280)
    window.open(pages[kind].as_uri())
    drawings = window.run("""
        return [...document.querySelectorAll('svg')].map(e => [e.getAttribute('role'), e.getAttribute('aria-label'),
            e.getBoundingClientRect().height, e.querySelectorAll('path, circle').length]);
    """)
    assert len(drawings) >= 3
    assert all(
        role == "img" and len(label) > 20 and height > 90 and parts > 3 for role, label, height, parts in drawings
    )
    images = window.run("return [...document.querySelectorAll('img')].map(e => [e.alt, e.naturalWidth])")
    assert images == ([["pixels at step 72", 32]] if kind == "run" else [])


def test_it_can_be_printed(pages, window):
    window.open(pages["run"].as_uri())
    printed = base64.b64decode(window.protocol("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.7})["data"])
    assert printed.startswith(b"%PDF-")
    assert 1 <= printed.count(b"/Type /Page\n") <= 12


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_html_without_an_error(pages, kind):
    html5lib = pytest.importorskip("html5lib")
    html5lib.HTMLParser(strict=True).parse(pages[kind].read_text())
    with pytest.raises(html5lib.html5parser.ParseError):
        html5lib.HTMLParser(strict=True).parse(pages[kind].read_text().replace("<h1>", "<h1></p>"))
