"""`check_callback`: all laws at once."""

from collections.abc import Callable, Iterable

from jaxcb._src.core.callback import Callback, PopulationCallback
from jaxcb._src.testing.chain import check_chain
from jaxcb._src.testing.drive import Subject
from jaxcb._src.testing.form import check_fixed_form, check_one_meaning
from jaxcb._src.testing.population import check_population
from jaxcb._src.testing.purity import check_purity
from jaxcb._src.testing.time import check_causality, check_chunks, check_resume

LAWS: tuple[Callable[..., None], ...] = (
    check_purity,
    check_one_meaning,
    check_fixed_form,
    check_causality,
    check_resume,
    check_chain,
    check_chunks,
)


def check_callback(
    callback: Callback, *, metrics: Iterable[str] | None = None, max_examples: int | None = None
) -> None:
    """Checks that a callback keeps all laws: purity, one meaning, fixed form, causality, resume, chain and chunks.

    A population callback is checked by the laws of `check_population`.

    Args:
        callback: any callback, or a chain.
        metrics: names of the scalar metrics that it reads; found by tracing if None.
        max_examples: number of Hypothesis examples per law; that of the active Hypothesis profile if None.

    Raises:
        AssertionError: if a law is broken; names the law, the callback, the hook and the leaf.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> jc.testing.check_callback(jc.TerminateOnNaN(), max_examples=2)
    """
    if isinstance(callback, PopulationCallback):
        check_population(callback, metrics=metrics, max_examples=max_examples)
        return
    subject = Subject(callback, metrics)
    for law in LAWS:
        law(subject, max_examples=max_examples)
