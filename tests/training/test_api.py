"""The Python interface: load and act, learn, save, own environments, and SB3's evaluation."""

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import statewise
from statewise.training import api
from statewise.training.api import TrainedAgent
from statewise.training.checkpoint import CheckpointError, newest_checkpoint
from statewise.training.config import ConfigError
from statewise.training.evaluate import EvalOptions, EvalResult, evaluate, evaluate_run
from statewise.training.log import read_metrics
from statewise.training.run import RunDirectory, RunError
from tests.training.toys import CounterEnv

TINY: dict[str, Any] = {
    "env__num_envs": 4,
    "rollout_steps": 16,
    "total_steps": 256,
    "agent__encoder__hidden": [16],
    "agent__sequence__num_layers": 1,
    "agent__sequence__d_model": 8,
    "agent__head_hidden": [8],
}
POPGYM = "ppo/repeat_previous_easy"
CARTPOLE = "ppo/cartpole"
pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a short run on CartPole."""
    path = tmp_path_factory.mktemp("runs") / "run"
    statewise.train(CARTPOLE, run=path, **TINY)
    return path


def weights(agent: TrainedAgent) -> dict[str, Tensor]:
    return {key: x.clone() for key, x in agent.agent.network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def play(agent: TrainedAgent, num_steps: int = 30, seed: int = 0) -> list[Any]:
    """Return what greedy play gives: observations, actions and rewards."""
    env = agent.make_env()
    obs, _ = env.reset(seed=seed)
    memory, start, seen = None, np.array([True]), []
    for _ in range(num_steps):
        action, memory = agent.predict(obs, memory, start, deterministic=True)
        after, reward, terminated, truncated, _ = env.step(action)
        seen.append(({k: v.tolist() for k, v in obs.items()}, np.asarray(action).tolist(), reward))
        start = np.array([terminated or truncated])
        obs = env.reset()[0] if start[0] else after
    env.close()
    return seen


# --- load and act


def test_three_lines_load_a_run_and_act(run: Path) -> None:
    agent = statewise.load(run)
    env = agent.make_env()
    action, memory = agent.predict(env.reset(seed=0)[0], deterministic=True)
    assert env.action_space.contains(action)
    assert memory.keys() == agent.agent.initial_state(1).keys()
    assert agent.step >= 256
    assert agent.preset == CARTPOLE


def test_a_loaded_agent_has_the_weights_and_settings_of_the_run(run: Path) -> None:
    agent = statewise.load(run)
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert same(weights(statewise.load(run, checkpoint=int(newest.name))), weights(agent))
    first = statewise.load(run, checkpoint=0)
    assert first.step == 0
    assert not same(weights(first), weights(agent))
    assert agent.config.agent.sequence.d_model == 8
    with pytest.raises(CheckpointError, match="cannot be read"):
        statewise.load(run, checkpoint=17)


def test_a_run_of_another_device_is_loaded_where_it_is_wanted(run: Path, tmp_path: Path) -> None:
    there = shutil.copytree(run, tmp_path / "run")
    text = (there / "config.yaml").read_text()
    (there / "config.yaml").write_text(text.replace("device: cpu", "device: cuda:9"))
    with pytest.raises(ConfigError, match="device: expected a device of this machine"):
        statewise.load(there)
    assert same(weights(statewise.load(there, device="cpu")), weights(statewise.load(run)))
    with pytest.raises(ConfigError, match="device: expected cpu, cuda or cuda:N, got 'tpu'"):
        statewise.load(there, device="tpu")


def test_batched_and_single_observations_give_the_same_actions(run: Path) -> None:
    agent = statewise.load(run)
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    actions, memory = agent.predict({"obs": obs}, deterministic=True)
    assert actions.shape == (3,)
    for i in range(3):
        action, one = agent.predict({"obs": obs[i]}, deterministic=True)
        assert np.shape(action) == ()
        assert action == actions[i]
        for key, x in one.items():
            assert torch.allclose(x[0], memory[key][i], atol=1e-6)
    plain, _ = agent.predict(obs, deterministic=True)  # an array stands for the entry "obs"
    assert np.array_equal(plain, actions)


def test_episode_start_clears_the_memory_of_its_row_only(run: Path) -> None:
    agent = statewise.load(run)
    draw = np.random.default_rng(0)
    obs = draw.normal(size=(5, 2, 4)).astype(np.float32)
    memory = None
    for t in range(4):
        start = np.full(2, t == 0)
        _, memory = agent.predict({"obs": obs[t]}, memory, start, deterministic=True)
    _, mixed = agent.predict({"obs": obs[4]}, memory, np.array([True, False]), deterministic=True)
    _, fresh = agent.predict({"obs": obs[4]}, None, None, deterministic=True)
    _, going = agent.predict({"obs": obs[4]}, memory, np.zeros(2, bool), deterministic=True)
    for key in mixed:
        assert torch.equal(mixed[key][0], fresh[key][0])
        assert torch.equal(mixed[key][1], going[key][1])
        assert not torch.equal(fresh[key], going[key])


def test_a_memory_without_episode_start_warns_once(run: Path) -> None:
    agent = statewise.load(run)
    obs = {"obs": np.zeros(4, np.float32)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, memory = agent.predict(obs)
        _, memory = agent.predict(obs, memory, np.array([False]))
    with pytest.warns(UserWarning, match="without episode_start") as caught:
        _, memory = agent.predict(obs, memory)
    assert [one.filename for one in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.predict(obs, memory)


def test_sampling_is_random_and_the_mode_is_not(run: Path) -> None:
    agent = statewise.load(run)
    obs = {"obs": np.zeros((400, 4), np.float32)}
    sampled, _ = agent.predict(obs)
    assert 0 < sampled.mean() < 1
    greedy, _ = agent.predict(obs, deterministic=True)
    assert len(set(greedy.tolist())) == 1


def test_an_observation_that_does_not_fit_is_named(run: Path) -> None:
    agent = statewise.load(run)
    with pytest.raises(ValueError, match=r"expected the entry 'obs' .* take it from agent.wrap"):
        agent.predict({"picture": np.zeros(4)})
    for shape in ((3,), (2, 3), (1, 2, 4), ()):
        with pytest.raises(ValueError, match=r"expected 'obs' to be \(4,\) or"):
            agent.predict({"obs": np.zeros(shape)})


def test_a_folder_that_is_no_run_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        statewise.load(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"config\.yaml and manifest\.json missing"):
        statewise.load(tmp_path)


# --- learn, save


def test_learn_save_and_load_keep_everything(tmp_path: Path) -> None:
    agent = statewise.make(POPGYM, **TINY)
    before = weights(agent)
    assert agent.step == 0
    assert agent.learn(300) is agent
    assert agent.step >= 300
    assert not same(before, weights(agent))
    path = agent.save(tmp_path / "agent")
    other = statewise.load(path)
    assert same(weights(other), weights(agent))
    assert other.step == agent.step
    assert play(other) == play(agent)
    # optimiser and generators too: both learn on alike
    assert same(weights(other.learn(100)), weights(agent.learn(100)))
    assert other.config == agent.config


def test_an_agent_saved_again_after_learning_is_the_one_loaded(tmp_path: Path) -> None:
    agent = statewise.make(CARTPOLE, **TINY)
    agent.save(tmp_path / "agent")
    agent.learn(64).save(tmp_path / "agent")
    assert same(weights(statewise.load(tmp_path / "agent")), weights(agent))


def test_the_agent_just_saved_is_the_one_loaded_even_from_a_used_folder(tmp_path: Path) -> None:
    statewise.make(CARTPOLE, **TINY).learn(200).save(tmp_path / "agent")
    young = statewise.make(CARTPOLE, **TINY).learn(64)  # fewer steps than the one before
    young.save(tmp_path / "agent")
    assert same(weights(statewise.load(tmp_path / "agent")), weights(young))


def test_an_agent_is_not_saved_over_one_with_other_settings(tmp_path: Path) -> None:
    path = statewise.make(CARTPOLE, **TINY).save(tmp_path / "agent")
    wider = statewise.make(CARTPOLE, **TINY | {"agent__sequence__d_model": 16}).learn(64)
    with pytest.raises(RunError, match="other settings"):
        wider.save(path)
    assert statewise.load(path).step == 0


def test_an_agent_is_not_saved_into_a_training_run(run: Path) -> None:
    with pytest.raises(RunError, match="is a training run"):
        statewise.load(run).save(run)


def test_learning_in_two_parts_anneals_to_zero_in_each() -> None:
    agent = statewise.make(CARTPOLE, **TINY).learn(128)
    first = agent.step
    agent.learn(128)
    assert agent.step >= first + 128
    assert agent.agent.total_steps == first + 128


def test_train_is_the_same_path_as_make_and_learn(tmp_path: Path) -> None:
    trained = statewise.train(CARTPOLE, run=tmp_path / "run", **TINY)
    learned = statewise.make(CARTPOLE, **TINY).learn(TINY["total_steps"])
    assert same(weights(trained), weights(learned))


def test_overrides_of_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"agent\.learning_rat.*learning_rate"):
        statewise.make(CARTPOLE, agent__learning_rat=0.1)


def test_cuda_without_a_device_says_what_to_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match=r"^device: .*--device cpu"):
        statewise.make(CARTPOLE, device="cuda")


# --- own environments and encoders


class Reach(CounterEnv):
    """The counter with a continuous action."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.action_space = spaces.Box(-scale, scale, (2,))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        obs, reward, terminated, truncated, info = super().step(0)
        return obs, reward - float(np.square(action).sum()), terminated, truncated, info


