"""Log lines for people or for machines."""

import json
import logging
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]


class Line(logging.Formatter):
    """A record as one line: time, level, source and message, as text or as JSON."""

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        if self._form == "text":
            return f"{time} {record.levelname:<7} {record.name}: {message}"
        values = {"time": time, "level": record.levelname.lower(), "source": record.name, "message": message}
        return json.dumps(values, ensure_ascii=False)
