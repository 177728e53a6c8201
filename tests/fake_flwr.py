"""A program in the place of Flower's: it says what a test wants, and keeps what it was asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.coordinator import flower, runs


class FakeFlower:
    """Stands in for ``flwr``.

    Args:
        folder: For its files.
        patch: Puts it in Flower's place.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder / "flower-program"
        self._folder.mkdir()
        script = self._folder / "flwr"
        answer = f'cat "{self._folder}/$1-$2.json" 2> /dev/null || cat "{self._folder}/$1.json"'
        script.write_text(f'#!/bin/sh\necho "$@" >> {self._folder}/calls\n{answer}\n')
        script.chmod(0o755)
        for module in (flower, runs):
            patch.setattr(module, "programs", lambda: self._folder)

    def say(self, command: str, **answer: Any) -> None:
        """Answer a command, one or two words, with success and ``answer``."""
        (self._folder / f"{command.replace(' ', '-')}.json").write_text(
            "a note of Flower's\n" + json.dumps({"success": True, **answer})
        )

    def fail(self, command: str, reason: str) -> None:
        """Answer a command with a failure."""
        self.say(command, **{"success": False, "error-message": reason})

    @property
    def calls(self) -> list[str]:
        """What it was asked, the first two words of each command."""
        file = self._folder / "calls"
        return [" ".join(line.split()[:2]) for line in file.read_text().splitlines()] if file.exists() else []
