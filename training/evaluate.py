"""Evaluation: a fixed number of complete episodes, their returns and an interval."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from statewise.agents.protocol import Agent
from statewise.envs.protocol import VectorEnv
from statewise.training.collector import to_tensors
from statewise.training.run import RunDirectory, write_json
from statewise.training.statistics import mean_interval


class EvalResult(NamedTuple):
    """What an evaluation gave."""

    return_mean: float
    return_ci95: tuple[float, float]
    episodes: list[dict[str, Any]]
    """Per episode: return, length, seed of its environment, index within that environment."""


def evaluate(
    agent: Agent, env: VectorEnv, *, episodes: int, seed: int, explore: bool, device: str = "cpu"
) -> EvalResult:
    """Play `episodes` complete episodes from fresh memory.

    Environment i starts with seed + i and plays (episodes + i) // num_envs of them, so that
    short episodes are not preferred; these are the episodes that Stable-Baselines3's
    `evaluate_policy` plays after `env.seed(seed)`.

    Args:
        agent: the policy.
        env: at most `episodes` environments.
        episodes: at least 1.
        seed: of the environments.
        explore: sample the actions, or take the mode.
        device: where the agent lives.
    """
    place = torch.device(device)
    wanted = (episodes + np.arange(env.num_envs)) // env.num_envs
    played = np.zeros(env.num_envs, np.int64)
    total = np.zeros(env.num_envs)
    length = np.zeros(env.num_envs, np.int64)
    rows: list[dict[str, Any]] = []
    obs, is_first = env.reset(seed)
    reset = is_first
    state = agent.initial_state(env.num_envs)
    while (played < wanted).any():
        action, _, state = agent.act(
            to_tensors(obs, place),
            state,
            torch.from_numpy(is_first).to(place),
            torch.from_numpy(reset).to(place),
            explore=explore,
        )
        arrived = env.step(action.cpu().numpy())
        obs, is_first, reset = arrived.obs, arrived.is_first, arrived.reset
        total += arrived.reward
        length += arrived.valid
        for i in (arrived.terminated | arrived.truncated).nonzero()[0]:
            if played[i] < wanted[i]:
                rows.append(
                    {
                        "return": float(total[i]),
                        "length": int(length[i]),
                        "seed": seed + int(i),
                        "index": int(played[i]),
                    }
                )
            played[i] += 1
            total[i], length[i] = 0, 0
    rows.sort(key=lambda row: (row["seed"], row["index"]))
    mean, low, high = mean_interval([row["return"] for row in rows])
    return EvalResult(mean, (low, high), rows)


def evaluate_run(
    path: Path,
    *,
    episodes: int | None = None,
    num_envs: int | None = None,
    seed: int | None = None,
    actions: str | None = None,
    checkpoint: int | None = None,
) -> EvalResult:
    """Evaluate a run's agent and write `eval.json`; None takes the run's own setting.

    Raises:
        CheckpointError: the checkpoint does not exist or cannot be read.
        EnvError: the environment cannot be made.
    """
    from statewise.training.api import load

    trained = load(path, checkpoint=checkpoint)
    config = trained.config
    episodes = config.eval.episodes if episodes is None else episodes
    actions = config.eval.actions if actions is None else actions
    num_envs = min(config.eval.num_envs if num_envs is None else num_envs, episodes)
    env = trained.make_eval_env(num_envs)
    try:
        result = evaluate(
            trained.agent,
            env,
            episodes=episodes,
            seed=trained.eval_seed if seed is None else seed,
            explore=actions == "sample",
            device=config.device,
        )
    finally:
        env.close()
    report = {
        "env": config.env.id,
        "preset": trained.preset,
        "step": trained.step,
        "actions": actions,
        **result._asdict(),
    }
    write_json(RunDirectory.open(path).eval_path, report)
    return result
