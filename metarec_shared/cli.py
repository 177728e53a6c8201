"""The command ``metarec``: finds the commands that the folders register, and turns errors into one line.

A command module is imported only when its command, or the list of commands, is asked for, and imports nothing heavy.
"""

import logging
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import click
import typer

from metarec_shared.errors import MetaRecError

GROUP = "metarec.commands"
INTERRUPTED = 130
INTERRUPTION = "interrupted; what was written stays: a run goes on with --resume, a study by the same command"


class _Commands(click.Group):
    """A click group over the entry points of ``GROUP``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all registered commands."""
        return sorted(entry.name for entry in entry_points(group=GROUP) if "." not in entry.name)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Load one command; ``NAME.PART`` of any folder becomes ``NAME PART``."""
        entries = {entry.name: entry for entry in entry_points(group=GROUP)}
        if name not in entries or "." in name:
            return None
        command = _load(entries[name])
        for full, entry in entries.items():
            if isinstance(command, click.Group) and full.startswith(f"{name}."):
                command.add_command(_load(entry))
        return command


def _load(entry: EntryPoint) -> click.Command:
    command = typer.main.get_command(entry.load())
    command.name = entry.name.rpartition(".")[2]
    return command


@click.command(
    cls=_Commands,
    epilog="Every command takes --debug, which shows the traceback of an error.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="metarec")
def metarec() -> None:
    """Federated meta-learning of a recommender for cold-start users."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line; return its exit code: 0, 1 where a command says no, 2 for bad input, 130 when interrupted."""
    debug = "--debug" in arguments
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "filelock", "matplotlib", "h5py", "flwr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = metarec.main([a for a in arguments if a != "--debug"], prog_name="metarec", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (MetaRecError, OSError) as error:  # an OSError names the file and what the system said
        _show(error, debug)
        return 2
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write(f"metarec: {INTERRUPTION}\n")
        return INTERRUPTED
    return code if isinstance(code, int) else 0  # what a command exits with is what click returns here


def _show(error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    sys.stderr.write(f"metarec: error: {' '.join(str(error).split())}\n")


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))
