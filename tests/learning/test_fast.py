"""Learning in seconds: a bit remembered for ten steps, and a continuous target hit in one."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from statewise.agents.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig
from statewise.envs.build import EnvConfig, make_env
from statewise.envs.protocol import Arrived, Bools, Obs, VectorEnv
from statewise.nets.encoder import EncoderConfig
from statewise.ssm.build import SequenceConfig
from statewise.training.collector import Collector
from statewise.training.config import load_preset
from statewise.training.evaluate import evaluate


class Changed:
    """A `VectorEnv` whose rows another hand changes before the agent sees them."""

    def __init__(self, env: VectorEnv, change: Callable[[Obs, Bools], tuple[Obs, Bools]]) -> None:
        self._env, self._change = env, change
        self.num_envs, self.obs_space = env.num_envs, env.obs_space
        self.action_space, self.resume = env.action_space, env.resume

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        obs, is_first = self._env.reset(seed)
        return self._change(obs, is_first)[0], is_first

    def step(self, action: Any) -> Arrived:
        arrived = self._env.step(action)
        obs, reset = self._change(arrived.obs, arrived.reset)
        return arrived._replace(obs=obs, reset=reset)

    def state_dict(self) -> dict[str, Any]:
        return self._env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        return self._env.load_state_dict(state)

    def close(self) -> None:
        self._env.close()


def forgetting(obs: Obs, reset: Bools) -> tuple[Obs, Bools]:
    """Clear the memory before every observation."""
    return obs, np.ones_like(reset)


def blind(obs: Obs, reset: Bools) -> tuple[Obs, Bools]:
    """Hide the bit: its entry of the observation is always 0."""
    seen = obs["obs"].copy()
    seen[:, 2:] = 0
    return {"obs": seen}, reset


def remember(steps: int, change: Callable[[Obs, Bools], tuple[Obs, Bools]] | None = None) -> float:
    """Train the memory-chain preset on length 10; return the mean of the last five rollouts."""
    config = load_preset(
        "ppo/memory_chain",
        ["--env.kwargs.length", "10", "--rollout-steps", "44", "--total-steps", str(steps)],
    )
    assert config.env.inputs == ()  # the previous action could serve as a memory
    env: VectorEnv = make_env(config.env)
    if change is not None:
        env = Changed(env, change)
    agent = RecurrentPPO(
        config.agent, env.obs_space, env.action_space, total_steps=config.total_steps, seed=1
    )
    collector = Collector(env, agent, config.rollout_steps)
    collector.start(1)
    returns: list[float] = []
    while agent.steps_seen < config.total_steps:
        rollout = collector.collect()
        agent.update(rollout.batch)
        returns.append(float(rollout.batch.step.reward.sum()) / rollout.num_episodes)
    env.close()
    return float(np.mean(returns[-5:]))


def test_s5_remembers_a_bit_for_ten_steps() -> None:
    assert remember(26_000) >= 0.9


@pytest.mark.parametrize("change", [forgetting, blind], ids=["forgetting", "blind"])
def test_without_memory_or_without_the_bit_there_is_nothing_to_learn(
    change: Callable[[Obs, Bools], tuple[Obs, Bools]],
) -> None:
    assert abs(remember(8_000, change)) <= 0.3


class Target(gymnasium.Env[Any, Any]):
    """One step: the action is to equal what is shown. Reward minus the squared distance."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,))
        self.action_space = spaces.Box(-2, 2, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._target = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self._target, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._target, -float(np.square(action - self._target).sum()), True, False, {}


def test_a_continuous_policy_hits_a_target_it_is_shown() -> None:
    # one step per episode: NEXT_STEP would spend every other row on a final observation
    env = make_env(EnvConfig(id="target", num_envs=16, autoreset="same_step"), Target)
    config = RecurrentPPOConfig(
        learning_rate=3e-3,
        num_epochs=8,
        encoder=EncoderConfig(hidden=(32,)),
        sequence=SequenceConfig(num_layers=1, d_model=16),
        head_hidden=(32,),
    )
    agent = RecurrentPPO(config, env.obs_space, env.action_space, total_steps=8_000, seed=0)
    before = evaluate(agent, env, episodes=64, seed=9, explore=False).return_mean
    assert before < -0.4  # the distance of a uniform target to 0: -2/3 on average
    collector = Collector(env, agent, 32)
    collector.start(0)
    while agent.steps_seen < agent.total_steps:
        agent.update(collector.collect().batch)
    after = evaluate(agent, env, episodes=64, seed=9, explore=False).return_mean
    env.close()
    assert after > -0.03
