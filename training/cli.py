"""The commands of `statewise` that train, evaluate, plot and tell what there is.

A command takes the words after its name and returns an exit status. Everything heavy is
imported inside the command that needs it, so that `statewise --help` answers at once.
"""

import itertools
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from statewise.training.arguments import add_checkpoint, command_parser, count, seed
from statewise.training.schema import ACTIONS, ConfigError

TOPICS = ("presets", "layers", "agents", "envs")
DEFAULT_VIDEO = Path()  # of `eval --video` without a file


def train(argv: list[str]) -> int:
    """Train: PRESET [--data PATH ...] [--run DIR] [--key.sub value ...], or go on: --resume RUN."""
    from statewise.agents.parallel import rank
    from statewise.training.distributed import Joined

    with Joined():  # of several processes that torchrun started, the first one prints
        path = _train(argv)
        if path is not None and rank() == 0:
            print(path)
    return 0


def _train(argv: list[str]) -> Path | None:
    """Train, or go on, and return the run directory; None after the text of --help."""
    from statewise.training import api, config

    parser = command_parser("train", train, add_help=False)
    parser.usage = (
        "statewise train PRESET [--data PATH ...] [--run DIR] [--key.sub value ...] | --resume RUN"
    )
    parser.epilog = "`statewise list presets` names the presets; your own .yaml file is one too."
    parser.add_argument("--data", nargs="+", help="files or folders, for what learns from data")
    parser.add_argument("--run", type=Path, help="run directory, by default runs/<preset>-<n>")
    parser.add_argument("--resume", type=Path, help="run directory to go on with")
    parser.add_argument("-h", "--help", action="store_true", help="with PRESET: every option")
    # The preset stands first: after an option it could not be told from a value.
    preset = argv[0] if argv and not argv[0].startswith("-") else None
    options, overrides = parser.parse_known_args(argv[1:] if preset else argv)
    if options.help:
        print(parser.format_help())
        if preset:
            config.show_config_help(config.load_preset(preset), f"statewise train {preset}")
        return None
    command = ["statewise", "train", *argv]
    if options.resume:
        others = {"a preset": preset, "--run": options.run, "--data": options.data}
        if other := next((name for name, given in others.items() if given), None):
            raise ConfigError(f"train: expected --resume RUN alone, got {other} beside it")
        return api.resume_training(options.resume, command, overrides)
    if not preset:
        got = f"got {argv[0]!r}" if argv else "got nothing"
        raise ConfigError(
            f"train: expected a preset first or --resume RUN, {got}: see `statewise list presets`"
        )
    settings = api.with_data(config.load_preset(preset, overrides), options.data)
    return api.run_training(settings, options.run or default_run(preset), command)


def finetune(argv: list[str]) -> int:
    """Go on in the environment: RUN [--preset NAME] [--run DIR] [--key.sub value ...] ..."""
    from statewise.training import config
    from statewise.training.finetune_run import finetune_run, load_finetune, resume_finetune

    parser = command_parser("finetune", finetune, add_help=False)
    parser.usage = (
        "statewise finetune RUN [--preset NAME] [--run DIR] [--seed N] [--key.sub value ...] "
        "| --resume RUN"
    )
    parser.add_argument("--preset", help="finetune/<name> or a .yaml file; without it the defaults")
    parser.add_argument("--run", type=Path, help="new run directory, by default <RUN>-finetune-<n>")
    parser.add_argument("--seed", type=seed, help="of the random streams, by default that of RUN")
    parser.add_argument("--resume", type=Path, help="run directory of fine-tuning to go on with")
    parser.add_argument("-h", "--help", action="store_true", help="this, and every option")
    source = argv[0] if argv and not argv[0].startswith("-") else None
    options, overrides = parser.parse_known_args(argv[1:] if source else argv)
    if options.help:
        print(parser.format_help())
        config.show_config_help(load_finetune(options.preset), "statewise finetune RUN")
        return 0
    command = ["statewise", "finetune", *argv]
    if options.resume:
        if len(argv) > 2:
            raise ConfigError("finetune: expected --resume RUN alone, got more: leave it out")
        print(resume_finetune(options.resume, command))
        return 0
    if not source:
        raise ConfigError("finetune: expected the run directory of a decision_s4 first, got none")
    settings = load_finetune(options.preset, overrides)
    path = options.run or default_run(f"{Path(source).name}-finetune", Path(source).parent)
    print(finetune_run(Path(source), path, settings, command, seed=options.seed))
    return 0


