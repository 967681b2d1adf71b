"""SAC or TD3 of Stable-Baselines3, stopped and resumed without a pickle.

Papers: Haarnoja et al. 2018, "Soft Actor-Critic"; Fujimoto et al. 2018, "Addressing Function
Approximation Error in Actor-Critic Methods".

Everything that the next step depends on is in `Trainer.state_dict`: weights and optimisers, the
replay buffer, counters, random streams, and the episode that is being played, which is played
again on resume. The resumed run then equals one that was never stopped, on the same machine with
the same number of threads.

Deviations:
    An environment that draws randomness from elsewhere than its `np_random` cannot be played
    again: the resumed run begins a new episode and marks the old one as cut off.
"""

import importlib.util
import random
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from statewise.training.make_data_recipes import MakeConfig
from statewise.training.make_data_rollout import Environment, Policy, Rows
from statewise.training.schema import ConfigError
from statewise.training.seeding import Seeds

_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_NOISE = 0.1  # of TD3, standard deviation, where the bounds of actions are -1 and 1


class ResumeWarning(UserWarning):
    """A resumed training is not the one that was stopped to the last bit."""


@contextmanager
def global_streams_kept() -> Generator[None, None, None]:
    """Give the global generators, which Stable-Baselines3 seeds and draws from, back after use."""
    python, numpy_state, torch_state = (
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002
        torch.get_rng_state(),
    )
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)


def check_installed() -> None:
    """Raise ConfigError unless Stable-Baselines3 is installed."""
    if importlib.util.find_spec("stable_baselines3") is None:
        raise ConfigError(
            "data make: expected the package stable-baselines3, got none:"
            " pip install 'statewise[sb3]'"
        )


def build_model(config: MakeConfig, env: Environment) -> Any:
    """Return the untrained model of Stable-Baselines3 on the CPU."""
    from stable_baselines3 import SAC, TD3
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import DummyVecEnv

    settings: dict[str, Any] = {
        "learning_rate": config.learning_rate,
        "buffer_size": config.steps,
        "learning_starts": config.learning_starts,
        "batch_size": config.batch_size,
        "tau": 0.005,
        "gamma": 0.99,
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": list(config.hidden)},
        "seed": Seeds(config.seed).integer("policy"),
        "device": "cpu",
    }
    vector = DummyVecEnv([lambda: env])
    if config.algorithm == "sac":
        return SAC("MlpPolicy", vector, ent_coef="auto", **settings)
    assert env.action_space.shape is not None
    width = env.action_space.shape[0]
    noise = NormalActionNoise(np.zeros(width), np.full(width, _NOISE))
    return TD3("MlpPolicy", vector, action_noise=noise, **settings)


