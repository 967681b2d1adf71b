"""The on-policy loop: collect, update, evaluate on the way, log."""

import time
from typing import Any

import torch

from statewise.agents import parallel
from statewise.agents.recurrent_ppo import NonFiniteLossError, RecurrentPPO
from statewise.envs.protocol import VectorEnv
from statewise.training.collector import Collector
from statewise.training.config import TrainConfig, dump_config
from statewise.training.evaluate import Evaluate
from statewise.training.loop import Loop
from statewise.training.run import RunDirectory
from statewise.training.seeding import Seeds


class OnlineTraining(Loop):
    """One on-policy run, in a run directory or (`run` None) only in memory.

    Args:
        config: the run's settings.
        agent: learns.
        env: the environments.
        run: where it is written down.
        evaluate: plays the episodes of an evaluation; of several processes the first one does.
    """

    unit, quantity = "steps", "return"

    def __init__(
        self,
        config: TrainConfig,
        agent: RecurrentPPO,
        env: VectorEnv,
        run: RunDirectory | None,
        evaluate: Evaluate,
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
        self._evaluate = evaluate

    def begin(self) -> None:
        """Start the episodes; the environments of several processes are seeded one on."""
        # An agent that has learned before sees other episodes than it began with.
        seen = self.agent.steps_seen
        seed = Seeds(self.config.seed).integer(f"env-{seen}" if seen else "env")
        self.collector.start(seed + parallel.rank() * self.env.num_envs)

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
        """Collect one rollout, update on it, evaluate if it is time, log; return the metrics."""
        begin = time.perf_counter()
        rollout = self.collector.collect()
        collected = time.perf_counter()
        try:
            losses = self.agent.update(rollout.batch)
        except NonFiniteLossError:
            self.keep_batch(rollout.batch.step)
            raise
        done = time.perf_counter()
        counts = torch.tensor([rollout.num_steps, rollout.num_left_out, rollout.num_episodes])
        num_steps, num_left_out, num_episodes = parallel.total(counts).tolist()
        self.agent.steps_seen += num_left_out  # of the run, though nothing was learned from them
        before, self.steps = self.steps, self.steps + num_steps
        metrics = (
            self.collector.statistics
            | {f"train/{name}": value for name, value in losses.items()}
            | {
                "time/fps": num_steps / (done - begin),
                "time/total_timesteps": float(self.steps),
                "time/collect_share": (collected - begin) / (done - begin),
                "rollout/episodes": float(num_episodes),
            }
        )
        if self.is_due(self.config.eval.every_steps, before) and parallel.rank() == 0:
            metrics |= self._evaluate().logged()
        if self.logger is not None:
            self.logger.write(self.steps, metrics)
        return metrics
