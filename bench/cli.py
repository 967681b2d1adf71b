"""The commands of `statewise` that measure and that check claims.

A command takes the words after its name and returns an exit status. Everything heavy is
imported inside the command that needs it.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from statewise.bench.diagnose_cli import add_words, diagnose
from statewise.bench.suite_cli import suite
from statewise.training.arguments import command_parser, count, seed
from statewise.training.schema import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from statewise.bench.envs import EnvsOptions
    from statewise.bench.layers import LayersOptions
    from statewise.bench.offline import OfflineOptions
    from statewise.bench.ppo import PPOOptions
    from statewise.bench.rollout import RolloutOptions
    from statewise.bench.scan import Outcome, ScanOptions
    from statewise.bench.worldmodel import WorldModelOptions

REFUSED = 1
WIDTH = 120  # of tables in files and pipes
RUNS = Path("runs") / "claims"
DATASETS = Path("datasets")  # as `statewise data make` has it

_REPRODUCE_HELP = """\
Data sets of a claim are made first, as `statewise data make` does, where they are missing. What
was stopped goes on when the command is given again; what is finished is not made again. Runs that
are not made, because of --arms or Ctrl-C, stand as "not run" in the table.

status: 0 if every check holds; 1 if one fails, or is NOT RUN because runs of its arms are missing
"""


def bench(argv: list[str]) -> int:
    """Measure speed, or what layers can learn: NAME [--json F] [--quick] ..."""
    options = _bench_parser().parse_args(argv)
    if options.name == "diagnose":
        report = diagnose(options, _say)
        _console().print(report.table)
        for line in report.lines:
            print(line)
        return report.status

    from statewise.bench import envs as envs_bench
    from statewise.bench import layers as layers_bench
    from statewise.bench import offline as offline_bench
    from statewise.bench import ppo as ppo_bench
    from statewise.bench import rollout as rollout_bench
    from statewise.bench import scan as scan_bench
    from statewise.bench import worldmodel as worldmodel_bench
    from statewise.bench.table import load_average

    load_before = load_average()
    if options.name == "scan":
        outcome = scan_bench.run_scan(_scan_options(options), _say)
    elif options.name == "layers":
        outcome = layers_bench.run_layers(_layers_options(options), _say)
    elif options.name == "offline":
        outcome = offline_bench.run_offline(_offline_options(options), _say)
    elif options.name == "envs":
        outcome = envs_bench.run_envs(_envs_options(options), _say)
    elif options.name == "rollout":
        outcome = rollout_bench.run_rollout(_rollout_options(options), _say)
    elif options.name == "worldmodel":
        outcome = worldmodel_bench.run_worldmodel(_worldmodel_options(options), _say)
    else:
        outcome = ppo_bench.run_ppo(_ppo_options(options), _say)
    return _report(options.name, outcome, options.json, load_before)


def reproduce(argv: list[str]) -> int:
    """Train and check a claim again: CLAIM|--all [--arms NAME ...] [--seeds N ...] ...

    Returns 0 if every check holds, 1 if one fails or lacks runs.
    """
    parser = command_parser("reproduce", reproduce)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _REPRODUCE_HELP
    parser.add_argument("claim", nargs="?", help="name in configs/claims, or a .yaml file")
    parser.add_argument("--all", action="store_true", help="every claim of the package")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="runs of these alone are made")
    parser.add_argument("--seeds", type=seed, nargs="+", help="by default those of the claim")
    parser.add_argument("--run-root", type=Path, default=RUNS, help=f"by default {RUNS}")
    parser.add_argument(
        "--data-root", type=Path, default=DATASETS, help=f"of what is learned from: {DATASETS}"
    )
    parser.add_argument("--out", type=Path, help="by default docs/results if it exists, or results")
    parser.add_argument("--workers", type=count, help="runs at a time, by default one per core")
    parser.add_argument("--device", default="cpu", help="of the runs: cpu, by default, or cuda")
    options = parser.parse_args(argv)
    if (options.claim is None) != options.all:
        raise ConfigError("reproduce: expected either a claim or --all: see statewise reproduce -h")
    if options.all and options.arms:
        raise ConfigError(f"reproduce: expected no --arms with --all, got {options.arms[0]}")

    from statewise.bench import claims
    from statewise.bench.reproduce import Plan
    from statewise.bench.reproduce import reproduce as reproduce_claim
    from statewise.bench.table import num_cores

    docs = Path("docs") / "results"
    out = options.out or (docs if docs.is_dir() else Path("results"))
    names = claims.claim_names() if options.all else [options.claim]
    passed = True
    # All files are read before anything is trained: a mistake in the last shows at once.
    for name, claim in [(name, claims.load_claim(name)) for name in names]:
        print(f"{claim.name}: {claim.title}. {claim.statement}", flush=True)
        plan = Plan(
            seeds=tuple(dict.fromkeys(options.seeds or claim.seeds)),
            arms=tuple(options.arms or (arm.name for arm in claim.arms)),
            root=options.run_root,
            data_root=options.data_root,
            out=out,
            workers=options.workers or num_cores(),
            device=options.device,
        )
        result = reproduce_claim(name, claim, plan, _say)
        for line in (*result.summary, *result.verdicts):
            print(line)
        print(" ".join(map(str, result.written)), flush=True)
        passed = passed and result.passed
    return 0 if passed else 1


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "bench": bench,
    "reproduce": reproduce,
    "suite": suite,
}


def _bench_parser() -> argparse.ArgumentParser:
    parser = command_parser("bench", bench)
    metavar = "scan|layers|ppo|offline|worldmodel|envs|rollout|diagnose"
    names = parser.add_subparsers(dest="name", required=True, metavar=metavar)
    scan = names.add_parser("scan", help="the linear scan, forward and backward")
    scan.add_argument("--shape", type=_shape, action="append", help="B,T,D; may be repeated")
    scan.add_argument("--backend", action="append", choices=("cpu", "torch", "reference"))
    scan.add_argument("--threads", type=count, action="append", help="by default 1; repeatable")
    layers = names.add_parser("layers", help="stacks of layers, and their acting step")
    layers.add_argument("--all", action="store_true", help="also every row of the table of layers")
    layers.add_argument(
        "--case", action="append", metavar="NAME", help="repeatable; by default all"
    )
    ppo = names.add_parser("ppo", help="recurrent PPO beside sb3-contrib's")
    ppo.add_argument("--threads", type=count, default=2, help="of the CartPole cases")
    offline = names.add_parser("offline", help="decision policies beside transformers'")
    offline.add_argument("--threads", type=count, default=2, help="of training and acting")
    world = names.add_parser("worldmodel", help="a world model with a scan and with a GRU")
    world.add_argument("--shape", type=_shape, help="B,T,width of one update more: 16,64,256")
    envs = names.add_parser("envs", help="environments through our adapters and alone")
    envs.add_argument("--case", action="append", metavar="TEXT", help="cases whose name holds it")
    rollout = names.add_parser("rollout", help="acting and stepping, S5 and without memory")
    for part in (layers, world):
        part.add_argument("--device", default="cpu", help="cpu, by default, or cuda")
        part.add_argument("--threads", type=count, help="on the CPU, by default 2; a step has one")
    for part in (envs, rollout):
        part.add_argument("--threads", type=count, default=2, help="of torch and of the backends")
    for part in (scan, layers, ppo, offline, world, envs, rollout):
        part.add_argument("--rounds", type=count, help="turns that every system takes")
        part.add_argument("--json", type=Path, metavar="F", help="write the rows to a file")
        part.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    add_words(names.add_parser("diagnose", help="which layer learns which small task"))
    return parser


def _scan_options(options: argparse.Namespace) -> "ScanOptions":
    from statewise.bench.scan import BACKENDS, QUICK_SHAPES, SHAPES, ScanOptions

    quick = options.quick
    return ScanOptions(
        shapes=tuple(options.shape or (QUICK_SHAPES if quick else SHAPES)),
        backends=tuple(options.backend or BACKENDS),
        threads=tuple(options.threads or (1,)),
        rounds=options.rounds or (1 if quick else 2),
        reps=3 if quick else 20,
        seconds=0.01 if quick else 1.0,
    )


def _threads_of(options: argparse.Namespace) -> int:
    """Return the threads of a measurement on the CPU, or the one that gives a GPU its work."""
    if options.device == "cpu":
        return options.threads or 2
    if options.threads is not None:
        raise ConfigError(
            f"--threads: expected none with --device {options.device}, which one thread gives its "
            f"work, got {options.threads}: leave it out"
        )
    return 1


def _layers_options(options: argparse.Namespace) -> "LayersOptions":
    from statewise.bench.layers import CASES, Case, LayersOptions, every_layer, every_step
    from statewise.training.playing import find_device

    device = str(find_device(options.device))
    cases: tuple[Case, ...] = CASES
    if options.all:
        cases = (*CASES, every_layer(), every_step())
    if options.case:
        known = {case.name: case for case in (*CASES, every_layer(), every_step())}
        unknown = [name for name in options.case if name not in known]
        if unknown:
            raise ConfigError(f"--case: expected one of {', '.join(known)}, got {unknown[0]!r}")
        cases = tuple(known[name] for name in options.case)
    if options.quick:
        return LayersOptions(
            shape=(2, 16, 32),
            threads=_threads_of(options),
            device=device,
            rounds=options.rounds or 1,
            reps=1,
            seconds=0.01,
            step_seconds=0.01,
            cases=cases,
        )
    return LayersOptions(
        threads=_threads_of(options), device=device, rounds=options.rounds or 2, cases=cases
    )


def _ppo_options(options: argparse.Namespace) -> "PPOOptions":
    from statewise.bench.ppo import PPOOptions

    if options.quick:
        return PPOOptions(
            rollouts=(4,),
            lengths=(8,),
            threads=options.threads,
            rounds=options.rounds or 1,
            iterations=2,
            seconds=0.01,
        )
    return PPOOptions(threads=options.threads, rounds=options.rounds or 2)


def _offline_options(options: argparse.Namespace) -> "OfflineOptions":
    from statewise.bench.offline import OfflineOptions

    if options.quick:
        return OfflineOptions(
            contexts=(3, 5),
            batch=2,
            width=16,
            history=7,
            threads=options.threads,
            rounds=options.rounds or 1,
            reps=1,
            seconds=0.01,
            act_seconds=0.01,
        )
    return OfflineOptions(threads=options.threads, rounds=options.rounds or 3)


def _worldmodel_options(options: argparse.Namespace) -> "WorldModelOptions":
    from statewise.bench.worldmodel import WIDE, WorldModelOptions
    from statewise.training.playing import find_device

    device = str(find_device(options.device))
    if options.quick:
        return WorldModelOptions(
            lengths=(3,),
            wide=options.shape or (2, 4, 16),
            rollouts=4,
            threads=_threads_of(options),
            device=device,
            rounds=options.rounds or 1,
            reps=1,
            seconds=0.01,
        )
    return WorldModelOptions(
        wide=options.shape or WIDE,
        threads=_threads_of(options),
        device=device,
        rounds=options.rounds or 3,
    )


def _envs_options(options: argparse.Namespace) -> "EnvsOptions":
    from statewise.bench.envs import CASES, EnvsOptions

    wanted = options.case or [""]
    cases = tuple(case for case in CASES if any(text in case.name for text in wanted))
    if not cases:
        names = "; ".join(case.name for case in CASES)
        raise ConfigError(f"--case: expected a part of one of {names}; got {wanted[0]!r}")
    if options.quick:
        return EnvsOptions(
            cases=cases,
            num_envs=2,
            threads=options.threads,
            rounds=options.rounds or 1,
            reps=1,
            seconds=0.01,
            steps=2,
        )
    return EnvsOptions(cases=cases, threads=options.threads, rounds=options.rounds or 3)


def _rollout_options(options: argparse.Namespace) -> "RolloutOptions":
    from statewise.bench.rollout import RolloutOptions

    if options.quick:
        return RolloutOptions(
            num_envs=2, threads=options.threads, rounds=options.rounds or 1, reps=1, seconds=0.01
        )
    return RolloutOptions(threads=options.threads, rounds=options.rounds or 3)


def _report(name: str, outcome: "Outcome", path: Path | None, load_before: float) -> int:
    from statewise.bench.table import build_rows, build_tables, load_average, num_cores, warnings_of
    from statewise.training.run import write_json

    console = _console()
    for table in build_tables(name, outcome.figures):
        console.print(table)
    print(f"load average {load_before:.2f} before, {load_average():.2f} after, {num_cores()} cores")
    for line in outcome.missing:
        print(f"not measured: {line}", file=sys.stderr)
    for line in outcome.refused:
        print(f"refused, the result is wrong: {line}", file=sys.stderr)
    for line in warnings_of(outcome.figures, load_before):
        print(line, file=sys.stderr)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, build_rows(name, outcome.figures))
        print(path)
    return REFUSED if outcome.refused else 0


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected B,T,D, three positive integers, got {text!r}")
    batch, steps, width = map(int, parts)
    return batch, steps, width
