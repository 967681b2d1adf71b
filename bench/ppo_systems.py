"""The systems of `bench ppo` that train: this project and sb3-contrib's RecurrentPPO.

Both run whole iterations, collection and update, on the same environments with the same
numbers of epochs and minibatches; the parts are timed from outside.
"""

import time
from collections.abc import Callable
from typing import Any

import gymnasium
from torch import nn

from statewise.bench.process import Answer, Job
from statewise.training.api import TrainedAgent
from statewise.training.collector import Collector
from statewise.training.config import TrainConfig, apply_overrides, load_preset
from statewise.training.seeding import Seeds


class Clock:
    """Wall and CPU seconds of the phases of each iteration."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {"collect": [], "update": []}
        self.cpu: dict[str, list[float]] = {"collect": [], "update": []}

    def timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call` with its times added to `phase`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            result = call(*args, **kwargs)
            self.wall[phase].append(time.perf_counter() - wall)
            self.cpu[phase].append(time.process_time() - cpu)
            return result

        return run


def count_parameters(module: nn.Module) -> int:
    """Return the number of trained numbers."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _run_statewise(job: Job, clock: Clock) -> tuple[list[int], int]:
    config = apply_overrides(load_preset(job["preset"]), job["overrides"])
    assert isinstance(config, TrainConfig), job["preset"]
    trained = TrainedAgent(config, preset=job["preset"])
    env = trained.make_vector_env(config.env.num_envs)
    try:
        collector = Collector(env, trained.agent, config.rollout_steps)
        collector.start(Seeds(config.seed).integer("env"))
        collect = clock.timed("collect", collector.collect)
        update = clock.timed("update", trained.agent.update)
        steps = []
        for _ in range(job["iterations"]):
            rollout = collect()
            update(rollout.batch)
            steps.append(rollout.num_steps)
    finally:
        env.close()
    return steps, count_parameters(trained.agent.network)


def _run_recurrent_ppo(job: Job, clock: Clock) -> tuple[list[int], int]:
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    num_envs, rollout = job["num_envs"], job["rollout"]
    env = DummyVecEnv([lambda: gymnasium.make(job["env"])] * num_envs)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        n_steps=rollout,
        batch_size=num_envs * rollout // job["minibatches"],
        n_epochs=job["epochs"],
        device="cpu",
        seed=0,
    )
    model.collect_rollouts = clock.timed("collect", model.collect_rollouts)  # type: ignore[method-assign]
    model.train = clock.timed("update", model.train)  # type: ignore[method-assign]
    per_iteration = num_envs * rollout
    model.learn(total_timesteps=per_iteration * job["iterations"])
    env.close()
    return [per_iteration] * job["iterations"], count_parameters(model.policy)


SYSTEMS: dict[str, Callable[[Job, Clock], tuple[list[int], int]]] = {
    "statewise": _run_statewise,
    "sb3-contrib RecurrentPPO": _run_recurrent_ppo,
}


def run_job(job: Job) -> Answer:
    """Train one system for some iterations.

    Args:
        job: system, iterations; for this project preset and overrides; for RecurrentPPO env,
            num_envs, rollout, epochs, minibatches.

    Returns:
        {"steps", "wall", "cpu", "parameters"}: environment steps of each iteration; seconds
        of each iteration, by phase.
    """
    clock = Clock()
    steps, parameters = SYSTEMS[job["system"]](job, clock)
    return {"steps": steps, "wall": clock.wall, "cpu": clock.cpu, "parameters": parameters}
