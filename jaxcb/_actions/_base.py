"""What an action is, and its three kinds.

Control actions change the run on the device, log actions carry values to the host and never interrupt,
host actions need the live run on the host and end the device's stretch of work when they fire.
"""

import dataclasses
from typing import Any

from jaxcb._struct import Struct, static


class Action(Struct):
    """One thing that should happen where `when` holds.

    Attributes:
        when: whether it happens now, bool (). The structure of an action never changes, only its arrays.
        owner: name of the callback that asked for it; `chain` fills it in.
    """

    when: Any = dataclasses.field(default=True, kw_only=True)
    owner: str = static(default="", kw_only=True)

    template = ""  # a subclass that carries a text says here which field holds it


class ControlAction(Action):
    """An action that changes the run on the device."""


class LogAction(Action):
    """An action that carries values to the host."""


class HostAction(Action):
    """An action that needs the live run on the host."""