class Mine(nn.Module):
    """An encoder of one's own."""

    def __init__(self, obs_space: spaces.Dict) -> None:
        super().__init__()
        self.d_out = 5
        self.layer = nn.Linear(obs_space["obs"].shape[0], 5)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return self.layer(obs["obs"]).tanh()


@pytest.mark.parametrize("factory", [CounterEnv, Reach], ids=["discrete", "continuous"])
def test_an_environment_of_ones_own_is_learned_saved_and_loaded(
    factory: type[gymnasium.Env[Any, Any]], tmp_path: Path
) -> None:
    agent = statewise.make(CARTPOLE, env=factory, env__id="mine", **TINY)
    agent.learn(100).save(tmp_path / "agent")
    other = statewise.load(tmp_path / "agent", env=factory)
    assert play(other) == play(agent)
    env = agent.make_env()
    action, _ = agent.predict(env.reset(seed=0)[0])
    assert env.action_space.contains(action)


def test_keyword_arguments_reach_ones_own_environment() -> None:
    agent = statewise.make(CARTPOLE, env=Reach, env__id="mine", **TINY, env__kwargs={"scale": 0.25})
    assert agent.action_space.high.tolist() == [0.25, 0.25]
    obs = {"obs": np.zeros((50, 3), np.float32)}
    actions, _ = agent.predict(obs)  # deviation 1 without clipping
    assert np.abs(actions).max() == 0.25


