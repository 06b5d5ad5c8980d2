"""The pages say what the library does: their Python blocks run, and their generated parts are up to date."""

import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

import jaxcb as jc

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(p for folder in ("", "cookbook", "notebooks") for p in (DOCS / folder).glob("*.md")),
]
NEEDS = {"migrating_from_lightning.md": "pytorch_lightning"}  # which only `make loaders` installs


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


def blocks(page: Path) -> list[tuple[int, str]]:
    """Returns the Python blocks of a page, each with its first line's number."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in found]


@pytest.mark.everyday(6)
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=named)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """All blocks of a page run in order, in one namespace."""
    if page.name in NEEDS:
        warnings.simplefilter("ignore")  # those of the other library; pytest restores the filters
        pytest.importorskip(NEEDS[page.name])
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    with jax.numpy_rank_promotion("allow"):  # as it is where users run them
        for line, source in blocks(page):
            exec(compile("\n" * line + source, str(page), "exec"), namespace)


def renewed(pages: Callable[[str], bool]) -> None:
    tables = load(DOCS / "tables.py")
    for page in filter(pages, tables.PAGES):
        assert (DOCS / page).read_text() == tables.renewed(page), "run `python docs/tables.py`"


SHOWN = ("command_line.md", "../README.md")  # with what commands print


def test_generated_parts_are_up_to_date():
    renewed(lambda page: page not in SHOWN)


@pytest.mark.long
def test_what_the_commands_print_is_up_to_date():
    renewed(lambda page: page in SHOWN)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    """Relative links name files that exist, and headings that are there."""
    for target in re.findall(r"(?:\]\(|src=\"|^```\{image\} )([^)\s\"]+)", page.read_text(), re.MULTILINE):
        if "://" in target or target == "reference/index.rst":  # which `docs/conf.py` makes
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


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in ("README.md", "index.md")], ids=named)
def test_the_site_has_each_page(page):
    assert re.search(rf"^{named(page).removesuffix('.md')}$", (DOCS / "index.md").read_text(), re.MULTILINE)


def test_the_cookbook_lists_each_recipe():
    """Each heading of a recipe is in the table of tasks, once, and the first page has ten."""
    text = (DOCS / "cookbook.md").read_text()
    listed = re.findall(r"^\|.*\[([^]]+)\]\([^)]*\) \|$", text, re.MULTILINE)
    first = re.findall(r"^## (.*)$", text, re.MULTILINE)[1:]
    others = [
        name
        for page in sorted((DOCS / "cookbook").glob("*.md"))
        for name in re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
    ]
    assert len(first) == 10
    assert sorted(listed) == sorted(first + others)


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
