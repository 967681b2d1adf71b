"""The Python interface: train a preset, load a run, act, go on learning, save.

agent = statewise.load("runs/first-light")
env = agent.make_env()
agent.predict(env.reset()[0])
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from statewise.agents import parallel
from statewise.agents.build import AGENTS
from statewise.agents.recurrent_ppo import EncoderFactory
from statewise.data.dataset import EpisodeDataset
from statewise.training.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint
from statewise.training.config import (
    ConfigError,
    OfflineTrainConfig,
    RunConfig,
    S4WMRun,
    apply_overrides,
    dump_config,
    load_config,
    load_preset,
)
from statewise.training.distributed import (
    Joined,
    check_equal,
    check_shares,
    own_state,
    same_path,
    seed_own_streams,
    take_device,
    tells_how_to_go_on,
)
from statewise.training.loop import Loop
from statewise.training.own_env import ask_for, stand_in
from statewise.training.playing import EnvFactory, PlayingAgent
from statewise.training.process import prepare_process
from statewise.training.progress import Progress
from statewise.training.run import RunDirectory, RunError, note_resume
from statewise.training.trained import TrainedAgent
from statewise.training.trained_histories import TrainedHistoryAgent
from statewise.training.trained_offline import TrainedOfflineAgent
from statewise.training.trained_replay import TrainedReplayAgent
from statewise.training.trained_world import TrainedWorldAgent
from statewise.training.trained_world_model import TrainedWorldModel

__all__ = [
    "PlayingAgent",
    "TrainedAgent",
    "TrainedOfflineAgent",
    "TrainedWorldModel",
    "load",
    "make",
    "resume_training",
    "run_training",
    "train",
    "with_data",
]

DataPaths = str | Path | Sequence[str | Path]

# What is learned from, by the loop that `agents.build` names.
_KINDS: dict[str, Any] = {
    "online": TrainedAgent,
    "offline": TrainedOfflineAgent,
    "replay": TrainedReplayAgent,
    "world": TrainedWorldAgent,
    "world_data": TrainedWorldModel,
}
_OWN: dict[str, Any] = {"ad": TrainedHistoryAgent}  # of systems that differ from their loop


def _learns_from_data(config: RunConfig, got: str) -> OfflineTrainConfig | S4WMRun:
    """Return the settings, or raise ConfigError."""
    if not isinstance(config, OfflineTrainConfig | S4WMRun):
        raise ConfigError(
            f"data: expected none for {config.system}, which learns in its environment, got {got}"
        )
    return config


def _paths(data: DataPaths) -> list[str]:
    return [str(data)] if isinstance(data, str | Path) else [str(path) for path in data]


def with_data(config: RunConfig, data: DataPaths | None) -> RunConfig:
    """Return the settings with these data sets in `data.paths`; None changes nothing.

    Raises:
        ConfigError: the system does not learn from data.
    """
    if data is None:
        return config
    paths = _paths(data)
    offline = _learns_from_data(config, ", ".join(paths))
    return apply_overrides(offline, {"data.paths": paths})


def make(
    preset: str,
    *,
    data: DataPaths | EpisodeDataset | None = None,
    env: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    **overrides: Any,
) -> PlayingAgent:
    """Return an untrained agent for a preset.

    Args:
        preset: a name from `statewise list presets`, or the path of a YAML file.
        data: what it learns from, of systems that learn from data: files, folders, or episodes.
        env: makes one environment of your own.
        encoder: makes the encoder from the observation space.
        **overrides: settings by dotted path, with `__` for the dot: `agent__learning_rate`.
    """
    config = apply_overrides(load_preset(preset), _dotted(overrides))
    makers: dict[str, Any] = {"env": env, "encoder": encoder, "preset": preset}
    if isinstance(data, EpisodeDataset):
        offline = _learns_from_data(config, f"{len(data)} episodes")
        return _new(offline, data=data, **makers)
    return _new(with_data(config, data), **makers)


def train(
    preset: str,
    *,
    run: str | Path | None = None,
    data: DataPaths | None = None,
    env: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    **overrides: Any,
) -> PlayingAgent:
    """Train a preset as `statewise train` does, and return the agent; see `make`.

    `run` is the run directory, by default `runs/<preset>-<n>`. Data come from files or folders,
    so that the run can be resumed.
    """
    from statewise.training.cli import default_run

    config = with_data(apply_overrides(load_preset(preset), _dotted(overrides)), data)
    words = [f"--{key}={value}" for key, value in _dotted(overrides).items()]
    words += [] if data is None else ["--data", *_paths(data)]
    path = default_run(preset) if run is None else Path(run)
    command = ["statewise", "train", preset, *words]
    path = run_training(config, path, command, env=env, encoder=encoder)
    return load(path, env=env, encoder=encoder)


def load(
    path: str | Path,
    *,
    checkpoint: int | None = None,
    env: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    device: str | None = None,
) -> PlayingAgent:
    """Load the agent of a run directory, or of a folder that `save` wrote.

    Args:
        path: the folder.
        checkpoint: a step; None takes the newest valid checkpoint.
        env: as given to `train`; without it an agent chooses actions and learns from data, but
            makes no environment: that is a RunError.
        encoder: as given to `train`.
        device: "cpu", "cuda" or "cuda:N"; None takes that of the run.

    Raises:
        RunError: the folder is no run.
        CheckpointError: it holds no such checkpoint, or one that does not fit.
    """
    run = RunDirectory.open(Path(path))
    config = load_config(run.config_path)
    if device is not None:
        config = apply_overrides(config, {"device": device})
    trained = _opened(run, config, env=env, encoder=encoder)
    _restore(trained, _read(run, checkpoint), run)
    return trained


def _kind(config: RunConfig) -> Any:
    return _OWN.get(config.system) or _KINDS[AGENTS[config.system].loop]


def _new(config: RunConfig, **makers: Any) -> PlayingAgent:
    trained: PlayingAgent = _kind(config)(config, **makers)
    return trained


def _opened(run: RunDirectory, config: RunConfig, **makers: Any) -> PlayingAgent:
    if makers["env"] is None:
        makers["env"] = stand_in(run.path, run.read_manifest())
    trained: PlayingAgent = _kind(config).opened(config, run, **makers)
    return trained


def _read(run: RunDirectory, checkpoint: int | None) -> dict[str, Any]:
    if checkpoint is not None:
        return load_checkpoint(run.checkpoints_dir / str(checkpoint))
    newest = newest_checkpoint(run.checkpoints_dir)
    if newest is None:
        raise CheckpointError(f"{run.checkpoints_dir} holds no valid checkpoint: train first")
    return load_checkpoint(newest)


def _restore(trained: PlayingAgent, state: dict[str, Any], run: RunDirectory) -> None:
    try:
        trained.agent.load_state_dict(state["agent"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint in {run.path} is of another agent or environment: {error}"
        ) from error


def _dotted(overrides: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in overrides.items()}


def run_training(
    config: RunConfig,
    path: Path,
    command: Sequence[str],
    *,
    env: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    quiet: bool = False,
) -> Path:
    """Train in a new run directory and return it; under torchrun in several processes.

    Raises:
        ConfigError: the run cannot be divided among them, or settings do not fit together.
        RunError: the folder cannot be used, or the processes are not alike.
        LostProcessError: another process is gone.
    """
    with Joined():
        path = same_path(path)
        _set_up(config)
        trained = _new(config, env=env, encoder=encoder)
        check_equal(trained.agent)
        seed_own_streams(trained.agent, config.seed)
        with (
            tells_how_to_go_on(path),
            trained.source() as source,
            _new_run(trained, source, path, command) as run,
            closing(trained.loop(source, run)) as training,
        ):
            training.start()
            _go(training, quiet)
    return path


def _set_up(config: RunConfig) -> None:
    """Prepare this process for its share of a run."""
    check_shares(config, parallel.num_processes())
    take_device(config)
    prepare_process(config)


@contextmanager
def _new_run(
    trained: PlayingAgent, source: Any, path: Path, command: Sequence[str]
) -> Iterator[RunDirectory]:
    """Return the new run directory, made and locked by the process that writes it."""
    if parallel.rank() > 0:
        yield RunDirectory(path)
        return
    manifest = trained.manifest(list(command), source)
    if parallel.num_processes() > 1:
        manifest |= {"processes": parallel.num_processes()}
    run = RunDirectory.create(path, dump_config(trained.config), manifest)
    with run.lock():
        yield run


def _lock(run: RunDirectory) -> AbstractContextManager[None]:
    """Lock a run in the process that writes it."""
    return run.lock() if parallel.rank() == 0 else nullcontext()


def resume_training(
    path: Path,
    command: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    env: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    quiet: bool = False,
) -> Path:
    """Go on with a run exactly where its newest valid checkpoint is, and return it.

    Raises:
        ConfigError: overrides were given; a resumed run keeps its settings.
        RunError: the folder is no run, its training is complete, its data have changed, its
            environment was one's own and is not given, or it was another number of processes.
        LostProcessError: another process is gone.
        CheckpointError: it holds no valid checkpoint, or one that does not fit.
    """
    if overrides:
        raise ConfigError(
            f"train --resume: expected no settings, got {' '.join(overrides)}: a resumed run "
            "keeps its own; start a new run to change them"
        )
    with Joined(), tells_how_to_go_on(path):
        run = _run_of_training(path)
        config = load_config(run.config_path)
        _set_up(config)
        with _lock(run):
            state = _unfinished(run, config)
            if env is None and run.has_own_env():
                raise RunError(ask_for(path, "resume"))
            trained = _opened(run, config, env=env, encoder=encoder)
            _restore(trained, state, run)
            check_equal(trained.agent)
            with trained.source() as source:
                if parallel.rank() == 0:
                    note_resume(run, command, state["steps"])
                with closing(trained.loop(source, run)) as training:
                    training.resume(state)
                    _go(training, quiet)
    return path


def _run_of_training(path: Path) -> RunDirectory:
    run = RunDirectory.open(path)
    if run.is_finetuning():
        raise RunError(
            f"{path}: expected a run of training, got one of fine-tuning: "
            "use statewise finetune --resume"
        )
    return run


def _unfinished(run: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """Return what this process goes on with; see `resume_training`."""
    state = _read(run, None)
    kind = _kind(config)
    if "steps" not in state:
        method = kind.goes_on_with.partition("(")[0]
        raise RunError(f"{run.path} holds a saved agent, not a run: use load(...).{method}(...)")
    if state["steps"] >= config.end:
        unit = kind.unit
        raise RunError(f"{run.path} is complete at {state['steps']} {unit}: nothing to resume")
    return own_state(state, run.path)


def _go(training: Loop, quiet: bool) -> None:
    from rich.console import Console

    console = None if quiet or parallel.rank() > 0 else Console(stderr=True)
    with Progress(
        training.end,
        unit=training.unit,
        quantity=training.quantity,
        console=console,
        start_step=training.steps,
    ) as progress:
        training.train(progress)
