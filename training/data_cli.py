"""The commands below `statewise data`: make, inspect, convert."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from statewise.data import EpisodeDataset, dataset_table, load_dataset, write_d4rl, write_npz
from statewise.training.arguments import command_parser, count, seed
from statewise.training.schema import ConfigError, nearest

_ENDINGS = {".hdf5": "d4rl", ".h5": "d4rl", ".npz": "npz"}
_LAYOUTS = ("d4rl", "minari", "npz")

_MAKE_HELP = """\
environments with a budget:
  pendulum                        10,000 steps: 4 minutes on a free core, 8 on a busy one
  hopper, halfcheetah, walker2d   1,000,000 steps: about an hour per 200,000 steps on a free core
                                  (Hopper: 55 steps per second), an afternoon in all, two to three
                                  times that on a busy one; needs pip install 'gymnasium[mujoco]'
Another environment with bounded Box actions and a time limit is given by its id, with --steps.
With fewer --steps the best policy so far is the expert.

levels:
  random, medium, expert          episodes of a policy that explores
  medium-replay, full-replay      what was seen in training; on pendulum medium-replay is a dozen
                                  episodes, no better than random ones
  medium-expert                   both, one after the other
Score 0 is the return of random actions, 100 that of the expert: every level needs the training.

analytic sets, made at once:
  rtg-dial (mixed), delayed-cue (expert), double-integrator (random, medium, expert)
  delayed-offer (random, take, mixed, take-bright, mixed-bright),
  distracting-hallway (scripted, mixed), multi-doors-keys (scripted-3, scripted-5, scripted-7)
  dark-room-histories (train, held-out, all): what tabular learners live through, for each goal
  pong (scripted): pictures of ALE/Pong-v5, a minute; needs pip install 'statewise[atari]'
Of another --length they go to a folder of their own, such as datasets/delayed-cue-100; so long
must the environment be, too: --env.kwargs.length 100; of the hallway --env.kwargs.width 100,
of the offer --env.kwargs.delay 100, of the dark room --env.kwargs.steps 100.

A command that was stopped goes on when it is given again. What is complete is not made again.
"""


def run(argv: list[str]) -> int:
    """Run one of `ACTIONS`.

    Raises:
        ConfigError: a wrong word; and what the action raises.
    """
    if not argv or argv[0] in ("-h", "--help"):
        _print_help()
        return 0
    name, *rest = argv
    if name not in ACTIONS:
        known = ", ".join(ACTIONS)
        raise ConfigError(f"data: expected one of {known}, got {name!r}{nearest(name, [*ACTIONS])}")
    return ACTIONS[name](rest)


def make(argv: list[str]) -> int:
    """Train a policy on an environment and record data sets like D4RL's: ENV [--out DIR] ..."""
    from statewise.training.make_data_recipes import Algorithm, find_recipe, folder_name

    parser = command_parser("data make", make)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _MAKE_HELP
    parser.add_argument("env", metavar="ENV", help="a short name, or an id of gymnasium")
    parser.add_argument("--levels", nargs="+", default=[], metavar="LEVEL", help="by default all")
    parser.add_argument("--steps", type=count, help="of training, by default the budget below")
    parser.add_argument("--algorithm", choices=get_args(Algorithm), help="by default sac")
    parser.add_argument("--episodes", type=count, help="of each level that is played")
    parser.add_argument("--length", type=count, help="of an analytic set, by default its own")
    parser.add_argument("--seed", type=seed, default=0, help="by default 0")
    parser.add_argument("--out", type=Path, help="folder, by default datasets/<name>[-<length>]")
    options = parser.parse_args(argv)
    config = find_recipe(
        options.env,
        steps=options.steps,
        algorithm=options.algorithm,
        episodes=options.episodes,
        length=options.length,
        seed=options.seed,
    )

    import torch

    from statewise.training.make_data import make_data
    from statewise.training.make_data_folder import DataFolder
    from statewise.training.process import keep_freed_memory

    # One thread, so that the result does not depend on the number of cores.
    torch.set_num_threads(1)
    keep_freed_memory()
    out = options.out or Path("datasets") / folder_name(options.env, config)
    console = Console()
    made = make_data(config, out, options.levels, console=console)
    if not made:
        _say(console, f"{out} is complete: nothing to do")
    console.print(_levels_table(DataFolder(out).recipe["levels"], str(out)))
    return 0


def inspect(argv: list[str]) -> int:
    """Show what a data set holds: PATH of a D4RL, npz or Minari data set, or of DQN replay."""
    parser = command_parser("data inspect", inspect)
    parser.add_argument("path", type=Path, metavar="PATH", help="file or folder")
    options = parser.parse_args(argv)
    table = Table(show_header=False)
    for name, value in dataset_table(load_dataset(options.path)):
        table.add_row(name, value)
    Console().print(table)
    return 0


def convert(argv: list[str]) -> int:
    """Write a data set in another layout: SRC DST, by the ending of DST or --to LAYOUT."""
    parser = command_parser("data convert", convert)
    parser.add_argument("source", type=Path, metavar="SRC", help="D4RL, npz, Minari or DQN replay")
    parser.add_argument(
        "target", type=Path, metavar="DST", help="x.hdf5, x.npz, or for Minari a folder x-v0"
    )
    parser.add_argument("--to", choices=_LAYOUTS, help="by default what DST's ending says")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at DST")
    options = parser.parse_args(argv)
    layout = options.to or _layout_of(options.target)
    dataset = load_dataset(options.source)
    _WRITERS[layout](dataset, options.target, overwrite=options.overwrite)
    _say(Console(), f"{options.target}: {len(dataset)} episodes, {dataset.num_steps} steps")
    return 0


ACTIONS: dict[str, Callable[[list[str]], int]] = {
    "make": make,
    "inspect": inspect,
    "convert": convert,
}


def _layout_of(target: Path) -> str:
    """Return the layout that a name stands for.

    Raises:
        ConfigError: it stands for none.
    """
    if layout := _ENDINGS.get(target.suffix.lower()):
        return layout
    if not target.suffix and target.name.rpartition("-v")[2].isdecimal():
        return "minari"
    raise ConfigError(
        f"data convert: expected DST to end in {', '.join(_ENDINGS)} or -v0, got {target.name!r}:"
        f" pass --to {'|'.join(_LAYOUTS)}"
    )


def _write_minari(dataset: EpisodeDataset, target: Path, *, overwrite: bool) -> None:
    from statewise.data.minari_write import write_minari

    write_minari(
        dataset.episodes(), dataset.info, target.name, root=target.parent, overwrite=overwrite
    )


_WRITERS: dict[str, Callable[..., None]] = {
    "d4rl": write_d4rl,
    "minari": _write_minari,
    "npz": write_npz,
}


def _levels_table(levels: dict[str, dict[str, Any]], title: str) -> Table:
    table = Table(title=title)
    table.add_column("level")
    for name in ("episodes", "steps", "return", "std", "min", "max", "score"):
        table.add_column(name, justify="right")
    for level, entry in levels.items():
        numbers = [f"{entry[f'return_{key}']:.4g}" for key in ("mean", "std", "min", "max")]
        counts = [str(entry["episodes"]), str(entry["steps"])]
        table.add_row(level, *counts, *numbers, f"{entry['score']:.1f}")
    return table


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_help() -> None:
    console = Console()
    _say(console, "usage: statewise data ACTION ...\n")
    for name, action in ACTIONS.items():
        _say(console, f"  {name:8} {(action.__doc__ or '').splitlines()[0]}")
    _say(console, "\nstatewise data ACTION --help tells what an action takes.")
