"""Fine-tuning as a run: settings, the run it goes on from, run directories, resuming."""

from collections.abc import Sequence
from contextlib import closing
from importlib.resources import files
from pathlib import Path

from statewise.agents.offline.decision_s4 import DecisionS4
from statewise.envs.build import make_env
from statewise.envs.protocol import VectorEnv
from statewise.training.api import load
from statewise.training.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint
from statewise.training.config import ConfigError, apply_overrides, dump_config, load_config
from statewise.training.evaluate import EvalOptions
from statewise.training.finetune import FinetuneTraining, Goal
from statewise.training.finetune_config import FinetuneConfig
from statewise.training.own_env import ask_for
from statewise.training.playing import EnvFactory
from statewise.training.process import prepare_process
from statewise.training.progress import Progress
from statewise.training.run import RunDirectory, RunError, note_resume, write_atomic
from statewise.training.schema import nearest
from statewise.training.trained_offline import TrainedOfflineAgent
from statewise.training.yaml_text import read_yaml

FOLDER = "finetune"


def finetune_presets() -> dict[str, Path]:
    """Return the presets that come with the package by name, `finetune/<name>`."""
    folder = Path(str(files("statewise"))) / "configs" / FOLDER
    return {f"{FOLDER}/{path.stem}": path for path in sorted(folder.glob("*.yaml"))}


