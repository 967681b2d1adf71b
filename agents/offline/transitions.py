"""What agents that learn from single steps share: networks of one observation, targets, states.

    y_t = r_t + gamma v(s_{t+1})      where the step did not terminate, at time limits too
    y_t = r_t                         where it did

The networks are fully connected with ReLU, as their papers have them, and start as torch starts
linear layers. Each one scales the observations itself, and has an encoder of its own where there
are pictures. Such an agent has no memory: its state is empty.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.generators import restore
from statewise.agents.offline.inputs import ActionCode, ObsNormalizer
from statewise.agents.offline.protocol import ActingInput, OfflineAgent, OfflineBatch, Sampling
from statewise.agents.optimizer import Optimizer, OptimizerSettings, Schedule
from statewise.agents.protocol import Metrics
from statewise.agents.state_dicts import check_keys, load_parts, parts_of
from statewise.data.samplers import TransitionBatch, TransitionConfig
from statewise.nets.encoder import EncoderConfig
from statewise.ssm.protocol import State


@dataclass(frozen=True, kw_only=True)
class TransitionAgentConfig:
    """Settings that all agents have which learn from single steps."""

    learning_rate: float = 3e-4  # > 0, Adam, of every network
    batch_size: int = 256  # >= 1, steps
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers, each >= 1
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # of pictures

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a positive number, got {self.learning_rate}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden: expected widths of at least 1, got {list(self.hidden)}")


@dataclass(frozen=True, kw_only=True)
class ValueAgentConfig(TransitionAgentConfig):
    """Settings of those that learn values."""

    discount: float = 0.99  # gamma in [0, 1]
    target_rate: float = 0.005  # tau in (0, 1], share of the critics in an update of the targets

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount: expected [0, 1], got {self.discount}")
        if not 0 < self.target_rate <= 1:
            raise ValueError(f"target_rate: expected (0, 1], got {self.target_rate}")


def td_target(reward: Tensor, terminated: Tensor, value_tp1: Tensor, discount: float) -> Tensor:
    """Return y (B,) without gradient.

    Args:
        reward: (B,).
        terminated: (B,) bool; the value there is not read and may be NaN.
        value_tp1: (B,) v of what followed.
        discount: gamma in [0, 1].
    """
    return torch.where(terminated, reward, reward + discount * value_tp1).detach()


def twin_loss(q: Tensor, target: Tensor) -> Tensor:
    """Return the squared errors of twin critics q (2, B), averaged over B and summed over both."""
    return (q - target).square().mean(-1).sum()


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the parameters of `target` by the share `rate` of the way to those of `source`."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.lerp_(fast, rate)


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return a copy that takes no gradient."""
    return copy.deepcopy(network).requires_grad_(False)


def relu_net(d_in: int, hidden: Sequence[int], d_out: int) -> nn.Sequential:
    """Return linear layers with ReLU between them; weights come from torch's own generator."""
    widths = [d_in, *hidden, d_out]
    layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*[module for pair in layers for module in pair][:-1])


def adam(
    network: nn.Module,
    learning_rate: float,
    total_updates: int,
    *,
    schedule: Schedule = "constant",
    weight_decay: float = 0.0,
) -> Optimizer:
    """Return an optimiser that clips no gradient."""
    return Optimizer(
        network,
        OptimizerSettings(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_grad_norm=math.inf,
            schedule=schedule,
            total_updates=total_updates,
        ),
    )


