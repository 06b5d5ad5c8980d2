"""The list of mutants and of the tests that kill them fits the source."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_list_of_mutants_is_up_to_date():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    expected = {tool.key(mutant) for module in tool.TESTS for mutant in tool.mutants(module)}
    known = tool.known()
    assert set(known) == expected, "run `make mutants ARGS='--new --write'`"
    assert not [name for name, killed in known.items() if "nobody" in killed]
