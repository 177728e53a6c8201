"""Log lines of a running site: text or JSON, to stderr and to a file that is its owner's alone and does not grow."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

LOG_FILE = "site.log"
_BYTES, _FILES = 10_000_000, 5


class Line(logging.Formatter):
    """A record as one line: time, level, source and message, as text or as JSON."""

    def __init__(self, form: Literal["text", "json"]) -> None:
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


class PrivateFile(RotatingFileHandler):
    """A rotating log file of mode 0600."""

    def _open(self) -> TextIOWrapper:
        os.close(os.open(self.baseFilename, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        return super()._open()


def log_to(state: Path, form: Literal["text", "json"]) -> None:
    """Send log lines of this process to stderr and to the site's log, and nowhere else."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    file = PrivateFile(state / LOG_FILE, maxBytes=_BYTES, backupCount=_FILES, encoding="utf-8")
    for handler in (logging.StreamHandler(sys.stderr), file):
        handler.setFormatter(Line(form))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
