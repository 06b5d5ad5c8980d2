"""Property tests of the callback laws, for the built-in callbacks and for your own.

    import jaxcb.testing

    def test_my_callback():
        jaxcb.testing.check_callback(MyCallback(patience=3))

`check_callback` verifies laws 1 to 7; each law also has a function of its own. They need only the callback: the
metrics that it reads are found by tracing it. Requires `pip install jaxcb[testing]`.
"""

try:
    import hypothesis as _hypothesis
except ImportError as error:
    raise ImportError("jaxcb.testing needs Hypothesis, which is not installed: pip install jaxcb[testing]") from error

from jaxcb._src.testing.chain import check_chain
from jaxcb._src.testing.form import check_fixed_form, check_one_meaning
from jaxcb._src.testing.laws import LAWS, check_callback
from jaxcb._src.testing.population import check_population
from jaxcb._src.testing.purity import check_purity
from jaxcb._src.testing.registry import builtin_examples
from jaxcb._src.testing.streams import Stream, streams
from jaxcb._src.testing.time import check_causality, check_chunks, check_resume
from jaxcb._src.testing.walk import Driven, HookCall, drive

del _hypothesis

__all__ = [
    "LAWS",
    "Driven",
    "HookCall",
    "Stream",
    "builtin_examples",
    "check_callback",
    "check_causality",
    "check_chain",
    "check_chunks",
    "check_fixed_form",
    "check_one_meaning",
    "check_population",
    "check_purity",
    "check_resume",
    "drive",
    "streams",
]
