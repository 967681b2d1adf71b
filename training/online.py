"""The on-policy loop: collect, update, log."""

import time
from typing import Any

from statewise.agents.recurrent_ppo import NonFiniteLossError, RecurrentPPO
from statewise.envs.protocol import VectorEnv
from statewise.training.collector import Collector
from statewise.training.config import TrainConfig, dump_config
from statewise.training.loop import Loop
from statewise.training.run import RunDirectory
from statewise.training.seeding import Seeds


class OnlineTraining(Loop):
    """One on-policy run, in a run directory or (`run` None) only in memory."""

    unit, quantity = "steps", "return"

    def __init__(
        self, config: TrainConfig, agent: RecurrentPPO, env: VectorEnv, run: RunDirectory | None
    ):
        super().__init__(
            run,
            config_text="" if run is None else dump_config(config),
            end=config.end,
            every=config.checkpoint.every_steps,
            keep=config.checkpoint.keep,
        )
        self.config, self.agent, self.env = config, agent, env
        self.collector = Collector(env, agent, config.rollout_steps, config.device)

    def begin(self) -> None:
        """Start the episodes."""
        # An agent that has learned before sees other episodes than it began with.
        seen = self.agent.steps_seen
        self.collector.start(Seeds(self.config.seed).integer(f"env-{seen}" if seen else "env"))

    def state_dict(self) -> dict[str, Any]:
        """Return agent and collector."""
        return {"agent": self.agent.state_dict(), "collector": self.collector.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the collector."""
        self.collector.load_state_dict(state["collector"])

    def shown(self, metrics: dict[str, float]) -> float | None:
        """Return the mean return of the latest episodes."""
        return metrics.get("rollout/ep_rew_mean")

    def iterate(self) -> dict[str, float]:
        """Collect one rollout, update on it, log; return the metrics."""
        begin = time.perf_counter()
        rollout = self.collector.collect()
        collected = time.perf_counter()
        try:
            losses = self.agent.update(rollout.batch)
        except NonFiniteLossError:
            self.keep_batch(rollout.batch.step)
            raise
        done = time.perf_counter()
        self.steps += rollout.num_steps
        metrics = (
            self.collector.statistics
            | {f"train/{name}": value for name, value in losses.items()}
            | {
                "time/fps": rollout.num_steps / (done - begin),
                "time/total_timesteps": float(self.steps),
                "time/collect_share": (collected - begin) / (done - begin),
                "rollout/episodes": float(rollout.num_episodes),
            }
        )
        if self.logger is not None:
            self.logger.write(self.steps, metrics)
        return metrics
