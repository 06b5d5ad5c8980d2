"""Logs of other libraries: how to read one as records, and how to add a format."""

from jaxcb._src.history.log_formats import LogFormat, log_format
from jaxcb._src.history.logs import read_log
from jaxcb._src.history.reader import Records

__all__ = ["LogFormat", "Records", "log_format", "read_log"]
