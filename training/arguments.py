"""Command-line parsing that every command shares: one-line errors, counts and seeds."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from statewise.training.schema import ConfigError


class CommandParser(argparse.ArgumentParser):
    """Reports a wrong word as ConfigError, in one line, instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{self.prog.removeprefix('statewise ')}: {message}: see {self.prog} -h")


def command_parser(
    name: str, command: Callable[[list[str]], int], *, add_help: bool = True
) -> CommandParser:
    """Return the parser of a command, described by the first line of its docstring."""
    doc = (command.__doc__ or "").splitlines()[0]
    return CommandParser(
        prog=f"statewise {name}", description=doc, allow_abbrev=False, add_help=add_help
    )


def add_checkpoint(parser: CommandParser) -> None:
    """Let a command take another checkpoint of a run, and put its agent on another device."""
    parser.add_argument("--checkpoint", type=seed, metavar="STEP", help="by default the newest")
    parser.add_argument(
        "--device", metavar="DEVICE", help="by default the run's: cpu, cuda, cuda:N"
    )


def count(text: str) -> int:
    """Read an integer of at least 1."""
    return _integer(text, 1)


def seed(text: str) -> int:
    """Read an integer of at least 0."""
    return _integer(text, 0)


def _integer(text: str, low: int) -> int:
    if not text.isdecimal() or int(text) < low:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {low}, got {text!r}")
    return int(text)
