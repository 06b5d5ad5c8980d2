"""The built site: its links, its reference, its notebooks, and how it looks in a browser.

    make docs

The screenshots are in `runs/site/`, or where JAXCB_SCREENSHOTS says.
"""

import inspect
import os
import re
import urllib.parse
from pathlib import Path

import pytest
from browser._webdriver import CHROMIUM, DRIVER, MISSING, Browser

import jaxcb as jc

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "docs" / "_build" / "html"
SCREENSHOTS = Path(os.environ.get("JAXCB_SCREENSHOTS", ROOT / "runs" / "site"))
WIDTHS = (400, 800, 1400)
PAGES = ("index", "cookbook", "getting_started", "callbacks", "migrating_from_keras", "notebooks/digits",
         "reference/index", "reference/api/jaxcb.fit", "speed")  # fmt: skip

pytestmark = [pytest.mark.site, pytest.mark.skipif(not SITE.exists(), reason="`make docs` builds the site")]
browser_needed = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=MISSING)


def pages() -> dict[Path, str]:
    return {page: page.read_text() for page in SITE.rglob("*.html")}


def test_no_link_within_the_site_is_dead():
    texts = pages()
    anchors = {page: set(re.findall(r'\bid="([^"]*)"', text)) for page, text in texts.items()}
    dead = []
    for page, text in texts.items():
        for target in set(re.findall(r'href="([^"]*)"', text)):
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc or "_modules" in page.parts:
                continue
            file = (page.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else page
            if not file.exists() or (parts.fragment and file in anchors and parts.fragment not in anchors[file]):
                dead.append(f"{page.relative_to(SITE)}: {target}")
    assert len(texts) > 100
    assert not dead


def test_no_page_needs_the_network():
    """Scripts, styles and pictures are files of the site."""
    for page, text in pages().items():
        loaded = re.findall(r'(?:<script[^>]* src|<img[^>]* src|<link[^>]* rel="stylesheet"[^>]* href)="([^"]*)"', text)
        assert not [source for source in loaded if "//" in source], page


def test_every_public_name_has_a_page():
    public = {name: getattr(jc, name) for name in dir(jc)}
    modules = [value for value in public.values() if inspect.ismodule(value)]
    names = {name for name, value in public.items() if not inspect.ismodule(value)}
    names |= {name for module in modules for name in module.__all__}
    pages = {page.stem.rpartition(".")[2] for page in (SITE / "reference" / "api").glob("*.html")}
    assert len(names) > 100
    assert names <= pages


def test_the_notebooks_are_executed():
    books = sorted((ROOT / "docs" / "notebooks").glob("*.md"))
    assert len(books) == 6
    for book in books:
        page = (SITE / "notebooks" / book.with_suffix(".html").name).read_text()
        cells = book.read_text().count("```{code-cell}")
        assert page.count('class="cell docutils container"') + page.count('class="cell ') >= cells
        assert "cell_output" in page
        assert "Traceback" not in page
        assert "stderr" not in page


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), size=(1400, 1000)) as browser:
        yield browser


@browser_needed
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window(window, name, width):
    """Nothing is wider than the window, but what scrolls by itself: code and tables."""
    window.resize(width, 1000)
    window.open((SITE / f"{name}.html").as_uri())
    window.screenshot(SCREENSHOTS / f"{name.replace('/', '_')}_{width}.png")
    wide = window.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1


@browser_needed
@pytest.mark.parametrize(
    ("words", "page"),
    [("EarlyStopping", "EarlyStopping"), ("clip gradients", "Cookbook"), ("resume", "Checkpoints and resuming")],
)
def test_the_search_works_without_a_server(window, words, page):
    window.resize(1400, 1000)
    window.open((SITE / "search.html").as_uri() + "?q=" + urllib.parse.quote(words))
    links = "const links = all('#search-results li a').map(a => a.textContent);"
    found = window.wait(f"{links} return links.some(text => text.includes('{page}')) && links", seconds=60)
    window.screenshot(SCREENSHOTS / f"search_{words.split()[0]}.png")
    assert found
