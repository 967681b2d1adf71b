"""Decision S4, on-policy stage: an actor-critic on single steps with stored hidden states.

Paper: Bar David et al. 2023, "Decision S4: Efficient Sequence-Based RL via State Spaces Layers"
(section 3.3). The actor X is the policy of the first stage, run step by step; C is a small network
that sees no memory; X' and C' are slow copies of both. With rows of `hidden_replay.py`

    b_{t+1}  = X'(s_{t+1}, a_t, R_{t+1}, h_{t+1})
    y_t      = r_t + gamma (1 - terminated_t) C'(s_{t+1}, b_{t+1}, R_{t+1})
    critic     mean (C(s_t, a_t, R_t) - y_t)^2
    actor    - mean C(s_t, X(s_t, a_{t-1}, R_t, h_t), R_t)         h_t a constant: one step

where R is divided by the agent's `return_scale` and r by `reward_scale`. A time limit does not end
the value. At first the critic learns alone, from an actor that stays as it is. A, B and dt of the
layers stay as they are throughout, for they govern the stored states.

The critic ("cat_exp_rtg"), with x = [s, a, R] and W the factor `critic_width`:

    z = gelu(linear(x)) + [x, x, ...] (W times)
    z = gelu(z + linear(gelu(linear(z))))             2 W and W times the width of x
    C = linear(z)

"cat_exp" has no R and no [x, x, ...]. R is what was got from t on, so that with it gamma = 1
makes C = R a fixed point whatever the action: the advice of the critic then fades.

Deviations, off by default: `critic_only_noise` explores in the critic's own phase, where the
paper's actor acts without noise, for what a critic says about actions that were never tried is a
guess; with several critics the target takes the smallest, which keeps guesses from feeding on
themselves (Fujimoto et al. 2018, "Addressing Function Approximation Error"); `critic_norm` layer
keeps guesses about such actions near those about tried ones (Ball et al. 2023, "Efficient Online
Reinforcement Learning with Offline Data").
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.offline.acting import CORE
from statewise.agents.offline.decision_s4 import DecisionS4, freeze_layer
from statewise.agents.offline.hidden_replay import (
    HiddenReplay,
    PlayedEpisode,
    Transitions,
    core_of,
    single_rows,
    staleness,
)
from statewise.agents.offline.sequence_agent import seeded
from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.wrapped import Wrapped
from statewise.agents.optimizer import Optimizer, OptimizerSettings
from statewise.agents.protocol import Metrics
from statewise.agents.state_dicts import check_keys, load_weights
from statewise.data.step import moved
from statewise.ssm.protocol import Cache, State
from statewise.ssm.stack import Stack
from statewise.ssm.state import select

CriticKind = Literal["cat_exp_rtg", "cat_exp"]
CriticNorm = Literal["none", "layer"]
FreezeOnline = Literal["none", "dynamics", "dynamics_and_inputs"]


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig:
    """Settings of the on-policy stage."""

    actor_lr: float = 1e-5  # > 0, AdamW without decay
    critic_lr: float = 1e-4  # > 0, AdamW
    critic_decay: float = 1e-3  # >= 0, of the critic's matrices
    max_grad_norm: float = 0.5  # > 0, of each of the two
    discount: float = 0.99  # gamma in [0, 1]
    reward_scale: float | None = None  # > 0, divides rewards; None: the agent's return_scale
    batch_size: int = 64  # >= 1, steps
    critic: CriticKind = "cat_exp_rtg"  # whether it sees the return to go
    critic_width: int = 4  # W >= 1, times the width of its input
    critic_norm: CriticNorm = "none"  # layer: before its first two non-linearities
    num_critics: int = 1  # >= 1; y takes the smallest of the C', the actor climbs the first C
    target_rate: float = 0.005  # (0, 1], share by which X' and C' move; 1 copies
    target_every: int = 1  # >= 1 updates between two moves of X' and C'
    actor_every: int = 1  # >= 1 updates of the critic for one of the actor
    critic_only_steps: int = 25_000  # >= 0 environment steps in which the actor stays as it is
    critic_only_noise: float = 0.0  # >= 0, deviation of the action code in them
    critic_only_factor: int = 10  # >= 1, times as many updates in them
    freeze: FreezeOnline = "dynamics"  # dynamics: A, B, dt; inputs: all before the first layer
    replay_size: int = 60_000  # >= 2 rows
    replay_gib: float = 4.0  # > 0, what the replay may take
    refresh_hidden_every: int = 0  # actor updates between two refreshes of stored states; 0: none
    refreshed_episodes: int = 16  # >= 1 recomputed in a refresh, in turn

    def __post_init__(self) -> None:
        for name in ("actor_lr", "critic_lr", "max_grad_norm", "replay_gib"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in (
            "critic_decay",
            "critic_only_steps",
            "critic_only_noise",
            "refresh_hidden_every",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        names = ("batch_size", "critic_width", "target_every", "actor_every", "critic_only_factor")
        for name in (*names, "num_critics", "refreshed_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.reward_scale is not None and not self.reward_scale > 0:
            raise ValueError(f"reward_scale: expected a positive number, got {self.reward_scale}")
        if self.replay_size < 2:
            raise ValueError(f"replay_size: expected at least 2, got {self.replay_size}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount: expected [0, 1], got {self.discount}")
        if not 0 < self.target_rate <= 1:
            raise ValueError(f"target_rate: expected (0, 1], got {self.target_rate}")


def freeze_online(policy: SequencePolicy, freeze: FreezeOnline) -> None:
    """Take parameters of the policy out of learning.

    "dynamics" are A, B and dt of every layer. With "inputs" also everything that the first layer
    reads stays as it is, so that the stored states of the first block remain exact.
    """
    if freeze == "none":
        return
    assert isinstance(policy.core, Stack), type(policy.core)
    for number, block in enumerate(policy.core.blocks):
        wrapped = block.get_submodule("layer")
        assert isinstance(wrapped, Wrapped), type(wrapped)
        freeze_layer(wrapped.layer, "dynamics")
        if freeze == "dynamics_and_inputs" and number == 0:
            wrapped.before.requires_grad_(False)
    if freeze == "dynamics_and_inputs":
        assert isinstance(policy.tokens, nn.Module), type(policy.tokens)
        policy.inputs.requires_grad_(False)
        policy.tokens.requires_grad_(False)


def move_towards(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the parameters of `target` by the share `rate` of the way to those of `source`."""
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
            slow.lerp_(fast, rate)


