"""The Python interface of agents that learned from data: make, fit, train, load, predict, SB3."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import statewise
from statewise.__main__ import main
from statewise.data import EpisodeDataset, load_dataset
from statewise.data.episode import DatasetInfo
from statewise.data.errors import DatasetError
from statewise.envs.protocol import EnvError
from statewise.training.api import PlayingAgent, TrainedOfflineAgent, resume_training
from statewise.training.checkpoint import CheckpointError
from statewise.training.config import ConfigError
from statewise.training.evaluate import EvalOptions, EvalResult
from statewise.training.run import RunDirectory, RunError
from tests.training import offline_cases as cases
from tests.training.test_api import sb3_episodes
from tests.training.test_resume import assert_same
from tests.training.toys import CounterEnv

DT, S4, BC = "dt/pendulum", "decision_s4/pendulum", "bc/pendulum"


@pytest.fixture(scope="module", autouse=True)
def _ready(no_waiting_for_the_disk: None) -> None:
    cases.register()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.written(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    statewise.train(DT, run=path, data=data, **cases.DT)
    return path


def state(agent: PlayingAgent) -> dict[str, Any]:
    whole: dict[str, Any] = agent.agent.state_dict()
    return whole


# --- load and act


def test_three_lines_load_a_run_and_act_without_the_data(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statewise.training.trained_offline.read_data", None)
    agent = statewise.load(run)
    env = agent.make_env()
    obs, _ = env.reset(seed=0)
    assert obs["return_to_go"].tolist() == [cases.TARGETS[0]]
    action, memory = agent.predict(obs, deterministic=True)
    assert env.action_space.contains(action)
    assert memory.keys() == agent.agent.initial_state(1).keys()
    assert agent.step == cases.DT["total_updates"]
    assert agent.preset == DT
    assert RunDirectory.open(run).read_manifest()["command"][-2] == "--data"
    assert statewise.load(run, checkpoint=5).step == 5
    with pytest.raises(CheckpointError, match="cannot be read"):
        statewise.load(run, checkpoint=7)


def test_wrap_asks_for_the_first_target_of_the_run_or_another(run: Path) -> None:
    agent = statewise.load(run)
    assert isinstance(agent, TrainedOfflineAgent)
    for target, expected in ((None, cases.TARGETS[0]), (-3.5, -3.5)):
        env = agent.wrap(gymnasium.make(cases.COUNTER), target=target)
        obs, _ = env.reset(seed=1)
        assert obs["return_to_go"].tolist() == [expected]
        assert obs["previous_action"].tolist() == [0, 0, 0]
        obs, reward, *_ = env.step(2)
        assert obs["return_to_go"].tolist() == [expected - reward]
        assert obs["previous_action"].tolist() == [0, 0, 1]
    with pytest.raises(DatasetError, match=r"^targets: expected one or more finite"):
        agent.wrap(gymnasium.make(cases.COUNTER), target=float("nan"))


def test_an_environment_that_was_not_wrapped_is_named(run: Path) -> None:
    agent = statewise.load(run)
    with pytest.raises(ValueError, match=r"the entry 'previous_action' .* from agent.wrap"):
        agent.predict(gymnasium.make(cases.COUNTER).reset()[0])


# --- learn, save


def test_train_is_the_same_path_as_make_and_fit(run: Path, data: Path) -> None:
    made = statewise.make(DT, data=data, **cases.DT)
    assert made.step == 0
    assert made.fit(n_steps=12) is made
    assert_same(state(made), state(statewise.load(run)))
    whole = statewise.make(DT, data=load_dataset(data), **cases.DT).fit()
    assert_same(state(whole), state(made))


def test_fit_goes_on_after_the_end_of_the_schedule(run: Path, data: Path, tmp_path: Path) -> None:
    agent = statewise.load(run)
    before = {key: x.clone() for key, x in agent.agent.policy.state_dict().items()}
    assert agent.fit(data, 4).step == 16
    after = agent.agent.policy.state_dict()
    assert not torch.equal(after["head.linear.weight"], before["head.linear.weight"])
    assert torch.equal(after["inputs.mean"], before["inputs.mean"])  # of its own data for good
    again = statewise.load(agent.save(tmp_path / "agent"))
    assert_same(state(again), state(agent))
    # optimiser and generators too: both go on alike, on the data of the run
    assert_same(state(again.fit(n_steps=2)), state(agent.fit(data, 2)))


def test_fit_takes_episodes_or_several_files_and_changes_them_as_the_run_says(
    data: Path, tmp_path: Path
) -> None:
    changes = cases.DT | {"data__keep_best": 0.5}
    other = cases.written(tmp_path, "other", seed=50)
    agents = [statewise.make(DT, data=data, **changes) for _ in range(2)]
    agents[0].fit([str(data), other], 3)
    from statewise.data import concatenate

    both = concatenate([load_dataset(data), load_dataset(other)])
    agents[1].fit(both, 3)
    assert_same(state(agents[0]), state(agents[1]))
    plain = statewise.make(DT, data=data, **cases.DT).fit(both, 3)
    assert plain.agent.policy.state_dict()["head.linear.weight"].tolist() != (
        agents[1].agent.policy.state_dict()["head.linear.weight"].tolist()
    )


def test_fit_refuses_data_of_another_environment(run: Path) -> None:
    with pytest.raises(DatasetError, match="expected data of toy/OfflineCounter-v0, got Other-v0"):
        statewise.load(run).fit(cases.counter_data(env_id="Other-v0"), 1)


def test_methods_of_the_other_kind_of_agent_say_what_to_call(run: Path) -> None:
    agent = statewise.load(run)
    with pytest.raises(ConfigError, match=r"^learn: .* dt, which learns from data: call fit\(data"):
        agent.learn(100)
    with pytest.raises(ConfigError, match=r"^export: expected an agent of ppo, got dt"):
        agent.export("policy.pt2")
    online = statewise.make("ppo/cartpole", env__num_envs=4)
    with pytest.raises(ConfigError, match=r"^fit: .* ppo, which learns in its env.*: call learn\("):
        online.fit(cases.counter_data(), 3)
    for given in ("a.hdf5", cases.counter_data()):
        with pytest.raises(ConfigError, match=r"^data: expected none for ppo"):
            statewise.make("ppo/cartpole", data=given)
    with pytest.raises(ConfigError, match=r"^encoder: expected none for dt"):
        statewise.make(DT, data=cases.counter_data(), encoder=torch.nn.Identity, **cases.DT)


def test_a_saved_agent_is_no_run(run: Path, tmp_path: Path) -> None:
    path = statewise.load(run).save(tmp_path / "agent")
    with pytest.raises(RunError, match=r"holds a saved agent, not a run: use load\(\.\.\.\)\.fit"):
        resume_training(path, ["statewise", "train"], quiet=True)
    with pytest.raises(RunError, match="is a training run"):
        statewise.load(run).save(run)


def test_an_environment_of_ones_own_is_played_in(tmp_path: Path) -> None:
    changes = cases.DT | {"env__id": ""}
    data = cases.counter_data(env_id=None)
    agent = statewise.make(DT, data=data, env=CounterEnv, **changes).fit(n_steps=2)
    assert agent.env_id == "own"
    path = agent.save(tmp_path / "agent")
    other = statewise.load(path, env=CounterEnv)
    assert other.evaluate(EvalOptions()) == agent.evaluate(EvalOptions())
    alone = statewise.load(path)
    assert alone.env_id == "own"
    with pytest.raises(RunError, match=r"^expected the environment of your own that .*env=\.\.\."):
        alone.evaluate()


@pytest.mark.parametrize("system", sorted(cases.TINY))
def test_what_an_agent_refuses_of_its_settings_is_one_line(
    system: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = cases.words(cases.TINY[system] | {"agent__encoder__hidden": [8]})
    argv = ["train", f"{system}/pendulum", "--data", str(data), "--run", str(tmp_path / "run")]
    assert main([*argv, *words]) == 2
    error = capsys.readouterr().err
    problem = "encoder: expected the defaults, as there are no pictures in ['obs'], got Encoder"
    if system == "td3bc":  # which looks at the actions first
        problem = "action_space: expected a float Box for TD3+BC, got Discrete(3)"
    assert error.startswith(f"error: agent: {problem}")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_environment_that_is_not_there_is_an_env_error(data: Path) -> None:
    changes = cases.DT | {"env__id": "toy/Nowhere-v0"}
    with pytest.raises(EnvError, match="expected the id of a registered environment"):
        statewise.make(DT, data=data, **changes)


def test_an_agent_that_is_not_told_a_return_takes_no_target(data: Path, tmp_path: Path) -> None:
    agent = statewise.train(BC, run=tmp_path / "run", data=data, **cases.BC)
    assert isinstance(agent, TrainedOfflineAgent)
    assert list(agent.obs_space) == ["obs"]
    result, report = agent.evaluate(EvalOptions())
    assert [one["target"] for one in report["targets"]] == [None]
    assert report["targets"][0]["episodes"] == result.episodes
    assert len(result.episodes) == 5
    for refused in (
        lambda: agent.wrap(gymnasium.make(cases.COUNTER), target=3.0),
        lambda: agent.make_env(target=3.0),
        lambda: agent.evaluate(EvalOptions(targets=(3.0,))),
    ):
        with pytest.raises(ConfigError, match=r"^targets: expected none for bc, which is not told"):
            refused()


# --- Stable-Baselines3


def pendulum_data() -> EpisodeDataset:
    episodes = cases.play(gymnasium.make("Pendulum-v1", max_episode_steps=60), 3, seed=5)
    return EpisodeDataset.from_episodes(episodes, DatasetInfo(env_id="Pendulum-v1"))


def flat(result: EvalResult, seed: int) -> list[tuple[int, float, int]]:
    return [(row["seed"] - seed, row["return"], row["length"]) for row in result.episodes]


@pytest.mark.parametrize(("preset", "num_envs"), [(DT, 1), (DT, 2), (S4, 2), (BC, 2)])
def test_sb3_evaluates_as_statewise_does(preset: str, num_envs: int) -> None:
    tiny = {DT: cases.DT | {"agent__num_timesteps": 60}, S4: cases.S4, BC: cases.BC}[preset]
    own = {"env__id": "Pendulum-v1", "env__kwargs": {"max_episode_steps": 60}}
    agent = statewise.make(preset, data=pendulum_data(), **tiny | own).fit(n_steps=3)
    assert isinstance(agent, TrainedOfflineAgent)
    target = None if preset == BC else -150.0
    expected, mean = sb3_episodes(
        agent,  # type: ignore[arg-type]
        num_envs,
        4,
        7,
        lambda: agent.wrap(gymnasium.make("Pendulum-v1", max_episode_steps=60), target=target),
    )
    asked = None if target is None else (target,)
    options = EvalOptions(episodes=4, num_envs=num_envs, seed=7, targets=asked)
    result, report = agent.evaluate(options)
    assert flat(result, 7) == expected
    assert result.return_mean == pytest.approx(mean, abs=1e-9)
    assert report["target"] == target
    assert len({round(one[1]) for one in expected}) == 4


def test_the_plain_call_of_sb3_works_on_a_wrapped_environment(run: Path) -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    from stable_baselines3.common.monitor import Monitor

    agent = statewise.load(run)
    env = Monitor(agent.wrap(gymnasium.make(cases.COUNTER)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, _ = evaluation.evaluate_policy(agent, env, n_eval_episodes=3)
    assert 6 <= mean <= 48
    assert np.isfinite(mean)
