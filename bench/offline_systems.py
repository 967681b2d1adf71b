"""The systems of `bench offline`, each checked and timed in a process of its own.

Checks come before timing. Ours have to act, step by step, as the network that is trained
predicts on the whole sequence. transformers' Decision Transformer has to give the actions and the
gradients that ours gives with its weights. All get the same batches, loss, clipping and fused
AdamW, and have the same dropout; of the peer's acting only the network is timed, with its window
ready.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.agents.offline import decision_transformer
from statewise.agents.offline.decision_mamba import DecisionMamba, DecisionMambaConfig
from statewise.agents.offline.decision_s4 import (
    DecisionS4,
    DecisionS4Config,
    DecisionS4Sequence,
)
from statewise.agents.offline.decision_transformer import (
    DecisionTransformer,
    DecisionTransformerConfig,
)
from statewise.agents.offline.inputs import ActionCode
from statewise.agents.offline.sequence_agent import SequenceAgent
from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.tokens import PolicyRows
from statewise.agents.optimizer import Optimizer, OptimizerSettings
from statewise.agents.recurrent_ppo import masked_mean
from statewise.bench.measure import Timing, time_calls
from statewise.bench.offline import DS4, DT, MAMBA, PEER, WIDE
from statewise.bench.offline_peer import as_ours, copy_weights, make_peer, peer_name, predict
from statewise.bench.process import Answer, Job
from statewise.data.samplers import SampledBatch
from statewise.data.step import Step

NUM_OBS, NUM_ACTIONS, NUM_LAYERS = 17, 6, 3
OBS_SPACE = spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (NUM_OBS,), np.float32)})
ACTION_SPACE = spaces.Box(-1.0, 1.0, (NUM_ACTIONS,), np.float32)
MAX_CHECKED = 20  # steps
TOTAL_UPDATES = 1000  # of the runs that the updates are taken from
FLOAT32_LIMIT = 1e-4  # of the largest entry
FLOAT64_LIMIT, GRADIENT_LIMIT = 1e-9, 1e-7
LIKE = DecisionTransformerConfig()  # whose loss and optimiser the peer gets
SPREAD = 0.5  # of what is added to weights, relative to 1 / sqrt(their last axis)


def make_batch(batch: int, steps: int, seed: int = 0) -> SampledBatch:
    """Return sequences (B, T) of which each is an episode; random numbers."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.zeros(batch, steps, dtype=torch.bool)
    first[:, 0] = True
    reward = torch.rand(batch, steps, generator=generator)
    step = Step(
        obs={"obs": torch.randn(batch, steps, NUM_OBS, generator=generator)},
        is_first=first,
        reset=first,
        action=2 * torch.rand(batch, steps, NUM_ACTIONS, generator=generator) - 1,
        reward=reward,
        terminated=torch.zeros_like(first),
        truncated=first.flip(1),
        valid=torch.ones_like(first),
    )
    to_go = reward.flip(1).cumsum(1).flip(1)
    return SampledBatch(step, to_go, torch.arange(steps).repeat(batch, 1), torch.arange(batch))


def make_agent(system: str, steps: int, width: int) -> SequenceAgent:
    """Return one of our systems; windows and training sequences have `steps` steps."""
    made: dict[str, Any] = {"statistics": None, "total_updates": TOTAL_UPDATES, "seed": 0}
    if system in (DS4, WIDE):
        sequence = DecisionS4Sequence(num_layers=NUM_LAYERS)
        if system == WIDE:
            sequence = replace(sequence, d_model=width)
        s4 = DecisionS4Config(dropout=LIKE.dropout, sequence=sequence)
        return DecisionS4(s4, OBS_SPACE, ACTION_SPACE, **made)
    if system == DT:
        dt = DecisionTransformerConfig(context=steps, d_model=width, num_layers=NUM_LAYERS)
        return DecisionTransformer(dt, OBS_SPACE, ACTION_SPACE, **made)
    assert system.startswith(MAMBA), system
    if system.endswith("recurrent"):
        mamba = DecisionMambaConfig(
            d_model=width, num_layers=NUM_LAYERS, train_on="trajectories", inference="recurrent"
        )
    else:
        mamba = DecisionMambaConfig(context=steps, d_model=width, num_layers=NUM_LAYERS)
    return DecisionMamba(mamba, OBS_SPACE, ACTION_SPACE, **made)


