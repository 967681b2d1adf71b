"""The `statewise` command: finds the subcommand, and turns user errors into one line."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

import statewise
from statewise.bench.cli import COMMANDS as BENCH_COMMANDS
from statewise.training.cli import COMMANDS as TRAINING_COMMANDS

COMMANDS: dict[str, Callable[[list[str]], int]] = {**TRAINING_COMMANDS, **BENCH_COMMANDS}
USER_ERROR = 2
INTERRUPTED = 130
PIPE_CLOSED = 141  # as a shell has it for a program that the signal ends


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words after `statewise`, by default those of this process.

    Returns:
        0 after success, 2 after a user's error (one line on stderr), 130 after Ctrl-C, 141
        where the reader of a pipe has closed it, else what the command returned. Unexpected
        exceptions keep their traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        _print_help()
        return 0
    if words[0] in ("-V", "--version"):
        print(statewise.__version__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `statewise --help`"
        return _fail(f"expected a command, got {name!r}: {hint}")
    if name != "train" and (count := _started_by_torchrun()) > 1:
        return _fail(f"torchrun: expected train, got {name} in {count} processes: start it alone")
    try:
        status = COMMANDS[name](rest)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # `| head` has read enough; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return INTERRUPTED
    except _user_errors() as error:
        return _fail(str(error))
    except OSError as error:
        # An error about one of the user's files or disks; anything else is a defect.
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        return _fail(f"{where}{error.strerror}")


def _user_errors() -> tuple[type[Exception], ...]:
    """Return what a user can cause; imported only after something was raised."""
    from statewise.agents.parallel import LostProcessError
    from statewise.agents.recurrent_ppo import NonFiniteLossError
    from statewise.data.errors import DatasetError
    from statewise.envs.protocol import EnvError
    from statewise.kernels.dispatch import BackendError
    from statewise.training.checkpoint import CheckpointError
    from statewise.training.run import RunError
    from statewise.training.schema import ConfigError

    return (
        *(ConfigError, DatasetError, EnvError, CheckpointError, BackendError, RunError),
        *(NonFiniteLossError, LostProcessError),
    )


def _started_by_torchrun() -> int:
    """Return how many processes torchrun started, this one among them; else 1."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR


def _print_help() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, command in COMMANDS.items():
        line = (command.__doc__ or "").splitlines()[0]
        table.add_row(Text(f"  {name}", style="bold"), Text(line))
    console = Console()
    console.print(Text("usage: statewise COMMAND ...\n"))
    console.print(table)
    console.print(Text("\nstatewise COMMAND --help tells what a command takes."))


if __name__ == "__main__":
    sys.exit(main())