def test_an_encoder_of_ones_own_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    agent = statewise.make(CARTPOLE, encoder=Mine, **TINY)
    before = weights(agent)
    agent.learn(64).save(tmp_path / "agent")
    assert not torch.equal(before["encoder.layer.weight"], weights(agent)["encoder.layer.weight"])
    assert play(statewise.load(tmp_path / "agent", encoder=Mine)) == play(agent)
    with pytest.raises(CheckpointError, match=r"another agent or environment: .*encoder"):
        statewise.load(tmp_path / "agent")


def test_a_run_with_ones_own_environment_trains_in_a_run_directory(tmp_path: Path) -> None:
    agent = statewise.train(
        CARTPOLE, run=tmp_path / "run", env=Reach, env__id="mine", encoder=Mine, **TINY
    )
    assert agent.step >= 256
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    alone = statewise.load(tmp_path / "run", encoder=Mine)
    with pytest.raises(RunError, match=r"expected the environment of your own .*env=\.\.\."):
        alone.make_env()


# --- evaluation


def sb3_episodes(
    agent: TrainedAgent, num_envs: int, episodes: int, seed: int, make: Any
) -> tuple[list[tuple[int, float, int]], float]:
    """Return (environment, return, length) of each episode of evaluate_policy, and the mean."""
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    from stable_baselines3.common.vec_env import DummyVecEnv

    vec = DummyVecEnv([make] * num_envs)
    vec.seed(seed)
    which: list[int] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> None:
        if local["done"]:
            which.append(local["i"])

    returns, lengths = evaluation.evaluate_policy(
        agent,
        vec,
        n_eval_episodes=episodes,
        deterministic=True,
        return_episode_rewards=True,
        callback=note,
        warn=False,
    )
    vec.close()
    rows = sorted(
        zip(which, range(len(which)), returns, lengths, strict=True), key=lambda row: row[:2]
    )
    return [(i, float(r), int(n)) for i, _, r, n in rows], float(np.mean(returns))


def flat(result: EvalResult, seed: int) -> list[tuple[int, float, int]]:
    return [(row["seed"] - seed, row["return"], row["length"]) for row in result.episodes]


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("preset", [POPGYM, CARTPOLE])
def test_sb3_evaluates_as_statewise_does(preset: str, num_envs: int, tmp_path: Path) -> None:
    agent = statewise.make(preset, **TINY).learn(128)
    if preset == POPGYM:
        pytest.importorskip("popgym")
    expected, mean = sb3_episodes(
        agent, num_envs, 8, 7, lambda: agent.wrap(gymnasium.make(agent.config.env.id))
    )
    agent.save(tmp_path / "agent")
    result = evaluate_run(tmp_path / "agent", episodes=8, num_envs=num_envs, seed=7)
    assert flat(result, 7) == expected
    assert len({row[2] for row in expected}) > 1 or preset == POPGYM
    assert result.return_mean == pytest.approx(mean, abs=1e-12)
    report = (tmp_path / "agent" / "eval.json").read_text()
    assert f'"env": "{agent.config.env.id}"' in report


