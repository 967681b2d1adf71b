"""On-policy collection: rows of `data.Step`, the memory they began with, the values they lead to.

Rows are what the environments gave, invalid ones included: under NEXT_STEP the row of a final
observation gives V(final observation) with the memory it had, at no cost. A SAME_STEP backend
hands final observations aside; one extra memory step values those of truncated episodes. In
trials whose value runs on over their episodes, such a row is no step: what follows the last step
of an episode is the first observation of the next one. Where a rollout ends between the two, that
is not yet known, and its last row is left out: the row before bootstraps from it.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statewise.agents.protocol import Agent
from statewise.data.step import Batch, Step
from statewise.envs.protocol import Arrived, Bools, Obs, VectorEnv
from statewise.ssm.protocol import State
from statewise.training.distributed import joint_statistics
from statewise.training.stepper import Stepper, to_tensors


class Rollout(NamedTuple):
    """One batch and what was counted while it was collected."""

    batch: Batch
    num_steps: int
    """Valid rows, with those that are left out."""
    num_left_out: int
    """Valid rows that the batch has as not valid, since it is not known what follows them."""
    num_episodes: int
    """Episodes that ended in it."""


def _stands_between(arrived: Arrived) -> Bools:
    """Return (N,) where a trial stands between two episodes over which its value runs on."""
    if arrived.trial is None:
        return np.zeros_like(arrived.valid)
    runs_on = arrived.trial.ended & ~(arrived.terminated | arrived.truncated)
    return runs_on & ~arrived.is_first


class Collector:
    """Steps the environments with an agent and keeps what goes on from rollout to rollout.

    Args:
        env: the environments.
        agent: chooses the actions; its extras must hold `value`.
        rollout_steps: rows per environment and rollout.
        device: where the agent lives.
    """

    def __init__(self, env: VectorEnv, agent: Agent, rollout_steps: int, device: str = "cpu"):
        self._agent, self._num_rows = agent, rollout_steps
        self._stepper = Stepper(env, agent, device)
        self._device = self._stepper.device

    def start(self, seed: int) -> None:
        """Begin episodes in all environments."""
        self._stepper.start(seed)

    @property
    def statistics(self) -> dict[str, float]:
        """Mean return and length of the last episodes; empty before the first one ended.

        Of several processes, which all have to ask, the first one gets those of all.
        """
        return joint_statistics(self._stepper.windows)

    def collect(self) -> Rollout:
        """Collect `rollout_steps` rows from every environment."""
        now = self._stepper
        # Normal tensors: what `act` returns is for inference only.
        begin = {key: value.clone() for key, value in now.state.items()}
        rows: list[tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]] = []
        arrivals: list[Arrived] = []
        flags: list[tuple[Bools, Bools]] = []
        finals: list[tuple[int, Tensor, Tensor]] = []
        num_episodes = 0
        for t in range(self._num_rows):
            obs = to_tensors(now.obs, self._device)
            flags.append((now.is_first, now.reset))
            action, extras, after = now.act(obs)
            arrived = now.env.step(action.cpu().numpy())
            if arrived.final_obs is not None and arrived.truncated.any():
                value = self._value(arrived.final_obs, after, np.zeros_like(now.reset))
                finals.append((t, torch.from_numpy(arrived.truncated), value))
            rows.append((obs, action, extras))
            arrivals.append(arrived)
            num_episodes += now.arrive(arrived, after)
        last = self._value(now.obs, now.state, now.reset)
        batch = self._stack(begin, rows, flags, arrivals, last, finals)
        num_steps = sum(int(a.valid.sum()) for a in arrivals)
        left_out = num_steps - int(batch.step.valid.sum())
        return Rollout(batch, num_steps, left_out, num_episodes)

    def _value(self, obs: Obs, state: State, reset: Bools) -> Tensor:
        """Value observations with a memory, which stays as it is."""
        flag = self._stepper.on_device(reset)
        _, extras, _ = self._agent.act(
            to_tensors(obs, self._device), state, flag, flag, explore=False
        )
        return extras["value"]

    def _stack(
        self,
        begin: State,
        rows: list[tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]],
        flags: list[tuple[Bools, Bools]],
        arrivals: list[Arrived],
        after: Tensor,
        finals: list[tuple[int, Tensor, Tensor]],
    ) -> Batch:
        def over_time(arrays: list[NDArray[Any]]) -> Tensor:
            return self._stepper.on_device(np.stack(arrays, 1))

        step = Step(
            obs={key: torch.stack([o[key] for o, _, _ in rows], 1) for key in rows[0][0]},
            is_first=over_time([first for first, _ in flags]),
            reset=over_time([reset for _, reset in flags]),
            action=torch.stack([action for _, action, _ in rows], 1),
            reward=over_time([a.reward for a in arrivals]),
            terminated=over_time([a.terminated for a in arrivals]),
            truncated=over_time([a.truncated for a in arrivals]),
            valid=over_time([a.valid for a in arrivals]),
        )
        extras = {key: torch.stack([e[key] for _, _, e in rows], 1) for key in rows[0][2]}
        between = self._stepper.on_device(_stands_between(arrivals[-1]))
        after = torch.where(between, extras["value"][:, -1], after)
        step.valid[:, -1] &= ~between
        value_tp1 = torch.cat((extras["value"][:, 1:], after[:, None]), 1)
        for t, truncated, value in finals:
            value_tp1[:, t] = torch.where(truncated.to(self._device), value, value_tp1[:, t])
        goes_on = ~(step.terminated | step.truncated)[:, :-1] & ~step.valid[:, 1:]
        value_tp1[:, :-1] = torch.where(goes_on, value_tp1[:, 1:], value_tp1[:, :-1])
        return Batch(step, begin, extras, value_tp1)

    def state_dict(self) -> dict[str, Any]:
        """Return what collection needs to go on exactly where it is."""
        return self._stepper.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, or from new episodes (`env.resume`)."""
        self._stepper.load_state_dict(state)
