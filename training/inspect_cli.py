"""The command `statewise inspect`."""

from pathlib import Path

from rich.console import Console

from statewise.training.arguments import add_checkpoint, command_parser, count, seed
from statewise.training.inspect import InspectOptions, inspect_run


def run(argv: list[str]) -> int:
    """Show what the memory of a policy keeps: RUN [--episodes N] [--out fig.png] ..."""
    parser = command_parser("inspect", run)
    parser.epilog = (
        "Three panels: time constants of the layers, norms of their states over the episodes, and"
        " how much past steps change the action. The numbers are written beside the figure as JSON."
    )
    parser.add_argument("run", type=Path, help="run directory of a policy with a memory")
    parser.add_argument("--episodes", type=count, default=1, help="played one after the other")
    parser.add_argument("--seed", type=seed, help="by default the run's own evaluation seed")
    add_checkpoint(parser)
    parser.add_argument("--out", type=Path, help="the figure, by default plots/inspect.png in RUN")
    options = vars(parser.parse_args(argv))
    found, figure = inspect_run(options.pop("run"), InspectOptions(**options))
    console = Console()
    for line in (*found.lines(), str(figure)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0