def chosen_code(
    policy: SequencePolicy,
    vector: Tensor,
    previous: Tensor,
    rtg: Tensor,
    state: State,
    cache: Cache | None = None,
) -> Tensor:
    """Return the codes (B, A) that a policy chooses in single steps with given memory.

    Args:
        policy: X or X'.
        vector: (B, S) from `policy.inputs`.
        previous: (B, A) codes.
        rtg: (B,) in the units of the rewards.
        state: of the core, (B, ...).
        cache: see `SequenceModel.step`; None where the parameters get a gradient.
    """
    token = policy.tokens.arriving(single_rows(vector, previous, rtg)).squeeze(-2)
    y, _ = core_of(policy).step(token, state, cache=cache)
    code = policy.head(y)
    return torch.where(policy.code.is_bounded, code.clamp(-1.0, 1.0), code)


class Critic(nn.Module):
    """C(s, a, R) of the module docstring.

    Args:
        d_obs: S.
        d_action: A.
        kind: whether it sees R.
        width: W >= 1.
        norm: of what the first two non-linearities read.
    """

    def __init__(
        self, d_obs: int, d_action: int, kind: CriticKind, width: int, norm: CriticNorm = "none"
    ) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        d_in = d_obs + d_action + (kind == "cat_exp_rtg")
        hidden = width * d_in

        def normed(d_in: int, d_out: int) -> nn.Module:
            linear = nn.Linear(d_in, d_out)
            return linear if norm == "none" else nn.Sequential(linear, nn.LayerNorm(d_out))

        self.first = normed(d_in, hidden)
        self.expand = nn.Sequential(
            normed(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )
        self.last = nn.Linear(hidden, 1)

    def forward(self, vector: Tensor, code: Tensor, rtg: Tensor) -> Tensor:
        """Return values (B,) of actions (B, A) at observations (B, S); rtg (B,) is scaled."""
        if self.kind == "cat_exp":
            z = F.gelu(self.first(torch.cat((vector, code), -1)))
        else:
            x = torch.cat((vector, code, rtg.unsqueeze(-1)), -1)
            z = F.gelu(self.first(x)) + x.repeat(1, self.width)
        values: Tensor = self.last(F.gelu(z + self.expand(z))).squeeze(-1)
        return values


class Critics(nn.Module):
    """Several networks of one shape, each with weights of its own.

    Args:
        critics: at least one.
    """

    def __init__(self, critics: Sequence[Critic]) -> None:
        super().__init__()
        self.each = nn.ModuleList(critics)

    def forward(self, vector: Tensor, code: Tensor, rtg: Tensor) -> Tensor:
        """Return the values (K, B) of all of them; see `Critic`."""
        return torch.stack([critic(vector, code, rtg) for critic in self.each])


class ActorCritic:
    """Fine-tunes a Decision S4 agent on what it plays; the agent's policy is X.

    Parameters of the policy that `freeze` names take no gradient from here on.

    Args:
        agent: trained, with a Box of actions.
        config: settings.
        obs_space: of the agent, without its further inputs.
        seed: of the critic's weights and the batches.

    Raises:
        ValueError: discrete actions, or the replay is too large.
    """

    def __init__(
        self, agent: DecisionS4, config: ActorCriticConfig, obs_space: spaces.Dict, *, seed: int
    ) -> None:
        policy = agent.policy
        if policy.code.nvec:
            raise ValueError(
                "method: expected weighted_bc for discrete actions, got actor_critic, which "
                "differentiates the critic by the action"
            )
        self.agent, self.config = agent, config
        freeze_online(policy, config.freeze)
        self.scale = float(policy.tokens.return_scale)  # type: ignore[attr-defined]
        self.reward_scale = self.scale if config.reward_scale is None else config.reward_scale
        sizes = policy.inputs.d_out, policy.code.width, config.critic, config.critic_width
        with seeded(seed):
            critics = [Critic(*sizes, norm=config.critic_norm) for _ in range(config.num_critics)]
        self.critic = Critics(critics).to(agent.device)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.slow_policy = copy.deepcopy(policy).requires_grad_(False).eval()
        self._actor_steps = self._optimizer(policy, config.actor_lr, 0.0)
        self._critic_steps = self._optimizer(self.critic, config.critic_lr, config.critic_decay)
        self.replay = HiddenReplay(
            config.replay_size,
            {key: torch.as_tensor(space.sample()) for key, space in obs_space.spaces.items()},
            policy.code.width,
            select(agent.initial_state(1), CORE),
            config.replay_gib,
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.critic_updates = self.actor_updates = 0

    @property
    def quiet_steps(self) -> int:
        """Environment steps at first in which the agent acts as it came."""
        return self.config.critic_only_steps

    @property
    def quiet_noise(self) -> float:
        """Deviation of the exploration noise in them."""
        return self.config.critic_only_noise

    def _optimizer(self, module: nn.Module, rate: float, decay: float) -> Optimizer:
        settings = OptimizerSettings(
            learning_rate=rate,
            weight_decay=decay,
            max_grad_norm=self.config.max_grad_norm,
            total_updates=1,
        )
        return Optimizer(module, settings)

    def add(self, episode: PlayedEpisode) -> None:
        """Take what was played."""
        self.replay.add(episode)

    def train(self, steps: int, rounds: int) -> Metrics:
        """Take `rounds` updates, more in the critic's own phase; return means of their metrics.

        Args:
            steps: environment steps so far.
            rounds: >= 1.

        Raises:
            NonFiniteLossError: a loss or its gradient is NaN or infinite.
        """
        alone = steps < self.config.critic_only_steps
        if self.replay.num_transitions < self.config.batch_size:
            return {}
        sums: dict[str, list[float]] = {}
        for _ in range(rounds * (self.config.critic_only_factor if alone else 1)):
            for name, value in self.update(critic_only=alone).items():
                sums.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in sums.items()}

    def update(self, *, critic_only: bool) -> Metrics:
        """Update the critic, and the actor when it is its turn, on one batch."""
        batch = moved(self.replay.sample(self.config.batch_size, self.generator), self.agent.device)
        metrics = self._update_critic(batch)
        if not critic_only and self.critic_updates % self.config.actor_every == 0:
            metrics |= self._update_actor(batch)
            every = self.config.refresh_hidden_every
            if every and self.actor_updates % every == 0:
                self.refresh(self.actor_updates // every - 1)
        if self.critic_updates % self.config.target_every == 0:
            move_towards(self.slow_critic, self.critic, self.config.target_rate)
            if not critic_only:
                move_towards(self.slow_policy, self.agent.policy, self.config.target_rate)
        return metrics

    def targets(self, batch: Transitions) -> Tensor:
        """Return y (B,)."""
        slow = self.slow_policy
        with torch.no_grad():
            vector = self.agent.policy.inputs(batch.next_obs)
            code = chosen_code(
                *(slow, slow.inputs(batch.next_obs), batch.action, batch.next_rtg),
                batch.next_state,
                cache=core_of(slow).prepare_step(),
            )
            after = self.slow_critic(vector, code, batch.next_rtg / self.scale).amin(0)
            after = torch.where(batch.terminated, 0.0, after)
            return batch.reward / self.reward_scale + self.config.discount * after

    def _update_critic(self, batch: Transitions) -> Metrics:
        with torch.no_grad():
            vector = self.agent.policy.inputs(batch.obs)
        values = self.critic(vector, batch.action, batch.rtg / self.scale)
        loss = (values - self.targets(batch)).square().mean(1).sum()
        report = self._critic_steps.step({"critic": loss}, loss, self.critic_updates)
        self.critic_updates += 1
        return {
            "critic_loss": float(loss.detach()),
            "critic_grad_norm": report["grad_norm"],
            "value_mean": float(values.detach().mean()),
        }

    def _update_actor(self, batch: Transitions) -> Metrics:
        policy = self.agent.policy.eval()
        self.critic.requires_grad_(False)
        vector = policy.inputs(batch.obs)
        code = chosen_code(policy, vector, batch.previous, batch.rtg, batch.state)
        climbed = self.critic.each[0]
        loss = -climbed(vector.detach(), code, batch.rtg / self.scale).mean()
        report = self._actor_steps.step({"actor": loss}, loss, self.actor_updates)
        self.critic.requires_grad_(True)
        self.actor_updates += 1
        self.agent.updates_made += 1
        self.agent.acting.forget_weights()
        return {"actor_loss": float(loss.detach()), "actor_grad_norm": report["grad_norm"]}

    def refresh(self, turn: int) -> None:
        """Recompute the stored states of `refreshed_episodes`, of which there are `turn` before."""
        number = self.replay.num_episodes
        size = min(self.config.refreshed_episodes, number)
        chosen = [self.replay.rows_of((turn * size + k) % number) for k in range(size)]
        fresh = self.replay.recomputed(self.agent.policy, chosen)
        for index, state in zip(chosen, fresh, strict=True):
            self.replay.put_states(index, state)

    def staleness(self) -> Metrics:
        """Return how far the stored states of the oldest episode are off, `staleness_<block>`."""
        if not self.replay.num_episodes:
            return {}
        index = self.replay.rows_of(0)
        fresh = self.replay.recomputed(self.agent.policy, [index])[0]
        gaps = staleness(self.replay.states(index), fresh)
        return {f"staleness_{block}": gap for block, gap in gaps.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that going on needs beside the agent."""
        return {
            "critic": self.critic.state_dict(),
            "slow_critic": self.slow_critic.state_dict(),
            "slow_policy": self.slow_policy.state_dict(),
            "actor_moments": self._actor_steps.state_dict(),
            "critic_moments": self._critic_steps.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": self.generator.get_state(),
            "critic_updates": self.critic_updates,
            "actor_updates": self.actor_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the agent is restored apart.

        Raises:
            ValueError: keys or shapes differ; one line that names the first difference.
        """
        check_keys(self.state_dict(), state)
        for name in ("critic", "slow_critic", "slow_policy"):
            load_weights(getattr(self, name), state[name])
        self._actor_steps.load_state_dict(state["actor_moments"])
        self._critic_steps.load_state_dict(state["critic_moments"])
        self.replay.load_state_dict(state["replay"])
        self.generator.set_state(state["generator"].cpu())
        self.critic_updates = int(state["critic_updates"])
        self.actor_updates = int(state["actor_updates"])