def test_the_plain_call_of_sb3_works_on_a_wrapped_environment() -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    from stable_baselines3.common.monitor import Monitor

    agent = statewise.make(CARTPOLE, **TINY)
    env = Monitor(agent.wrap(gymnasium.make("CartPole-v1")))
    env.reset(seed=3)
    mean, deviation = evaluation.evaluate_policy(agent, env, n_eval_episodes=3)
    assert 8 <= mean <= 500
    assert deviation >= 0


@pytest.mark.parametrize("how", ["auto", "sync", "vector_entry_point"])
def test_evaluation_seeds_environment_i_with_seed_plus_i_however_it_trains(
    how: str, tmp_path: Path
) -> None:
    agent = statewise.make(CARTPOLE, **TINY | {"env__vectorization": how})
    path = agent.save(tmp_path / how)
    together = flat(evaluate_run(path, episodes=3, num_envs=3, seed=5), 5)
    alone = [flat(evaluate_run(path, episodes=1, num_envs=1, seed=5 + i), 5)[0] for i in range(3)]
    assert together == alone


def test_evaluation_counts_complete_episodes_evenly() -> None:
    agent = statewise.make(CARTPOLE, env=CounterEnv, env__id="mine", **TINY)
    for mode in ("next_step", "same_step"):
        env = dataclasses.replace(agent.config.env, autoreset=mode)
        agent.config = dataclasses.replace(agent.config, env=env)
        vector = agent.make_vector_env(3)
        result = evaluate(agent.agent, vector, episodes=8, seed=2, explore=False)
        vector.close()
        assert [(row["seed"], row["index"]) for row in result.episodes] == [
            *[(2, i) for i in range(2)],
            *[(3, i) for i in range(3)],
            *[(4, i) for i in range(3)],
        ]
        for row in result.episodes:
            length = row["length"]
            assert 3 <= length <= 9
            counted = length * (length + 1) / 2  # and at most 2/8 more per step
            assert counted <= row["return"] <= counted + length / 4
        mean = np.mean([row["return"] for row in result.episodes])
        assert result.return_mean == pytest.approx(mean)
        assert result.return_ci95[0] <= mean <= result.return_ci95[1]


def test_evaluation_repeats_and_does_not_disturb_the_agent(run: Path) -> None:
    agent = statewise.load(run)
    before = weights(agent)
    results = []
    for _ in range(2):
        vector = agent.make_vector_env(2)
        results.append(evaluate(agent.agent, vector, episodes=4, seed=1, explore=False))
        vector.close()
    assert results[0] == results[1]
    assert same(weights(agent), before)
    assert evaluate_run(run, episodes=4) == evaluate_run(run, episodes=4)
    sampled = evaluate_run(run, episodes=4, actions="sample")
    assert sampled == evaluate_run(run, episodes=4, actions="sample")


def test_resuming_a_saved_agent_says_what_to_do_instead(tmp_path: Path) -> None:
    path = statewise.make(CARTPOLE, **TINY).save(tmp_path / "agent")
    with pytest.raises(RunError, match=r"load\(\.\.\.\)\.learn"):
        api.resume_training(path, ["statewise", "train"], quiet=True)


@pytest.mark.parametrize("actions", ["greedy", "sample"])
def test_evaluations_on_the_way_are_logged_and_change_nothing_else(
    run: Path, tmp_path: Path, actions: str
) -> None:
    plain = statewise.load(run)
    evaluated = statewise.train(
        CARTPOLE,
        run=tmp_path / "run",
        eval__every_steps=100,
        eval__episodes=3,
        eval__actions=actions,
        **TINY,
    )
    rows = read_metrics(RunDirectory.open(tmp_path / "run"))
    steps = [row["step"] for row in rows]
    first = [next(step for step in steps if step >= least) for least in (100, 200, 256)]
    assert [row["step"] for row in rows if "eval/return_mean" in row] == first
    result, _ = evaluated.evaluate(EvalOptions())
    assert rows[-1]["eval/return_mean"] == result.return_mean
    assert same(weights(plain), weights(evaluated))


def test_a_run_on_an_environment_of_ones_own_is_never_played_on_another(tmp_path: Path) -> None:
    def own() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CartPole-v1", max_episode_steps=5)

    agent = statewise.make(CARTPOLE, env=own, **TINY)  # the id of the preset stays
    saved = agent.save(tmp_path / "saved")
    with pytest.raises(RunError, match=r"expected the environment of your own .*statewise\.load"):
        statewise.load(saved).make_env()
    again = statewise.load(saved, env=own)
    assert again.make_env().reset(seed=0)[0]["obs"].shape == (4,)
    plain = statewise.make(CARTPOLE, **TINY).save(tmp_path / "plain")
    assert statewise.load(plain).env_id == "CartPole-v1"
