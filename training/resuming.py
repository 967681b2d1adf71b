"""Going on with a run from Python, whatever it is a run of."""

from pathlib import Path

from statewise.agents.recurrent_ppo import EncoderFactory
from statewise.training.api import load, resume_training
from statewise.training.finetune_run import resume_finetune
from statewise.training.playing import EnvFactory, PlayingAgent
from statewise.training.run import RunDirectory
from statewise.training.schema import ConfigError


def resume(
    path: str | Path, *, env: EnvFactory | None = None, encoder: EncoderFactory | None = None
) -> PlayingAgent:
    """Go on with a run as `statewise train --resume` does, to its end, and return the agent.

    A run of fine-tuning goes on, too.

    Args:
        path: the run.
        env: as given to `train`.
        encoder: as given to `train`.

    Raises:
        ConfigError: an encoder for a run of fine-tuning.
        RunError: see `resume_training`.
        CheckpointError: it holds no valid checkpoint, or one that does not fit.
    """
    path = Path(path)
    if RunDirectory(path).is_finetuning():
        if encoder is not None:
            raise ConfigError(f"encoder: expected none for fine-tuning, got {encoder!r}")
        resume_finetune(path, ["statewise", "finetune", "--resume", str(path)], env=env)
    else:
        command = ["statewise", "train", "--resume", str(path)]
        resume_training(path, command, env=env, encoder=encoder)
    return load(path, env=env, encoder=encoder)