def evaluate(argv: list[str]) -> int:
    """Evaluate a trained agent or world model: RUN [--episodes N] [--video out.mp4] ..."""
    parser = command_parser("eval", evaluate)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--episodes", type=count, help="by default eval.episodes of the run")
    parser.add_argument("--num-envs", type=count, help="by default eval.num_envs of the run")
    parser.add_argument("--seed", type=seed, help="by default the run's own evaluation seed")
    parser.add_argument("--actions", choices=ACTIONS, help="by default the run's")
    parser.add_argument(
        "--targets",
        type=float,
        nargs="+",
        metavar="R",
        help="returns to ask for, if it is told one",
    )
    parser.add_argument(
        "--video",
        type=Path,
        nargs="?",
        const=DEFAULT_VIDEO,
        metavar="OUT",
        help="film its first episodes: .mp4 or .gif, by default videos/STEP.mp4 in the run",
    )
    parser.add_argument("--video-episodes", type=count, metavar="N", help="by default 1")
    add_checkpoint(parser)
    options = parser.parse_args(argv)
    for line in _evaluated(options):
        print(line)
    return 0


def _evaluated(options: Namespace) -> list[str]:
    """Evaluate, and film if asked to; return what is printed."""
    from statewise.training.evaluate import EvalOptions, evaluate_run

    if options.video_episodes is not None and options.video is None:
        raise ConfigError("eval: expected --video with --video-episodes, got none: add --video")
    asked: dict[str, Any] = {
        name: getattr(options, name) for name in ("episodes", "num_envs", "seed", "actions")
    }
    asked["targets"] = None if options.targets is None else tuple(options.targets)
    which = {"checkpoint": options.checkpoint, "device": options.device}
    files = []
    if options.video is None:
        result = evaluate_run(options.run, **asked, **which)
    else:
        from statewise.training.video import VideoOptions, film_run

        out = None if options.video == DEFAULT_VIDEO else options.video
        wanted = VideoOptions(out, options.video_episodes or 1)
        result, video = film_run(options.run, EvalOptions(**asked), wanted, **which)
        files = [str(video)]
    *lines, last = result.lines()
    return [*lines, f"{last}: {options.run / 'eval.json'}", *files]


def imagine(argv: list[str]) -> int:
    """Show what a world model imagines: RUN [--context C] [--horizon H] [--out out.gif] ..."""
    from statewise.training.imagine_cli import run

    return run(argv)


def inspect(argv: list[str]) -> int:
    """Show what the memory of a policy keeps: RUN [--episodes N] [--out fig.png] ..."""
    from statewise.training.inspect_cli import run

    return run(argv)


def plot(argv: list[str]) -> int:
    """Draw learning curves: RUN... [--out fig.png]."""
    parser = command_parser("plot", plot)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path, help="file to write; the ending chooses the format")
    options = parser.parse_args(argv)

    from statewise.training.plot import plot_runs

    print(plot_runs(options.runs, options.out))
    return 0


def export(argv: list[str]) -> int:
    """Write a trained policy as one torch.export program: RUN [--out policy.pt2] ..."""
    parser = command_parser("export", export)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--out", type=Path, help="by default policy.pt2 in the run directory")
    parser.add_argument("--batch-size", type=count, default=1, help="environments per call")
    add_checkpoint(parser)
    options = parser.parse_args(argv)

    from statewise.training.api import load

    agent = load(options.run, checkpoint=options.checkpoint, device=options.device)
    print(agent.export(options.out or options.run / "policy.pt2", batch_size=options.batch_size))
    return 0


def data(argv: list[str]) -> int:
    """Make, show and convert data sets: make ENV | inspect PATH | convert SRC DST."""
    from statewise.training.data_cli import run

    return run(argv)


def list_topic(argv: list[str]) -> int:
    """Tell what there is and what is installed: [presets|layers|agents|envs]."""
    parser = command_parser("list", list_topic)
    parser.add_argument("topic", choices=TOPICS, nargs="?", help="by default all of them")
    options = parser.parse_args(argv)

    from rich.console import Console

    from statewise.training.listing import listing_table

    console = Console()
    for topic in [options.topic] if options.topic else TOPICS:
        console.print(listing_table(topic))
    return 0


def doctor(argv: list[str]) -> int:
    """Show versions, devices and backends, what is missing and the line that gets it."""
    command_parser("doctor", doctor).parse_args(argv)

    from rich.console import Console

    from statewise.training.doctor import doctor_tables

    console = Console()
    for table in doctor_tables():
        console.print(table)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "finetune": finetune,
    "eval": evaluate,
    "imagine": imagine,
    "inspect": inspect,
    "plot": plot,
    "export": export,
    "data": data,
    "list": list_topic,
    "doctor": doctor,
}


def default_run(preset: str, root: Path = Path("runs")) -> Path:
    """Return the first `<root>/<preset>-<n>` that does not exist, `/` of the preset as `-`."""
    name = Path(preset).stem if preset.endswith((".yaml", ".yml")) else preset.replace("/", "-")
    return next(
        path
        for path in (root / f"{name}-{number}" for number in itertools.count(1))
        if not path.exists()
    )
