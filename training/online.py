"""The on-policy loop: collect, update, log, checkpoint; stop and go on without losing anything."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors.torch import save_file

from statewise.agents.recurrent_ppo import NonFiniteLossError, RecurrentPPO
from statewise.data.step import Batch
from statewise.envs.protocol import VectorEnv
from statewise.training.checkpoint import save_checkpoint
from statewise.training.collector import Collector
from statewise.training.config import TrainConfig, dump_config
from statewise.training.log import MetricLogger
from statewise.training.progress import Progress
from statewise.training.run import RunDirectory
from statewise.training.seeding import Seeds


class Stopped(KeyboardInterrupt):
    """Training was interrupted and has saved a checkpoint."""


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that it never hits a half-done update."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


class OnlineTraining:
    """One on-policy run, in a run directory or (`run` None) only in memory."""

    def __init__(
        self, config: TrainConfig, agent: RecurrentPPO, env: VectorEnv, run: RunDirectory | None
    ):
        self.config, self.agent, self.env, self.run = config, agent, env, run
        self.collector = Collector(env, agent, config.rollout_steps, config.device)
        self.steps = 0
        self.logger: MetricLogger | None = None

    def start(self) -> None:
        """Begin a new run, with a checkpoint so that it can be resumed at any moment."""
        if self.run is not None:
            self.logger = MetricLogger(self.run)
        # An agent that has learned before sees other episodes than it began with.
        seen = self.agent.steps_seen
        self.collector.start(Seeds(self.config.seed).integer(f"env-{seen}" if seen else "env"))
        self.save()

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, with the agent that was restored from it."""
        assert self.run is not None
        self.collector.load_state_dict(state["collector"])
        self.steps = state["steps"]
        self.logger = MetricLogger.resume(self.run, state["logger"])

    def save(self) -> None:
        """Write a checkpoint."""
        if self.run is None or self.logger is None:
            return
        state = {
            "agent": self.agent.state_dict(),
            "collector": self.collector.state_dict(),
            "logger": self.logger.state_dict(),
            "steps": self.steps,
        }
        save_checkpoint(
            self.run.checkpoints_dir,
            self.steps,
            state,
            dump_config(self.config),
            self.config.checkpoint.keep,
        )

    def train(self, progress: Progress) -> None:
        """Run to `total_steps` valid steps.

        Raises:
            Stopped: Ctrl-C; a checkpoint was saved.
            NonFiniteLossError: the batch is in `bad_batch.safetensors` of the run.
        """
        end = self.config.total_steps
        every = self.config.checkpoint.every_steps
        with _interruptible() as interrupted:
            while self.steps < end and not interrupted.is_set():
                before = self.steps
                metrics = self.iterate()
                progress.update(self.steps, metrics.get("rollout/ep_rew_mean"))
                if self.steps // every > before // every and self.steps < end:
                    self.save()
            self.save()
        if interrupted.is_set() and self.steps < end:
            raise Stopped(self._how_to_go_on())

    def close(self) -> None:
        """Close the log; a second call does nothing."""
        if self.logger is not None:
            self.logger.close()

    def _how_to_go_on(self) -> str:
        where = "" if self.run is None else f", saved: statewise train --resume {self.run.path}"
        return f"stopped at {self.steps} steps{where}"

    def iterate(self) -> dict[str, float]:
        """Collect one rollout, update on it, log; return the metrics."""
        begin = time.perf_counter()
        rollout = self.collector.collect()
        collected = time.perf_counter()
        try:
            losses = self.agent.update(rollout.batch)
        except NonFiniteLossError:
            self._keep_batch(rollout.batch)
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

    def _keep_batch(self, batch: Batch) -> None:
        if self.run is None:
            return
        step = batch.step._asdict()
        obs = {f"obs.{key}": x.contiguous() for key, x in step.pop("obs").items()}
        arrays = {key: x.contiguous() for key, x in step.items()}
        save_file(obs | arrays, self.run.path / "bad_batch.safetensors")
