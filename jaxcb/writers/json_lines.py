"""Files of `JSONLine` actions: a JSON object a line."""

import json
from pathlib import Path
from typing import Any

from jaxcb.writers._append import AppendFile
from jaxcb.writers._scalars import fresh_scalars_of, json_numbers
from jaxcb.writers._writer import Writer


class JSONLinesWriter(Writer):
    """Writes an object a record."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._files: dict[Path, AppendFile] = {}

    def prepare(self, action: Any) -> None:
        path = self.context.path(action.path)
        self.context.claim(path, action.owner)
        if path not in self._files:
            self._files[path] = self.context.append_file(path, "JSON lines", append=action.append)

    def write(self, record: Any) -> None:
        file = self._files[self.context.path(record.action.path)]
        place = {"epoch": record.epoch, "step": record.step}
        values = json_numbers(fresh_scalars_of(record.action))
        file.write(json.dumps(place | values | place, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