class Actor(nn.Module):
    """Map observations to what a policy predicts: a code bent into the bounds, or logits.

    Args:
        inputs: of the observations.
        action_space: see `ActionCode`.
        hidden: widths.
    """

    def __init__(
        self, inputs: ObsNormalizer, action_space: spaces.Space[Any], hidden: Sequence[int]
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.code = ActionCode(action_space)
        self.layers = relu_net(inputs.d_out, hidden, self.code.width)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Return predictions (B, A)."""
        output: Tensor = self.layers(self.inputs(obs))
        return self.code.squash(output, "tanh")


class TwinCritics(nn.Module):
    """Two values Q_1, Q_2 of an observation and an action.

    Args:
        inputs: of the observations, shared by both.
        d_action: width A of the action codes.
        hidden: widths.
    """

    def __init__(self, inputs: ObsNormalizer, d_action: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.inputs = inputs
        self.one = relu_net(inputs.d_out + d_action, hidden, 1)
        self.two = relu_net(inputs.d_out + d_action, hidden, 1)

    def forward(self, obs: dict[str, Tensor], action: Tensor) -> Tensor:
        """Return Q (2, B) of action codes (B, A)."""
        x = torch.cat((self.inputs(obs), action), -1)
        return torch.stack((self.one(x), self.two(x))).squeeze(-1)

    def first(self, obs: dict[str, Tensor], action: Tensor) -> Tensor:
        """Return Q_1 (B,) of action codes (B, A)."""
        q: Tensor = self.one(torch.cat((self.inputs(obs), action), -1))
        return q.squeeze(-1)


class TransitionAgent(ABC):
    """An `OfflineAgent` without memory that learns from single steps.

    Args:
        networks: everything that is saved, by name, on its device.
        optimizers: by the name of their network.
        code: of the actions, on that device.
        batch_size: >= 1, steps.
        seed: of what is drawn in acting or in updates.
        device: of the networks.
    """

    inputs: tuple[ActingInput, ...] = ()

    def __init__(
        self,
        networks: dict[str, nn.Module],
        optimizers: dict[str, Optimizer],
        *,
        code: ActionCode,
        batch_size: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.networks = networks
        self.optimizers = optimizers
        self.code = code
        self.sampling: Sampling = TransitionConfig(batch_size=batch_size)
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.updates_made = 0

    @abstractmethod
    def predict(self, obs: dict[str, Tensor]) -> Tensor:
        """Return what the policy predicts (B, A): codes or logits."""

    @abstractmethod
    def learn(self, batch: TransitionBatch) -> Metrics:
        """Take the gradient steps of one update; the actions of the batch are codes (B, A)."""

    def initial_state(self, batch_size: int) -> State:
        """Return the empty state."""
        return {}

    def explored(self, predicted: Tensor) -> Tensor:
        """Return what `act` chooses from when it explores; of a Box the prediction itself."""
        return predicted

    @torch.inference_mode()
    def act(
        self,
        obs: dict[str, Tensor],
        state: State,
        is_first: Tensor,
        reset: Tensor,
        *,
        explore: bool,
    ) -> tuple[Tensor, dict[str, Tensor], State]:
        """Choose actions (B,) or (B, A) of the action space; there are no extras. See `Agent`.

        `explore` draws from the policy; a deterministic one knows one action only.
        """
        predicted = self.predict(obs)
        if not explore:
            return self.code.choose(predicted, None), {}, state
        return self.code.choose(self.explored(predicted), self.generator), {}, state

    def update(self, batch: OfflineBatch) -> Metrics:
        """Take the gradient steps of one batch; the losses by name.

        Raises:
            NonFiniteLossError: a loss or its gradient is NaN or infinite. Networks that had
                learned from this batch before stay changed.
        """
        assert isinstance(batch, TransitionBatch), type(batch)
        obs, next_obs = (
            {key: x.to(self.device) for key, x in part.items()}
            for part in (batch.obs, batch.next_obs)
        )
        action = self.code.encode(batch.action.to(self.device))
        report = self.learn(
            batch._replace(
                obs=obs,
                action=action,
                reward=batch.reward.to(self.device, action.dtype),
                next_obs=next_obs,
                terminated=batch.terminated.to(self.device),
            )
        )
        self.updates_made += 1
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser moments, the generator and the counter of updates."""
        return {
            **parts_of(self.networks, self.optimizers),
            "generator": self.generator.get_state(),
            "updates_made": self.updates_made,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: keys or shapes differ; one line that names the first difference.
        """
        check_keys(self.state_dict(), state)
        load_parts(self.networks, self.optimizers, state)
        restore(self.generator, state["generator"])
        self.updates_made = int(state["updates_made"])


def conforms(agent: TransitionAgent) -> OfflineAgent:
    """Let the type checker compare the agent with the protocol."""
    return agent
