"""Values of a wrong type or out of range, and how a call must refuse them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

X = np.zeros((8, 3), np.float32)
Y = np.zeros((8, 1), np.float32)
KEY = jax.random.key(0)
VECTOR = np.array([1, 2])
SINGLE = jnp.array(3)

NOT_NUMBERS = ["", "3", b"3", [1], (1, 2), {}, {"a": 1}, VECTOR, KEY, object(), len, 1j]
COUNT = [0, -1, 1.5, math.nan, math.inf, -math.inf, True, SINGLE, np.array(3), *NOT_NUMBERS]  # from 1 on
NUMBER = [math.nan, math.inf, -math.inf, *NOT_NUMBERS]
NUMBER_FROM_0 = [-1, -0.5, *NUMBER]
WHOLE = [-1, 1.5, *NUMBER]  # from 0 on; a field of a callback may be an array of one number
BOOL = [2, -1, 0.5, None, *NOT_NUMBERS]
CHOICE = ["", "nonsense", 3, -1, 0.5, [], {}, VECTOR, KEY, object()]
NAME = ["", 3, 0.5, [], {}, VECTOR, KEY, None]
PATH = ["", 3, 0.5, [], {}, VECTOR, KEY]
FUNCTION = [3, "abc", None, [1], VECTOR, KEY, {}]
FIELD = [x for x in COUNT if not isinstance(x, jax.Array | np.ndarray) or x is VECTOR or x is KEY]  # COUNT of a field


def without(values, *left_out):
    """The values without some of them."""
    return [x for x in values if not any(x is other for other in left_out)]


def given(fn, /, **how):
    """A call with these arguments, and others instead of them."""
    return lambda **more: fn(**(how | more))


def refusal(call, argument, value, words=None):
    """What is wrong with the answer to a value; None if an error of ours names the argument.

    Args:
        call: takes the argument by its name.
        argument: the name.
        value: the value.
        words: what the error may say instead of the name.
    """
    words = (words or argument).split("|")
    try:
        call(**{argument: value})
    except (TypeError, ValueError, LookupError) as error:
        text = " ".join(str(error).split())
        if not any(word in text for word in words):
            return f"{argument}={value!r}: {type(error).__name__} without {words}: {text[:160]}"
        return f"{argument}={value!r}: a message of {len(text)} letters" if len(text) < 20 else None
    except BaseException as error:
        return f"{argument}={value!r}: {type(error).__name__}: {str(error)[:160]}"
    return f"{argument}={value!r}: taken"
