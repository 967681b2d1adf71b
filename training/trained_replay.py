"""An agent that learns in its environment from a replay, with its configuration."""

import dataclasses
from pathlib import Path
from typing import Any

from statewise.agents.protocol import ReplayAgent
from statewise.envs.protocol import VectorEnv
from statewise.training.playing import PlayingAgent
from statewise.training.process import prepare_process
from statewise.training.progress import Progress
from statewise.training.replay import ReplayTraining
from statewise.training.replay_config import ReplayTrainConfig
from statewise.training.run import RunDirectory
from statewise.training.trained import TrainedAgent


class TrainedReplayAgent(TrainedAgent):
    """An agent that learns from a replay; see `TrainedAgent`."""

    config: ReplayTrainConfig  # type: ignore[assignment]
    agent: ReplayAgent  # type: ignore[assignment]
    goes_on_with, unit = "learn(total_timesteps)", ReplayTraining.unit

    def _schedule(self) -> dict[str, Any]:
        return {}

    def loop(self, source: VectorEnv, run: RunDirectory | None) -> ReplayTraining:  # type: ignore[override]
        """Return the training of a run."""
        return ReplayTraining(self.config, self.agent, source, run, self._evaluate_on_the_way)

    def learn(self, total_timesteps: int) -> "TrainedReplayAgent":
        """Train for `total_timesteps` more environment steps with a new replay, in memory."""
        config = dataclasses.replace(self.config, total_steps=total_timesteps)
        prepare_process(config)
        with self.source() as env:
            training = ReplayTraining(config, self.agent, env, None, self._evaluate_on_the_way)
            training.start()
            with Progress(total_timesteps, console=None) as progress:
                training.train(progress)
        return self

    def export(self, path: str | Path, *, batch_size: int = 1) -> Path:
        """Refuse: only the policy of `ppo` is one program without noise as an input."""
        return PlayingAgent.export(self, path, batch_size=batch_size)
