"""Nothing in acting and learning is left on the CPU when the agent lives on another device.

The device is torch's "meta", which has shapes but no memory; mixing it with the CPU fails, as
mixing any two devices does.
"""

import pytest
import torch

from statewise.agents.recurrent_ppo import ppo_loss, weighted_sum
from statewise.ssm import SEQUENCES
from tests.agents.ppo_cases import make_agent, make_batch, make_config

META = torch.device("meta")
HOST_DECIDES = ("gru", "lstm")  # their windows are cut on the host, by values that meta has not
KINDS = [kind for kind in SEQUENCES if kind not in HOST_DECIDES]


@pytest.mark.parametrize("kind", list(SEQUENCES))
def test_acting_stays_on_the_device(kind):
    agent = make_agent(make_config(kind))
    step = make_batch(agent).step
    network = agent.network.to(META)
    state = network.sequence.initial_state(len(step.reward))
    obs = {key: x[:, 0].to(META) for key, x in step.obs.items()}
    with torch.no_grad():
        policy, value, after = network.step(obs, state, step.reset[:, 0].to(META), None)
    produced = [policy.mode(), policy.sample(None), value, *state.values(), *after.values()]
    assert {x.device.type for x in produced} == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_stays_on_the_device(kind):
    agent = make_agent(make_config(kind))
    batch = make_batch(agent)
    network = agent.network.to(META)
    step = batch.step._replace(obs={key: x.to(META) for key, x in batch.step.obs.items()})
    policy, value, _ = network(
        step.obs,
        network.sequence.initial_state(len(step.reward)),
        step.reset.to(META),
    )
    action, reward, valid, log_prob_old, value_old, target = (
        x.to(META)
        for x in (
            step.action,
            step.reward,
            step.valid,
            batch.extras["log_prob"],
            batch.extras["value"],
            batch.value_tp1,
        )
    )
    losses, metrics = ppo_loss(
        policy.log_prob(action),
        log_prob_old,
        reward,
        value,
        value_old,
        target,
        policy.entropy(),
        valid,
        clip=0.2,
        value_clip=0.2,
    )
    assert {x.device.type for x in (*losses.values(), *metrics.values())} == {"meta"}
    weighted_sum(losses, agent.config.loss_scale).backward()
    assert {p.grad.device.type for p in network.parameters() if p.grad is not None} == {"meta"}
