"""The command `statewise imagine`."""

from pathlib import Path

from rich.console import Console

from statewise.training.arguments import add_checkpoint, command_parser, count, seed
from statewise.training.imagine import ImagineOptions, imagine


def run(argv: list[str]) -> int:
    """Show what a world model imagines: RUN [--context C] [--horizon H] [--out out.gif] ..."""
    parser = command_parser("imagine", run)
    parser.epilog = (
        "Pictures become a GIF: truth, what the model says, difference; blue while it sees, orange"
        " where it imagines. Numbers become a PNG of curves, with a dotted line in between."
    )
    parser.add_argument("run", type=Path, help="run directory of a system with a world model")
    parser.add_argument(
        "--context", type=count, help="observations seen first, by default the run's, or half"
    )
    parser.add_argument("--horizon", type=count, help="steps imagined at most, by default 100")
    parser.add_argument("--episodes", type=count, default=2, help="by default 2")
    parser.add_argument("--seed", type=seed, help="by default the run's own evaluation seed")
    add_checkpoint(parser)
    parser.add_argument("--out", type=Path, help=".gif or .png, by default in RUN/plots")
    options = vars(parser.parse_args(argv))
    shown = imagine(options.pop("run"), ImagineOptions(**options))
    console = Console()
    for line in (*shown.lines, str(shown.path)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0