def spread(network: nn.Module) -> None:
    """Move weights off their start, where most are so small that no memory shows in an action."""
    with torch.no_grad():
        for parameter in network.parameters():
            scale = SPREAD / math.sqrt(parameter.shape[-1])
            parameter.add_(scale * torch.randn_like(parameter))


def _off(got: Tensor, want: Tensor) -> float:
    """Return the largest error relative to the largest entry."""
    got, want = got.detach(), want.detach()
    return float((got - want).abs().max() / want.abs().max())


# ---------------------------------------------------------------- checks


def act_through(agent: SequenceAgent, batch: SampledBatch, steps: int) -> tuple[Tensor, Any]:
    """Act on a batch step by step, going over it again where it ends.

    Returns:
        Actions (B, steps, A) and a call that acts once more, from the state reached.
    """
    step, T = batch.step, batch.step.valid.shape[1]
    B = len(step.valid)
    state, actions = agent.initial_state(B), []
    never = torch.zeros(B, dtype=torch.bool)
    obs: dict[str, Tensor] = {}
    for t in range(steps):
        obs = {
            "obs": step.obs["obs"][:, t % T],
            "previous_action": step.action[:, (t - 1) % T] * (t > 0),
            "return_to_go": batch.rtg[:, t % T, None],
        }
        first = torch.full_like(never, t == 0)
        action, _, state = agent.act(obs, state, first, first, explore=False)
        actions.append(action)
    return torch.stack(actions, 1), lambda: agent.act(obs, state, never, never, explore=False)


def own_refusal(agent: SequenceAgent, batch: SampledBatch) -> str:
    """Return why one of our systems must not be timed; "" where it acts as it predicts."""
    T = min(batch.step.valid.shape[1], MAX_CHECKED)
    agent.policy.eval()
    with torch.no_grad():
        predicted = agent.policy(agent.policy.rows(batch))[:, :T]
    error = _off(act_through(agent, batch, T)[0], predicted)
    if not error <= FLOAT32_LIMIT:  # NaN is refused too
        return f"an action is {error:.2g} off its prediction, at most {FLOAT32_LIMIT:.2g}"
    return ""


def make_twins(width: int, mode: str) -> tuple[nn.Module, SequencePolicy]:
    """Return transformers' network and ours with its weights, float64, without dropout."""
    peer = make_peer(NUM_OBS, NUM_ACTIONS, width, NUM_LAYERS, mode).double().eval()
    spread(peer)
    config = DecisionTransformerConfig(d_model=width, num_layers=NUM_LAYERS)
    policy = decision_transformer.build_policy(config, OBS_SPACE, ACTION_SPACE, None)
    policy = policy.double().eval()
    copy_weights(peer, policy)
    return peer, policy


def peer_refusal(width: int, mode: str, batch: SampledBatch) -> str:
    """Return how transformers' network and ours with its weights differ; "" where they agree."""
    peer, policy = make_twins(width, mode)
    rows, valid = policy.rows(batch), batch.step.valid
    got, want = predict(peer, rows, LIKE.return_scale), policy(rows)
    error = _off(got, want)
    if not error <= FLOAT64_LIMIT:
        return f"an action is {error:.2g} off that of our network, at most {FLOAT64_LIMIT:.2g}"
    for predicted in (got, want):
        masked_mean(policy.code.loss(predicted, rows.action), valid).backward()
    for name, parameter in policy.named_parameters():
        gradient, other = parameter.grad, peer.get_parameter(peer_name(name)).grad
        assert gradient is not None, name
        assert other is not None, name
        error = _off(as_ours(name, other), gradient)
        if not error <= GRADIENT_LIMIT:
            return f"the gradient of {name} is {error:.2g} off, at most {GRADIENT_LIMIT:.2g}"
    return ""


