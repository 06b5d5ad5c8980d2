"""Writers: the host code that performs log and host actions, one effect a file."""

from jaxcb.writers._registry import writer, writer_for
from jaxcb.writers._writer import Context, Writer

__all__ = ["Context", "Writer", "writer", "writer_for"]
