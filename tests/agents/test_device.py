"""Nothing in acting and learning is left on the CPU when the agent lives on another device.

The device is pretended (`tests/pretend_device.py`): an operation that mixes it with the CPU fails,
in a kernel, a layer, the agent, the collector, forwards and backwards.
"""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.agents.recurrent_ppo import RecurrentPPO
from statewise.data.step import Batch, Step
from statewise.envs.build import EnvConfig, make_env
from statewise.ssm import SEQUENCES
from statewise.ssm.build import SequenceConfig, build_sequence
from statewise.training.collector import Collector
from statewise.training.evaluate import evaluate
from tests.agents.ppo_cases import make_agent, make_batch, make_config
from tests.pretend_device import DEVICE, DeviceMixError, PretendDevice

HOST_DECIDES = ("gru", "lstm")  # their windows are cut on the host, by values that are not there
KINDS = ("s5", "mamba", "attention")  # the agent's own code is the same with all layers
B, T = 2, 70  # longer than the chunks of every scan
FEW = 18  # steps of those that go step by step


def _move(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.to(DEVICE) for key, value in tree.items()}


def _move_batch(batch: Batch) -> Batch:
    fields = {
        name: _move(value) if isinstance(value, dict) else value.to(DEVICE)
        for name, value in batch.step._asdict().items()
    }
    step = Step(**fields)
    return Batch(step, _move(batch.state), _move(batch.extras), batch.value_tp1.to(DEVICE))


def _move_agent(agent: RecurrentPPO, monkeypatch: pytest.MonkeyPatch) -> RecurrentPPO:
    """Move an agent, less what the pretended device has not: generator, autocast, fused Adam."""
    agent.network.to(DEVICE)
    agent.device = DEVICE
    monkeypatch.setattr(agent, "generator", None)
    monkeypatch.setattr(agent, "_autocast", contextlib.nullcontext)
    for group in agent.optimizer.param_groups:
        group["fused"] = False
    return agent


def _devices(*trees: Any) -> set[str]:
    leaves = [x for tree in trees for x in (tree.values() if isinstance(tree, dict) else [tree])]
    return {x.device.type for x in leaves}


@pytest.mark.parametrize("kind", list(SEQUENCES))
def test_every_layer_stays_on_the_device_in_all_its_modes(kind):
    model = build_sequence(SequenceConfig(kind=kind, d_model=8)).to(DEVICE)
    steps = FEW if kind in HOST_DECIDES else T
    x = torch.zeros(B, steps, 8, device=DEVICE, requires_grad=True)
    reset = torch.zeros(B, steps, dtype=torch.bool, device=DEVICE)
    with PretendDevice():
        window = None if kind in HOST_DECIDES else reset
        state = model.initial_state(B)
        y, last = model(x, state, window)
        traced = model.trace(x, state, window, every=16)
        stepped = model.step(x[:, 0], state, reset[:, 0], cache=model.prepare_step())
        (y.sum() + sum(value.sum() for value in last.values())).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert _devices(state, y, last, *traced, *stepped, gradients, x.grad) == {"meta"}


@pytest.mark.parametrize("kind", [*KINDS, *HOST_DECIDES])
def test_acting_stays_on_the_device(kind, monkeypatch):
    agent = make_agent(make_config(kind))
    step = _move_batch(make_batch(agent)).step
    _move_agent(agent, monkeypatch)
    obs = {key: value[:, 0] for key, value in step.obs.items()}
    with PretendDevice():
        state = agent.initial_state(len(step.reward))
        for explore in (True, False):
            results = agent.act(obs, state, step.is_first[:, 0], step.reset[:, 0], explore=explore)
            assert _devices(state, *results) == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_update_stays_on_the_device(kind, monkeypatch):
    changes = {"normalize_advantage": "minibatch"} if kind == "s5" else {"target_kl": 5.0}
    agent = make_agent(make_config(kind, num_epochs=1, num_minibatches=1, **changes))
    batch = _move_batch(make_batch(agent))
    _move_agent(agent, monkeypatch)
    with PretendDevice():
        metrics = agent.update(batch)
    assert all(isinstance(value, float) for value in metrics.values())
    moments = [
        value
        for entry in agent.optimizer.state.values()
        for name, value in entry.items()
        if name != "step"
    ]
    gradients = [p.grad for p in agent.network.parameters() if p.grad is not None]
    assert moments
    assert _devices(*moments, *gradients) == {"meta"}


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_collecting_and_evaluating_move_what_comes_and_what_goes(autoreset, monkeypatch):
    config = EnvConfig(
        id="CartPole-v1", num_envs=2, autoreset=autoreset, kwargs={"max_episode_steps": 4}
    )
    env = make_env(config)
    try:
        agent = RecurrentPPO(
            make_config("s5", num_epochs=1),
            env.obs_space,
            env.action_space,
            total_steps=100,
            seed=0,
        )
        _move_agent(agent, monkeypatch)
        with PretendDevice():
            collector = Collector(env, agent, 6, DEVICE.type)
            collector.start(0)
            batch = collector.collect().batch
            agent.update(batch)
            played = evaluate(agent, env, episodes=2, seed=0, explore=True, device=DEVICE.type)
    finally:
        env.close()
    step = batch.step._asdict()
    assert _devices(*step.values(), batch.state, batch.extras, batch.value_tp1) == {"meta"}
    assert len(played.episodes) == 2


def test_the_pretended_device_refuses_a_mix_that_meta_tensors_allow():
    x = torch.zeros(3, device=DEVICE)
    with PretendDevice(), pytest.raises(DeviceMixError, match=r"\(3,\) on meta, \(3,\) on cpu"):
        torch.where(x > 0, x, torch.zeros(3))
    with PretendDevice():
        assert float(x.sum() + torch.zeros(())) == 1.0  # a number is no mix, as on a GPU
        assert bool(x.any())
