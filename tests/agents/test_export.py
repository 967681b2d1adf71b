"""An exported policy acts as the policy, in a process that knows nothing of Statewise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.export import FACTS, export_policy
from statewise.agents.recurrent_ppo import RecurrentPPO
from tests.agents.ppo_cases import make_agent, make_config
from tests.tolerance import assert_close

NUM = 2
SPACES = {
    "discrete": spaces.Discrete(3),
    "multi": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-1, 1, (2,)),
}
ALONE = """
import sys, torch
assert not any(name.startswith("statewise") for name in sys.modules)
for folder in sys.argv[1:]:
    program = torch.export.load(folder + "/policy.pt2").module()
    calls = torch.load(folder + "/calls.pt", weights_only=True)
    state = calls["state"]
    actions = []
    for obs, reset in zip(calls["obs"], calls["reset"]):
        action, state = program({"obs": obs}, state, reset)
        actions.append(action)
    torch.save({"actions": torch.stack(actions), "state": state}, folder + "/answer.pt")
"""


def _play(agent: RecurrentPPO, obs: Tensor, reset: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    state, actions = agent.initial_state(NUM), []
    for o, r in zip(obs, reset, strict=True):
        action, _, state = agent.act({"obs": o}, state, r, r, explore=False)
        actions.append(action)
    return torch.stack(actions), state


def _calls() -> tuple[Tensor, Tensor]:
    obs = torch.randn(6, NUM, 3)
    reset = torch.zeros(6, NUM, dtype=torch.bool)
    reset[0], reset[3, 1] = True, True
    return obs, reset


def test_the_program_of_an_agent_with_a_separate_critic_remembers_what_the_actor_does(tmp_path):
    agent = make_agent(make_config(critic="separate"))
    path = tmp_path / "policy.pt2"
    facts = export_policy(agent.network, {"obs": torch.zeros(3)}, path, batch_size=NUM)
    program = torch.export.load(path).module()
    obs, reset = _calls()
    expected, _ = _play(agent, obs, reset)
    state = agent.network.sequence.initial_state(NUM)
    assert facts["state"].keys() == state.keys() < agent.initial_state(NUM).keys()
    for t in range(len(obs)):
        action, state = program({"obs": obs[t]}, state, reset[t])
        assert torch.equal(action, expected[t])


# Every layer's step is exported in tests/ssm/test_compile.py; here, one of each kind of state.
@pytest.mark.parametrize("kind", ["s5", "s4", "mamba", "lstm", "attention"])
def test_the_program_acts_as_the_agent(kind, tmp_path):
    agent = make_agent(make_config(kind))
    path = tmp_path / "policy.pt2"
    export_policy(agent.network, {"obs": torch.zeros(3)}, path, batch_size=NUM)
    extra = {FACTS: ""}
    program = torch.export.load(path, extra_files=extra).module()
    obs, reset = _calls()
    expected, expected_state = _play(agent, obs, reset)
    state = agent.initial_state(NUM)
    for t in range(len(obs)):
        action, state = program({"obs": obs[t]}, state, reset[t])
        assert torch.equal(action, expected[t])
    for key, value in expected_state.items():
        assert_close(state[key], value, torch.float32, len(obs))
    facts = json.loads(extra[FACTS])
    assert facts["batch_size"] == NUM
    assert facts["obs"] == {"obs": {"shape": [NUM, 3], "dtype": "float32"}}
    assert facts["state"].keys() == expected_state.keys()


def test_another_process_runs_the_program_without_statewise(tmp_path):
    expected = {}
    for name, space in SPACES.items():
        folder = tmp_path / name
        agent = make_agent(make_config(), space)
        export_policy(agent.network, {"obs": torch.zeros(3)}, folder / "policy.pt2", batch_size=NUM)
        obs, reset = _calls()
        calls = {"obs": obs, "reset": reset, "state": agent.initial_state(NUM)}
        torch.save(calls, folder / "calls.pt")
        expected[folder] = _play(agent, obs, reset)
    subprocess.run([sys.executable, "-c", ALONE, *map(str, expected)], check=True, timeout=120)
    for folder, (actions, state) in expected.items():
        got = torch.load(folder / "answer.pt", weights_only=True)
        assert_close(got["actions"], actions, torch.float32, len(actions))
        assert got["state"].keys() == state.keys()
        for key, value in state.items():
            assert_close(got["state"][key], value, torch.float32, len(actions))


def test_nothing_half_written_stays_beside_the_file(tmp_path):
    agent = make_agent()
    export_policy(agent.network, {"obs": torch.zeros(3)}, tmp_path / "a" / "policy.pt2")
    assert [p.name for p in Path(tmp_path / "a").iterdir()] == ["policy.pt2"]
