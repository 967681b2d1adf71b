"""The loop of agents that learn from a replay: step, store, replay, update.

    until `windows.prefill`   step and store; the agent explores at random
    then                      step; as many updates as the train ratio says are due

Rows are stored as they come, final observations included; windows cross the ends of episodes.
"""

import time
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.protocol import ReplayAgent
from statewise.agents.recurrent_ppo import NonFiniteLossError
from statewise.data.episode import ArraySpec
from statewise.data.replay import Replay
from statewise.data.replay_config import ReplayBatch
from statewise.data.replay_ratio import TrainRatio
from statewise.data.replay_spec import RowSpec
from statewise.data.replay_storage import check_files_are_there
from statewise.data.step import Step
from statewise.envs.protocol import Arrived, VectorEnv
from statewise.ssm.protocol import State
from statewise.training.config import dump_config
from statewise.training.evaluate import Evaluate
from statewise.training.loop import Loop
from statewise.training.replay_config import ReplayTrainConfig
from statewise.training.run import RunDirectory
from statewise.training.schema import ConfigError
from statewise.training.seeding import Seeds
from statewise.training.stepper import Stepper, to_tensors
from statewise.training.world_config import WorldWindowConfig


def row_spec(obs_space: spaces.Dict, action_space: spaces.Space[Any], state: State) -> RowSpec:
    """Return what is stored of a step.

    Args:
        obs_space: flat, of one environment.
        action_space: of one environment.
        state: of one row, (1, ...), what is stored of the memory before it; {} for nothing.
    """

    def of(space: spaces.Space[Any]) -> ArraySpec:
        return ArraySpec(tuple(space.shape or ()), str(space.dtype))

    return RowSpec(
        obs={key: of(space) for key, space in obs_space.spaces.items()},
        action=of(action_space),
        state={
            key: ArraySpec(tuple(x.shape[1:]), str(x.dtype).removeprefix("torch."))
            for key, x in state.items()
        },
    )


