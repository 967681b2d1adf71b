"""`bench envs` and `bench rollout`: what they measure, and what they refuse to time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statewise.bench import cli, envs, envs_systems, rollout, rollout_systems, rounds, worker
from statewise.bench.envs import CASES, DM_ENV, ENVPOOL, OURS, SYNC
from statewise.bench.rollout import ALONE, S5, WITHOUT, RolloutOptions, run_rollout
from statewise.envs.build import EnvConfig, find_family, make_env
from statewise.training.collector import Collector
from statewise.training.schema import ConfigError


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "launch", lambda job: worker.run_job(job))


@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")  # of envpool, raw
def test_a_quick_run_has_ours_and_the_backend_alone(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    words = ["envs", "--quick", "--json", str(out)]
    for text in ("CartPole-v1, sync", "envpool:CartPole", "bsuite"):
        words += ["--case", text]
    assert cli.bench(words) == 0
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(out.read_text()):
        assert row["bench"] == "envs"
        cases.setdefault(row["case"], []).append(row)
    peers = {
        "CartPole-v1, sync, 2 environments": SYNC,
        "envpool:CartPole-v1, auto, 2 environments": ENVPOOL,
        "bsuite:memory_len/5, sync, 2 environments": DM_ENV,
    }
    assert list(cases) == list(peers)
    for case, (ours, theirs, beside) in cases.items():
        assert (ours["system"], theirs["system"]) == (OURS, peers[case])
        assert ours["unit"] == theirs["unit"] == "steps/s"
        assert beside["value"] == pytest.approx(ours["value"] / theirs["value"])


def test_every_case_belongs_to_a_family_and_has_its_peer() -> None:
    for case in CASES:
        assert case.peer in envs_systems.PEERS
        assert find_family(case.env_id).example
    assert {find_family(case.env_id).prefix for case in CASES} >= {"envpool:", "gymnax:", "ALE/"}


def test_another_case_is_refused_with_their_names() -> None:
    with pytest.raises(ConfigError, match="--case: expected a part of one of CartPole-v1, sync"):
        cli.bench(["envs", "--case", "nothing"])


class Stale:
    """Repeats a reward in the row that only resets, or calls that row valid."""

    def __init__(self, fault: str) -> None:
        self._env = make_env(EnvConfig(id="bsuite:memory_len/0", num_envs=2))
        self._fault, self.num_envs = fault, 2
        self.action_space = self._env.action_space

    def reset(self, seed: int | None = None) -> Any:
        return self._env.reset(seed)

    def step(self, action: Any) -> Any:
        arrived = self._env.step(action)
        if self._fault == "reward":
            return arrived._replace(reward=np.ones(2, np.float32))
        return arrived._replace(valid=np.ones(2, bool))


@pytest.mark.parametrize("fault", ["reward", "valid"])
def test_an_adapter_with_wrong_rows_is_not_timed(fault: str) -> None:
    env = Stale(fault)
    actions = envs_systems.draw_actions(env.action_space, 2)
    assert fault in envs_systems.refusal(env, actions)
    assert envs_systems.refusal(env._env, actions) == ""


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    row = find_family("CartPole-v1")._replace(missing=lambda: "pip install it")
    for systems in (envs_systems, rollout_systems):
        monkeypatch.setattr(systems, "find_family", lambda _: row)
        assert systems.run_job({"env": "CartPole-v1"}) == {"missing": "pip install it"}


def test_a_rollout_is_measured_with_memory_without_and_without_a_policy() -> None:
    options = RolloutOptions(
        cases=(rollout.Case("CartPole-v1", 2, 4),), threads=1, rounds=1, reps=1, seconds=0.01
    )
    outcome = run_rollout(options, lambda _: None)
    *rates, beside = outcome.figures
    assert [figure.system for figure in rates] == [S5, WITHOUT, ALONE]
    assert (beside.metric, beside.value) == (rollout.BESIDE, rates[0].value / rates[1].value)
    assert not outcome.refused
    assert not outcome.missing


def job(system: str) -> dict[str, Any]:
    return {"system": system, "env": "CartPole-v1", "num_envs": 2, "threads": 1}


def test_a_policy_that_acts_otherwise_than_it_learns_is_not_timed() -> None:
    agent, env = rollout_systems.make(job(S5))
    collector = Collector(env, agent, 30)
    collector.start(0)
    collected = collector.collect()
    assert rollout_systems.refusal(agent, collected) == ""
    step = collected.batch.step
    assert step.reset[:, 1:].any()
    wrong = step._replace(reset=torch.zeros_like(step.reset))
    batch = collected.batch._replace(step=wrong)
    assert "off one pass" in rollout_systems.refusal(agent, collected._replace(batch=batch))


def test_without_memory_a_step_depends_on_its_observation_alone() -> None:
    agent, env = rollout_systems.make(job(WITHOUT))
    obs, is_first = env.reset(0)
    tensors = {key: torch.from_numpy(value) for key, value in obs.items()}
    flags = torch.from_numpy(is_first)
    values = []
    state = agent.initial_state(2)
    for _ in range(2):
        _, extras, state = agent.act(tensors, state, flags, flags, explore=False)
        values.append(extras["value"])
    assert torch.equal(*values)
    assert envs.METRIC == rollout.METRIC