class Trainer:
    """A model and its environment. Use inside `global_streams_kept`.

    Args:
        config: how to train.
        env: of `make_environment`; belongs to the trainer.
    """

    def __init__(self, config: MakeConfig, env: Environment) -> None:
        self.config, self.env = config, env
        self.model = build_model(config, env)

    @property
    def step(self) -> int:
        """Environment steps so far."""
        return int(self.model.num_timesteps)

    def train_to(self, step: int, on_step: Callable[[int], None]) -> None:
        """Train until `step`, calling `on_step` with the number of every step."""

        def report(local: dict[str, Any], _: dict[str, Any]) -> bool:
            on_step(int(local["self"].num_timesteps))
            return True

        self.model.learn(step - self.step, callback=report, reset_num_timesteps=False)

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the actor's weights."""
        return {key: value.clone() for key, value in self.model.actor.state_dict().items()}

    def explorer(self, weights: dict[str, Tensor], seed: int) -> Policy:
        """Return the policy with these weights as it explores: SAC samples, TD3 adds noise.

        Args:
            weights: of the actor, from `weights`; the model keeps them.
            seed: of its noise. That of SAC comes from torch's generator.
        """
        self.model.actor.load_state_dict(weights)
        if self.config.algorithm == "sac":
            torch.manual_seed(seed)
            return lambda obs: self._predict(obs, deterministic=False)
        generator, space = np.random.default_rng(seed), self.env.action_space
        assert isinstance(space, spaces.Box)

        def act(obs: Rows) -> Rows:
            actions = self._predict(obs, deterministic=True)
            noise = _NOISE * (space.high - space.low) / 2 * generator.standard_normal(actions.shape)
            return np.clip(actions + noise, space.low, space.high).astype(np.float32)

        return act

    def greedy(self, weights: dict[str, Tensor]) -> Policy:
        """Return the policy with these weights without exploration; the model keeps them."""
        self.model.actor.load_state_dict(weights)
        return lambda obs: self._predict(obs, deterministic=True)

    def _predict(self, obs: Rows, *, deterministic: bool) -> Rows:
        actions: Rows = self.model.predict(obs, deterministic=deterministic)[0]
        return actions

    def replay(self, step: int) -> dict[str, NDArray[Any]]:
        """Return the first `step` rows of the replay buffer, actions as the environment took them.

        Stable-Baselines3 keeps them scaled to [-1, 1].
        """
        buffer = self.model.replay_buffer
        rows = {name: getattr(buffer, name)[:step, 0] for name in _ARRAYS}
        rows["actions"] = self.model.policy.unscale_action(rows["actions"]).astype(np.float32)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        model, buffer = self.model, self.model.replay_buffer
        entropy = getattr(model, "log_ent_coef", None)
        return {
            "parameters": model.get_parameters(),
            "log_ent_coef": None if entropy is None else entropy.detach().clone(),
            "num_updates": model._n_updates,
            "num_episodes": model._episode_num,
            "step": self.step,
            "replay": {name: getattr(buffer, name)[: self.step] for name in _ARRAYS},
            "obs": model._last_obs,
            "episode": self.env.get_wrapper_attr("snapshot")(),
            "streams": {
                "numpy": _numpy_stream(),
                "torch": torch.get_rng_state(),
                "actions": model.action_space.np_random.bit_generator.state,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        model, step = self.model, int(state["step"])
        model.set_parameters(state["parameters"])
        if state["log_ent_coef"] is not None:
            model.log_ent_coef.data.copy_(state["log_ent_coef"])
        model._n_updates, model._episode_num = state["num_updates"], state["num_episodes"]
        model.num_timesteps = step
        buffer = model.replay_buffer
        for name in _ARRAYS:
            getattr(buffer, name)[:step] = state["replay"][name]
        buffer.pos, buffer.full = step % buffer.buffer_size, step >= buffer.buffer_size
        model._last_obs = self._replay_episode(state)
        streams = state["streams"]
        model.action_space.np_random.bit_generator.state = streams["actions"]
        torch.set_rng_state(streams["torch"])
        kind, *rest = streams["numpy"]
        np.random.set_state((kind, *rest))  # noqa: NPY002

    def _replay_episode(self, state: dict[str, Any]) -> NDArray[Any]:
        """Bring the environment to where it was; return its observation (1, O)."""
        self.env.set_wrapper_attr("pending_snapshot", state["episode"])
        obs: NDArray[Any] = self.env.reset()[0][None]
        if np.array_equal(obs, state["obs"]):
            return obs
        warnings.warn(
            f"{self.config.env_id}: playing the open episode again led elsewhere: a new one begins,"
            " and the result differs from that of a run that was not stopped",
            ResumeWarning,
            stacklevel=3,
        )
        buffer, last = self.model.replay_buffer, int(state["step"]) - 1
        if not buffer.dones[last, 0]:
            buffer.dones[last] = buffer.timeouts[last] = 1
        return self.env.reset()[0][None]


def _numpy_stream() -> list[Any]:
    """Return the state of numpy's global generator as a list of plain values and an array."""
    return list(np.random.get_state())  # noqa: NPY002
