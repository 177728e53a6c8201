"""Log lines of a running site: text or JSON, to stderr and to a file that is its owner's alone and does not grow."""

import logging
import os
import sys
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from metarec_shared.log_lines import Line, LogFormat

LOG_FILE = "site.log"
_BYTES, _FILES = 10_000_000, 5


class PrivateFile(RotatingFileHandler):
    """A rotating log file of mode 0600; what cannot be written to it is lost there, and stands on stderr alone."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class calls it so
        """Say nothing where the disk is full, for each line: the supervisor says it once."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def _open(self) -> TextIOWrapper:
        os.close(os.open(self.baseFilename, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        return super()._open()


def log_to(state: Path, form: LogFormat) -> None:
    """Send log lines of this process to stderr and to the site's log, and nowhere else."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    file = PrivateFile(state / LOG_FILE, maxBytes=_BYTES, backupCount=_FILES, encoding="utf-8")
    for handler in (logging.StreamHandler(sys.stderr), file):
        handler.setFormatter(Line(form))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
