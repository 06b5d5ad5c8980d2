"""The pages say what the library does: their Python blocks run, and their generated parts are up to date."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import jax
import pytest

import jaxcb as jc

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[tuple[int, str]]:
    """Returns the Python blocks of a page, each with its first line's number."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in found]


@pytest.mark.everyday(8)
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """All blocks of a page run in order, in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    with jax.numpy_rank_promotion("allow"):  # as it is where users run them
        for line, source in blocks(page):
            exec(compile("\n" * line + source, str(page), "exec"), namespace)


def test_generated_parts_are_up_to_date():
    tables = load(ROOT / "docs" / "tables.py")
    for page in tables.PAGES:
        renewed = tables.renewed(page)
        assert (ROOT / "docs" / page).read_text() == renewed, "run `python docs/tables.py`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    """Relative links name files that exist, and headings that are there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_the_reference_has_every_public_module():
    found = {f"jaxcb.{name}" for name in jc.__all__ if inspect.ismodule(getattr(jc, name))}  # pyright: ignore[reportAttributeAccessIssue]
    site = load(ROOT / "docs" / "conf.py")
    assert set(site.MODULES) == {"jaxcb", *found}
    listed = site.listed()
    assert sum(map(len, listed.values())) == len({id(getattr(sys.modules[m], n)) for m in listed for n in listed[m]})
    assert set(listed["jaxcb"]) == {n for n in jc.__all__ if f"jaxcb.{n}" not in found}  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.parent.name == "docs" and p.name != "index.md"], ids=lambda p: p.name
)
def test_the_site_has_each_page(page):
    assert re.search(rf"^{page.stem}$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
