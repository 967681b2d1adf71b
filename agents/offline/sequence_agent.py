"""The offline agent around a return-conditioned policy: regression on actions of a data set.

    loss = mean over the rows that count of  l(a_hat_t, a_t)

with l the squared error of a Box, the cross-entropy of discrete actions. Rows that are not valid
never count; `loss_on: last` counts the last step of every episode alone, for tasks whose answer
is there: the mean over all steps would thin it out. The actions before it are then arbitrary, so
that a policy which reads them (`action_input`) acts on what it was not trained with.

Dropout draws from a seed that the agent draws for each update, so that a run which was stopped
goes on bit by bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from statewise.agents.generators import restore
from statewise.agents.offline.acting import Acting, Arrived
from statewise.agents.offline.protocol import ActingInput, OfflineAgent, OfflineBatch, Sampling
from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.tokens import ActionInput, PolicyRows, cleared
from statewise.agents.optimizer import Optimizer, OptimizerSettings, Schedule
from statewise.agents.protocol import Metrics
from statewise.agents.recurrent_ppo import masked_mean
from statewise.agents.state_dicts import check_keys, load_weights
from statewise.data.samplers import SampledBatch
from statewise.data.step import Step, moved
from statewise.nets.encoder import EncoderConfig
from statewise.ssm.protocol import State

LossOn = Literal["all", "last"]
SEEDS = 2**62  # of dropout


@dataclass(frozen=True, kw_only=True)
class SequenceLearningConfig:
    """Settings by which all sequence policies learn from data."""

    learning_rate: float = 1e-4  # > 0, AdamW
    schedule: Schedule = "constant"  # after the warm-up; see `rate_factor`
    warmup_updates: int = 10_000  # >= 0, linear
    weight_decay: float = 1e-4  # >= 0, decoupled; never of state-space parameters, norms, biases
    max_grad_norm: float = 0.25  # > 0, joint
    batch_size: int = 64  # >= 1, windows or episodes
    dropout: float = 0.1  # [0, 1)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # of pictures

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("warmup_updates", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class SequenceAgentConfig(SequenceLearningConfig):
    """Settings that all return-conditioned sequence policies have."""

    return_scale: float = 1000.0  # > 0, divides returns to go; make the best about 1 to 5
    loss_on: LossOn = "all"  # which steps count; last: those that end an episode
    action_input: ActionInput = "taken"  # none: tokens hold no actions; set it with loss_on last

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.return_scale > 0:
            raise ValueError(f"return_scale: expected a positive number, got {self.return_scale}")


def loss_rows(step: Step, loss_on: LossOn) -> Tensor:
    """Return which rows of (B, T) count; "last" finds none in an episode without a known end."""
    if loss_on == "all":
        return step.valid
    return step.valid & (step.terminated | step.truncated)


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw from torch's own generators from this seed on; they are put back."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class SequenceAgent:
    """A return-conditioned policy that learns from sequences; an `OfflineAgent`.

    Args:
        config: settings.
        policy: on its device.
        acting: a way to act with this policy.
        sampling: which batches `update` takes.
        total_updates: >= 1, of the run: where the schedule ends.
        seed: of the sampled actions and of dropout.
        ssm_lr_factor: > 0, learning rate of state-space parameters, relative.
    """

    inputs: tuple[ActingInput, ...] = ("previous_action", "return_to_go")

    def __init__(
        self,
        config: SequenceLearningConfig,
        policy: SequencePolicy,
        acting: Acting,
        sampling: Sampling,
        *,
        total_updates: int,
        seed: int,
        ssm_lr_factor: float = 1.0,
    ) -> None:
        self.policy = policy
        self.acting = acting
        self.sampling = sampling
        self.loss_on: LossOn = "all"
        if isinstance(config, SequenceAgentConfig):
            self.loss_on = config.loss_on
        self.weights = {"action": 1.0}
        self.updates_made = 0
        self.device = policy.head.linear.weight.device
        self.optimizer = Optimizer(
            policy,
            OptimizerSettings(
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                ssm_lr_factor=ssm_lr_factor,
                max_grad_norm=config.max_grad_norm,
                schedule=config.schedule,
                warmup_updates=config.warmup_updates,
                total_updates=total_updates,
            ),
        )
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.noise = torch.Generator().manual_seed(seed)

    def initial_state(self, batch_size: int) -> State:
        """Return the state for environments that are about to start."""
        with torch.no_grad():
            return self.acting.initial_state(batch_size)

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

        `explore` draws discrete actions from the policy; of a Box it knows one action only.
        """
        if self.policy.training:
            self.policy.eval()
        predicted, state = self.acting.act(self.arrived(obs, is_first, reset), state)
        return self.policy.code.choose(predicted, self.generator if explore else None), {}, state

    def arrived(self, obs: dict[str, Tensor], is_first: Tensor, reset: Tensor) -> Arrived:
        """Return what came with a step; arguments as in `act`."""
        vector = self.policy.inputs(obs)
        is_new = is_first | reset
        previous = self.policy.code.from_previous(obs["previous_action"]).to(vector.dtype)
        return Arrived(
            obs=vector,
            previous=cleared(previous, ~is_new),
            rtg=obs["return_to_go"].squeeze(-1).to(vector.dtype),
            is_new=is_new,
            reset=reset,
        )

    def counted(self, step: Step) -> Tensor:
        """Return the rows that count in the loss, (B, T) bool."""
        return loss_rows(step, self.loss_on)

    def losses(self, rows: PolicyRows, batch: SampledBatch) -> dict[str, Tensor]:
        """Return the terms of the loss by name, as `weights` has them."""
        error = self.policy.code.loss(self.policy(rows), rows.action)
        return {"action": masked_mean(error, self.counted(batch.step))}

    def update(self, batch: OfflineBatch) -> Metrics:
        """Take one gradient step; the terms of the loss, the gradient norm, the learning rate.

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite.
        """
        assert isinstance(batch, SampledBatch), type(batch)
        self.policy.train()
        batch = moved(batch, self.device)
        seed = int(torch.randint(SEEDS, (), generator=self.noise))
        with seeded(seed, self.device):
            losses = self.losses(self.policy.rows(batch), batch)
        assert losses.keys() == self.weights.keys(), (sorted(losses), sorted(self.weights))
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        report = self.optimizer.step(losses, total, self.updates_made)
        self.updates_made += 1
        self.acting.forget_weights()
        return {f"{name}_loss": float(loss.detach()) for name, loss in losses.items()} | report

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser moments, generators and the counter of updates."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "noise": self.noise.get_state(),
            "updates_made": self.updates_made,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: keys or shapes differ; one line that names the first difference.
        """
        check_keys(self.state_dict(), state)
        load_weights(self.policy, state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore(self.generator, state["generator"])
        self.noise.set_state(state["noise"].cpu())
        self.updates_made = int(state["updates_made"])
        self.acting.forget_weights()


def conforms(agent: SequenceAgent) -> OfflineAgent:
    """Let the type checker compare the agent with the protocol."""
    return agent
