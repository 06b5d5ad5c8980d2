"""Configuration of Sphinx, which makes the site: `make docs`.

The reference is made from docstrings. Its index lists every public name, by the module that a user imports it from; the
list is read from `__all__`, so that no name can be missing.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any

import jaxcb

project = "jaxcb"
author = "The jaxcb developers"
copyright = "2026, the jaxcb developers"
version = release = jaxcb.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"jaxcb {version}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
default_role = "code"  # single backticks in docstrings
suppress_warnings = ["myst.header"]  # a page may begin with sections of the third level
autosummary_generate_overwrite = True
templates_path = ["_templates"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # `make notebooks` executes them
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say what the arguments are; signatures of dataclasses would repeat it
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_admonition_for_examples = False

# Modules of public names, in the order of the reference, with what they hold.
MODULES = {
    "jaxcb": "Training, results, and what most programs use.",
    "jaxcb.callbacks": "Callbacks that are not at the top level; `jaxcb.callbacks` has those, too.",
    "jaxcb.actions": "What a hook can return.",
    "jaxcb.probes": "What can be measured inside a training step.",
    "jaxcb.models": "Adapters of models of Flax, Equinox and plain functions.",
    "jaxcb.search": "Spaces and strategies of a sweep.",
    "jaxcb.distributed": "Several processes.",
    "jaxcb.writers": "Where records go, and how to write a writer.",
    "jaxcb.logs": "Logs of other libraries, and further formats.",
    "jaxcb.testing": "The laws of callbacks, as tests.",
    "jaxcb.errors": "Errors that a program may want to catch.",
}


def listed() -> dict[str, list[str]]:
    """Returns module -> names of its pages. A name that several modules have is listed with the first."""
    pages: dict[str, list[str]] = {}
    seen: set[int] = set()
    for module in MODULES:
        found = importlib.import_module(module)
        names = {name: getattr(found, name) for name in found.__all__}
        new = [name for name, value in names.items() if not inspect.ismodule(value) and id(value) not in seen]
        seen |= {id(names[name]) for name in new}
        pages[module] = sorted(new, key=str.lower)
    return pages


def write_reference(app: Any, config: Any) -> None:
    """Writes the index of the reference, from which autosummary makes a page for each name."""
    del config
    lines = ["Reference", "=" * 9, "", "Every public name, made from its docstring.", ""]
    for module, names in listed().items():
        lines += [module, "-" * len(module), "", MODULES[module], "", f".. currentmodule:: {module}", ""]
        lines += [".. autosummary::", "   :toctree: api", "   :nosignatures:", ""]
        lines += [f"   {name}" for name in names] + [""]
    path = Path(app.srcdir) / "reference" / "index.rst"
    path.parent.mkdir(exist_ok=True)
    text = "\n".join(lines)
    if not path.exists() or path.read_text() != text:  # an unchanged file is not read again
        path.write_text(text)


def setup(app: Any) -> None:
    """Registers the writer of the reference: before Sphinx looks for files."""
    app.connect("config-inited", write_reference)