def make_replay(
    config: ReplayTrainConfig, spec: RowSpec, num_envs: int, run: RunDirectory | None
) -> Replay:
    """Return the replay of a run, in memory or in files below it.

    Files have room for all rows between two checkpoints: a run that is killed between them finds
    again what the checkpoint had. Every step is a row of its environment, and so is, at most as
    often, a final observation; a checkpoint may come later than due by one step of all.

    Raises:
        ConfigError: files without a run.
        DatasetCorrupt: the run has checkpoints, and its files are gone or damaged.
    """
    if config.replay.storage == "memory":
        return Replay(spec, config.replay, num_workers=num_envs)
    if run is None:
        raise ConfigError(
            "replay.storage: expected memory without a run directory, got memmap: train with"
            " `statewise train`, or set replay.storage memory"
        )
    folder = run.path / "replay"
    if run.checkpoints_dir.exists():
        check_files_are_there(folder)
    between = min(config.checkpoint.every_steps, config.end)
    spare = 2 * (between // num_envs + 2)
    return Replay(spec, config.replay, num_workers=num_envs, folder=folder, spare=spare)


class ReplayCollector:
    """Steps environments with an agent and stores the rows.

    Args:
        env: the environments.
        agent: chooses the actions.
        replay: receives the rows, one stream per environment.
        device: where the agent lives.
    """

    def __init__(self, env: VectorEnv, agent: ReplayAgent, replay: Replay, device: torch.device):
        self._agent, self._replay = agent, replay
        self._stepper = Stepper(env, agent, device)

    def start(self, seed: int) -> None:
        """Begin episodes in all environments."""
        self._stepper.start(seed)

    @property
    def statistics(self) -> dict[str, float]:
        """Mean return and length of the last episodes; empty before the first one ended."""
        return self._stepper.statistics

    def step(self) -> int:
        """Act once in all environments; return the valid rows."""
        now = self._stepper
        action, _, after = now.act(to_tensors(now.obs, now.device))
        action = action.cpu()
        arrived = now.env.step(action.numpy())
        self._replay.append(self._row(action, arrived), self._memory(now.state))
        self._append_final(arrived, action, after)
        now.arrive(arrived, after)
        return int(arrived.valid.sum())

    def _memory(self, state: State) -> dict[str, Tensor] | None:
        """Return what is stored of a memory; None where nothing is."""
        if not self._replay.spec.state:
            return None
        return {key: x.cpu() for key, x in self._agent.stored_state(state).items()}

    def _row(self, action: Tensor, arrived: Arrived) -> Step:
        now = self._stepper
        return Step(
            obs={key: torch.from_numpy(value) for key, value in now.obs.items()},
            is_first=torch.from_numpy(now.is_first),
            reset=torch.from_numpy(now.reset),
            action=action,
            reward=torch.from_numpy(arrived.reward),
            terminated=torch.from_numpy(arrived.terminated),
            truncated=torch.from_numpy(arrived.truncated),
            valid=torch.from_numpy(arrived.valid),
        )

    def _append_final(self, arrived: Arrived, action: Tensor, after: State) -> None:
        """Add the rows of final observations that a backend hands aside."""
        if arrived.final_obs is None:
            return
        ended = (arrived.terminated | arrived.truncated).nonzero()[0]
        flags = torch.zeros(len(ended), dtype=torch.bool)
        row = Step(
            obs={key: torch.from_numpy(x[ended]) for key, x in arrived.final_obs.items()},
            is_first=flags,
            reset=flags,
            action=torch.zeros_like(action[ended]),
            reward=torch.zeros(len(ended)),
            terminated=flags,
            truncated=flags,
            valid=flags,
        )
        stored = self._memory({key: x[ended] for key, x in after.items()})
        self._replay.append(row, stored, workers=ended.tolist())

    def state_dict(self) -> dict[str, Any]:
        """Return what collection needs to go on exactly where it is."""
        return self._stepper.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, or from new episodes (`env.resume`)."""
        self._stepper.load_state_dict(state)


class ReplayTraining(Loop):
    """One run of an agent with a replay, in a run directory or (`run` None) only in memory.

    Args:
        config: the run's settings.
        agent: learns.
        env: the environments.
        run: where it is written down.
        evaluate: plays the episodes of an evaluation.
    """

    unit, quantity = "steps", "return"

    def __init__(
        self,
        config: ReplayTrainConfig,
        agent: ReplayAgent,
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
        state = agent.initial_state(1) if config.replay.replay_state == "stored" else {}
        spec = row_spec(env.obs_space, env.action_space, agent.stored_state(state))
        self.replay = make_replay(config, spec, env.num_envs, run)
        self.collector = ReplayCollector(env, agent, self.replay, agent.device)
        self.ratio = TrainRatio(config.windows.train_ratio, config.windows.rows)
        seen = agent.steps_seen
        # An agent that has learned before sees other episodes, and draws other windows.
        self._suffix = f"-{seen}" if seen else ""
        self.generator = Seeds(config.seed).generator(f"replay{self._suffix}")
        self._evaluate = evaluate
        self._sums: dict[str, float] = {}
        self._count = 0
        self._seconds = {"collect": 0.0, "update": 0.0}
        self._steps_logged = 0

    def begin(self) -> None:
        """Start the episodes."""
        self.collector.start(Seeds(self.config.seed).integer(f"env{self._suffix}"))

    def shown(self, metrics: dict[str, float]) -> float | None:
        """Return the mean return of the latest episodes."""
        return metrics.get("rollout/ep_rew_mean")

    def sample(self) -> tuple[ReplayBatch, ...]:
        """Draw the windows of an update, and those that imagination starts after if asked."""
        windows, replay = self.config.windows, self.replay
        batch = replay.sample(windows.batch_size, windows.length, self.generator)
        if not isinstance(windows, WorldWindowConfig) or not windows.context:
            return (batch,)
        return batch, replay.sample(
            windows.num_contexts, windows.context, self.generator, purpose="imagination"
        )

    def iterate(self) -> dict[str, float]:
        """Step all environments once, and make the updates that are due; return metrics."""
        begin = time.perf_counter()
        num_steps = self.collector.step()
        before, self.steps = self.steps, self.steps + num_steps
        self.agent.steps_seen += num_steps
        self._seconds["collect"] += time.perf_counter() - begin
        if self.steps >= self.config.windows.prefill:
            for _ in range(self.ratio.due(num_steps)):
                self._update()
        is_evaluated = self.is_due(self.config.eval.every_steps, before)
        metrics = self.collector.statistics
        if self._count >= self.config.log_every or self.steps >= self.end or is_evaluated:
            metrics = metrics | self._metrics()
            if is_evaluated:
                metrics |= self._evaluate().logged()
            if self.logger is not None:
                self.logger.write(self.steps, metrics)
        return metrics

    def _update(self) -> None:
        begin = time.perf_counter()
        windows = self.sample()
        try:
            losses = self.agent.update(*windows)
        except NonFiniteLossError:
            self.keep_batch(windows[0].step)
            raise
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._seconds["update"] += time.perf_counter() - begin

    def _metrics(self) -> dict[str, float]:
        """Return means since the line before, and begin anew."""
        metrics = {name: total / self._count for name, total in self._sums.items()}
        seconds = sum(self._seconds.values())
        metrics |= {
            "time/total_timesteps": float(self.steps),
            "time/updates": float(self.agent.updates_done),
            "replay/rows": float(len(self.replay)),
        }
        if seconds > 0:
            metrics["time/fps"] = (self.steps - self._steps_logged) / seconds
        if self._count:
            metrics["time/updates_per_s"] = self._count / max(self._seconds["update"], 1e-9)
        self._sums, self._count = {}, 0
        self._seconds = {"collect": 0.0, "update": 0.0}
        self._steps_logged = self.steps
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return agent, environments, replay, and what counts them."""
        return {
            "agent": self.agent.state_dict(),
            "collector": self.collector.state_dict(),
            "replay": self.replay.state_dict(),
            "ratio": self.ratio.state_dict(),
            "generator": self.generator.bit_generator.state,
            "sums": self._sums,
            "count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything but the agent."""
        self.collector.load_state_dict(state["collector"])
        self.replay.load_state_dict(state["replay"])
        if self.env.resume == "episode":
            self.replay.break_off()
        self.ratio.load_state_dict(state["ratio"])
        self.generator.bit_generator.state = state["generator"]
        self._sums, self._count = state["sums"], state["count"]
        self._steps_logged = self.steps
