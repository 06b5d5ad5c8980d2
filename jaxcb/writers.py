"""Writers: the host code that performs log and host actions."""

from jaxcb._src.writers.base import Context, Writer, writer, writer_for

__all__ = [
    "Context",
    "Writer",
    "writer",
    "writer_for",
]
