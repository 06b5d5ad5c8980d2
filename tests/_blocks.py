"""`pytest --block K`: the looped executor runs its steps in blocks wherever a test asks for none."""

import os
from dataclasses import replace

VARIABLE = "JAXCB_TEST_BLOCK"  # so that the processes that a test starts do the same


def use_blocks() -> None:
    """Runs steps in blocks of as many steps as the variable says, if it is set."""
    size = os.environ.get(VARIABLE)
    if not size:
        return
    from jaxcb._src.loop import build

    real = build._block

    def block(execution, programs, spec):
        asks = execution.block is not None or spec.acts_at_steps() is not None
        return real(execution if asks else replace(execution, executor=None, block=int(size)), programs, spec)

    build._block = block  # pyright: ignore[reportPrivateUsage]