# ---------------------------------------------------------------- what is timed


def _peer_inputs(batch: SampledBatch) -> tuple[PolicyRows, ActionCode]:
    """Return the inputs of our policies, and the loss."""
    policy = decision_transformer.build_policy(LIKE, OBS_SPACE, ACTION_SPACE, None)
    return policy.rows(batch), policy.code


def peer_update(peer: nn.Module, batch: SampledBatch) -> Callable[[], dict[str, float]]:
    """Return one update of the peer with the loss and the optimiser of our agents."""
    settings = OptimizerSettings(
        learning_rate=LIKE.learning_rate,
        weight_decay=LIKE.weight_decay,
        max_grad_norm=LIKE.max_grad_norm,
        warmup_updates=LIKE.warmup_updates,
        total_updates=TOTAL_UPDATES,
    )
    optimizer = Optimizer(peer.train(), settings)
    (rows, code), valid = _peer_inputs(batch), batch.step.valid

    def update() -> dict[str, float]:
        predicted = predict(peer, rows, LIKE.return_scale)
        loss = masked_mean(code.loss(predicted, rows.action), valid)
        return optimizer.step({"action": loss}, loss, 0)

    return update


def peer_action(peer: nn.Module, batch: SampledBatch) -> Callable[[], Tensor]:
    """Return one action of the peer: its network over a window that is ready."""
    rows, _ = _peer_inputs(batch)
    peer.eval()

    def act() -> Tensor:
        with torch.inference_mode():
            return predict(peer, rows, LIKE.return_scale)[:, -1]

    return act


def _run_peer(job: Job, batch: SampledBatch) -> Answer:
    width, mode = job["width"], job["mode"]
    if job["check"] and (refused := peer_refusal(width, mode, make_batch(2, MAX_CHECKED))):
        return {"refused": refused}
    peer = make_peer(NUM_OBS, NUM_ACTIONS, width, NUM_LAYERS, mode)
    spread(peer)
    call: Callable[[], object] = (
        peer_update(peer, batch) if mode == "train" else peer_action(peer, batch)
    )
    return _answer(job, call, peer)


def _run_ours(job: Job, batch: SampledBatch) -> Answer:
    agent = make_agent(job["system"], job["steps"], job["width"])
    spread(agent.policy)
    if job["check"] and (refused := own_refusal(agent, make_batch(2, job["steps"]))):
        return {"refused": refused}
    if job["mode"] == "train":
        return _answer(job, lambda: agent.update(batch), agent.policy)
    return _answer(job, act_through(agent, batch, job["history"])[1], agent.policy)


def _answer(job: Job, call: Callable[[], object], network: nn.Module) -> Answer:
    call()  # not counted: it fills the moments of AdamW and finds its memory
    timing: Timing = time_calls(call, reps=job["reps"], seconds=job["seconds"])
    assert all(math.isfinite(second) for second in timing.wall)
    parameters = sum(p.numel() for p in network.parameters())
    return {"refused": "", "timing": timing, "parameters": parameters}


def run_job(job: Job) -> Answer:
    """Check and time one system.

    Args:
        job: system, mode ("train" or "act"), steps, batch, width, history, check, reps, seconds.

    Returns:
        {"refused": text} for a wrong result; else also "timing": [wall, cpu], seconds of each
        update or action, and "parameters".
    """
    torch.manual_seed(0)
    batch = make_batch(job["batch"] if job["mode"] == "train" else 1, job["steps"])
    return (_run_peer if job["system"] == PEER else _run_ours)(job, batch)