def load_finetune(preset: str | Path | None, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Return the settings of a preset with overrides laid over it.

    Args:
        preset: a name from `finetune_presets`, a file that ends in .yaml, or None for the defaults.
        overrides: tokens of a command line, see `apply_overrides`.

    Raises:
        ConfigError: no such preset, or a key or value that the dataclasses refuse.
    """
    config = FinetuneConfig()
    if preset is not None:
        known = finetune_presets()
        is_file = str(preset).endswith((".yaml", ".yml"))
        if not is_file and str(preset) not in known:
            raise ConfigError(
                f"preset: expected one of {', '.join(known)} or a .yaml file, got "
                f"{str(preset)!r}{nearest(str(preset), list(known))}"
            )
        mapping = read_yaml(Path(preset) if is_file else known[str(preset)])
        if not isinstance(mapping, dict):
            raise ConfigError(f"{preset}: expected a mapping of fields, got {mapping!r}")
        config = apply_overrides(config, mapping)
    return apply_overrides(config, overrides)


def finetune(
    trained: TrainedOfflineAgent,
    config: FinetuneConfig,
    *,
    seed: int | None = None,
    env: EnvFactory | None = None,
) -> TrainedOfflineAgent:
    """Fine-tune an agent in memory, and return it.

    Args:
        trained: a Decision S4.
        config: settings.
        seed: of the random streams; None takes that of the agent.
        env: makes one environment of your own, in which the agent plays from now on; None takes
            what was given to `statewise.load`.

    Raises:
        RunError: the run was loaded without the environment of one's own.
        ConfigError: another system, or there is no reference return.
    """
    prepare_process(trained.config)
    if env is not None:
        trained.factory = env
    envs = _environments(trained, config)
    try:
        training = _training(trained, config, envs, seed=seed)
        training.start()
        _go(training, quiet=True)
    finally:
        envs.close()
    return trained


def finetune_run(
    source: Path,
    path: Path,
    config: FinetuneConfig,
    command: Sequence[str],
    *,
    seed: int | None = None,
    env: EnvFactory | None = None,
    quiet: bool = False,
) -> Path:
    """Fine-tune the agent of a run in a new run directory, and return that.

    Args:
        source: run directory of a Decision S4, which stays as it is.
        path: the new one.
        config: settings.
        command: the words of the command line.
        seed: of the random streams; None takes that of the source.
        env: makes one environment of your own.
        quiet: show no progress.

    Raises:
        ConfigError: another system, or there is no reference return.
        RunError: a folder is not what it should be.
    """
    trained = _opened(source, env)
    prepare_process(trained.config)
    manifest = trained.manifest(list(command))
    manifest[FOLDER] = {
        "source": str(Path(source).resolve()),
        "step": trained.step,
        "seed": trained.config.seed if seed is None else seed,
        "target": _goal(trained, config).target,
    }
    envs = _environments(trained, config)
    try:
        # Before the folder, so that settings that are refused leave none behind.
        training = _training(trained, config, envs, seed=seed)
        training.run = run = RunDirectory.create(path, dump_config(trained.config), manifest)
        write_atomic(run.finetune_path, dump_config(config).encode())
        with run.lock(), closing(training):
            training.start()
            _go(training, quiet)
    finally:
        envs.close()
    return path


def resume_finetune(
    path: Path, command: Sequence[str], *, env: EnvFactory | None = None, quiet: bool = False
) -> Path:
    """Go on with fine-tuning exactly where its newest valid checkpoint is, and return the run.

    Raises:
        RunError: the folder is no such run, it is complete, or its environment was one's own and
            is not given.
        CheckpointError: it holds no valid checkpoint, or one that does not fit.
    """
    run = RunDirectory.open(path)
    settings = run.finetune_path
    if not run.is_finetuning():
        raise RunError(
            f"{path}: expected a run of fine-tuning, which holds {settings.name}, got another: "
            "use statewise train --resume"
        )
    config = load_finetune(settings)
    with run.lock():
        newest = newest_checkpoint(run.checkpoints_dir)
        if newest is None:
            raise CheckpointError(f"{run.checkpoints_dir} holds no valid checkpoint: start again")
        state = load_checkpoint(newest)
        if state["steps"] >= config.total_steps:
            raise RunError(f"{path} is complete at {state['steps']} steps: nothing to resume")
        if env is None and run.has_own_env():
            raise RunError(ask_for(path, "resume"))
        trained = _opened(path, env)
        prepare_process(trained.config)
        envs = _environments(trained, config)
        try:
            seed = int(run.read_manifest()[FOLDER]["seed"])
            note_resume(run, command, state["steps"])
            with closing(_training(trained, config, envs, run=run, seed=seed)) as training:
                training.resume(state)
                _go(training, quiet)
        finally:
            envs.close()
    return path


def _opened(path: Path, env: EnvFactory | None) -> TrainedOfflineAgent:
    """Return the agent of a run, or raise ConfigError."""
    system = load_config(RunDirectory.open(path).config_path).system
    if system != "decision_s4":
        raise ConfigError(f"finetune: expected a run of decision_s4, got {system} in {path}")
    trained = load(path, env=env)
    assert isinstance(trained, TrainedOfflineAgent), type(trained)
    return trained


def _goal(trained: TrainedOfflineAgent, config: FinetuneConfig) -> Goal:
    if trained.reference is None:
        raise ConfigError(
            "finetune: expected data with reference returns, by which the return asked for is "
            "chosen, got none: train with --eval.reference NAME, or on data that have ref_min and "
            "ref_max"
        )
    low, high = trained.reference.range
    target = trained.config.eval.returns_asked()[0] if config.target is None else config.target
    return Goal(target, low, high)


def _environments(trained: TrainedOfflineAgent, config: FinetuneConfig) -> VectorEnv:
    own = trained.config.env.config(trained.env_id, config.num_envs, ("previous_action",))
    return make_env(own, trained.factory)


def _training(
    trained: TrainedOfflineAgent,
    config: FinetuneConfig,
    envs: VectorEnv,
    *,
    run: RunDirectory | None = None,
    seed: int | None = None,
) -> FinetuneTraining:
    agent, goal = trained.agent, _goal(trained, config)
    if not isinstance(agent, DecisionS4):
        raise ConfigError(f"finetune: expected a decision_s4, got {trained.config.system}")
    if trained.config.data.reward != "as_is":
        raise ConfigError(
            "finetune: expected an agent that has learned from rewards as they come, got one with "
            f"data.reward {trained.config.data.reward}: train it with data.reward as_is"
        )
    try:
        return FinetuneTraining(
            config,
            agent,
            envs,
            goal,
            run=run,
            seed=trained.config.seed if seed is None else seed,
            evaluate=lambda: trained.play_targets(EvalOptions()),
            config_text=dump_config(trained.config),
        )
    except ValueError as error:  # of an agent, which knows no settings of commands
        raise ConfigError(f"finetune: {config.method}.{error}") from error


def _go(training: FinetuneTraining, quiet: bool) -> None:
    from rich.console import Console

    console = None if quiet else Console(stderr=True)
    with Progress(
        training.end,
        unit=training.unit,
        quantity=training.quantity,
        console=console,
        start_step=training.steps,
    ) as progress:
        training.train(progress)
