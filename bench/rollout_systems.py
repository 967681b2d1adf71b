"""The systems of `bench rollout`, each timed in a process of its own.

Before S5 is timed its values and probabilities, found step by step, are compared with those of
one pass over the rollout, which starts from the stored memory and honours its resets.
"""

from typing import Any

import torch
from torch import Tensor, nn

from statewise.agents.recurrent_ppo import RecurrentPPO
from statewise.bench.envs_systems import NUM_DRAWN, draw_actions
from statewise.bench.measure import time_calls
from statewise.bench.process import Answer, Job
from statewise.bench.rollout import ALONE, WITHOUT
from statewise.envs.build import find_family
from statewise.envs.envpool import PREFIX
from statewise.envs.protocol import VectorEnv
from statewise.ssm.protocol import State
from statewise.training.api import TrainedAgent
from statewise.training.collector import Collector, Rollout
from statewise.training.config import TrainConfig, apply_overrides, load_preset

PRESET = "ppo/cartpole"
LIMIT = 1e-4  # of the largest value, float32


class NoMemory(nn.Module):
    """Stands where the memory was: features pass through, in both modes."""

    def initial_state(self, batch_size: int) -> State:
        """Return a state of nothing."""
        return {}

    def forward(self, x: Tensor, state: State, reset: Tensor) -> tuple[Tensor, State]:
        """Return the features (B, T, D)."""
        return x, {}

    def prepare_step(self) -> None:
        """Prepare nothing."""

    def step(self, x: Tensor, state: State, reset: Tensor, **_: Any) -> tuple[Tensor, State]:
        """Return the features (B, D)."""
        return x, {}


def make(job: Job) -> tuple[RecurrentPPO, VectorEnv]:
    """Return the agent of a system and its environments."""
    overrides: dict[str, Any] = {
        "env.id": job["env"],
        "env.num_envs": job["num_envs"],
        "env.vectorization": "auto",
        "agent.num_minibatches": 1,
        "num_threads": job["threads"],
    }
    if job["env"].startswith(PREFIX):
        threads = min(job["num_envs"], job["threads"])
        overrides["env.kwargs"] = {"num_threads": threads}
    config = apply_overrides(load_preset(PRESET), overrides)
    assert isinstance(config, TrainConfig), PRESET
    trained = TrainedAgent(config, preset=PRESET)
    agent = trained.agent
    assert isinstance(agent, RecurrentPPO), PRESET
    if job["system"] == WITHOUT:
        network: Any = agent.network
        network.sequence = NoMemory()
    return agent, trained.make_vector_env(job["num_envs"])


def refusal(agent: RecurrentPPO, rollout: Rollout) -> str:
    """Return how acting and one pass over the rollout differ; "" where they agree."""
    step = rollout.batch.step
    with torch.no_grad():
        policy, value, _ = agent.network(step.obs, rollout.batch.state, step.reset)
    pairs = {"value": value, "log_prob": policy.log_prob(step.action)}
    for name, passed in pairs.items():
        acted = rollout.batch.extras[name]
        error = float((acted - passed).abs().max() / passed.abs().max())
        if not error <= LIMIT:  # NaN is refused too
            return f"{name} is {error:.2g} off one pass over the rollout, at most {LIMIT:.2g}"
    return ""


def run_job(job: Job) -> Answer:
    """Check and time one system.

    Args:
        job: system, env, num_envs, rows, check, threads, reps, seconds.

    Returns:
        {"missing": text} where a package is not installed, {"refused": text} for a wrong result;
        else also "timing": [wall, cpu], seconds of one rollout, and "parameters".
    """
    if line := find_family(job["env"]).missing():
        return {"missing": line}
    agent, env = make(job)
    if job["system"] == ALONE:
        actions = draw_actions(env.action_space, env.num_envs)
        env.reset(0)

        def call() -> None:
            for t in range(job["rows"]):
                env.step(actions[t % NUM_DRAWN])

        call()  # not counted: JAX compiles
    else:
        collector = Collector(env, agent, job["rows"])
        collector.start(0)
        collector.collect()
        if job["check"] and (refused := refusal(agent, collector.collect())):
            return {"refused": refused}

        def call() -> None:
            collector.collect()

    timing = time_calls(call, reps=job["reps"], seconds=job["seconds"])
    env.close()
    parameters = sum(p.numel() for p in agent.network.parameters())
    return {"refused": "", "timing": timing, "parameters": parameters}
