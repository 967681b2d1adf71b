"""Fine-tuning in the environment: what is played, what is asked for, runs, resuming, errors."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import statewise
from statewise.__main__ import main
from statewise.agents.offline.decision_s4 import DecisionS4
from statewise.agents.offline.finetune_s4 import ActorCritic, ActorCriticConfig
from statewise.agents.offline.hidden_replay import PlayedEpisode
from statewise.agents.offline.inputs import ActionCode
from statewise.agents.offline.weighted_bc import WeightedBCConfig
from statewise.training.api import TrainedOfflineAgent
from statewise.training.config import ConfigError
from statewise.training.finetune import FinetuneTraining, Goal
from statewise.training.finetune_config import FinetuneConfig, noise_at
from statewise.training.finetune_play import EpisodePlayer, explored
from statewise.training.finetune_run import (
    finetune,
    finetune_presets,
    finetune_run,
    load_finetune,
    resume_finetune,
)
from statewise.training.log import read_metrics
from statewise.training.run import RunDirectory, RunError
from tests.training import finetune_cases as cases
from tests.training.test_resume import assert_same, curves, final_state

GOAL = Goal(20.0, 10.0, 30.0)


@pytest.fixture(scope="module", autouse=True)
def _ready(no_waiting_for_the_disk: None) -> None:
    cases.register()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.trained_run(tmp_path_factory.mktemp("finetune"))


def opened(source: Path) -> TrainedOfflineAgent:
    trained = statewise.load(source)
    assert isinstance(trained, TrainedOfflineAgent)
    return trained


def settings(**changes: Any) -> FinetuneConfig:
    critic = ActorCriticConfig(
        **{
            "critic_only_steps": 20,
            "critic_only_factor": 1,
            "replay_size": 100,
            "batch_size": 4,
            "actor_lr": 1e-3,
            **changes.pop("actor_critic", {}),
        }
    )
    values: dict[str, Any] = {
        "total_steps": 60,
        "num_envs": 2,
        "train_every": 4,
        "updates_per_train": 2,
        "learning_starts": 8,
        "recalibrate_every": 3,
        "log_every_steps": 15,
        "checkpoint_every_steps": 30,
        "checkpoints_kept": 5,
    }
    return FinetuneConfig(actor_critic=critic, **(values | changes))


def training(source: Path, config: FinetuneConfig, goal: Goal = GOAL) -> FinetuneTraining:
    trained = opened(source)
    assert isinstance(trained.agent, DecisionS4)
    return FinetuneTraining(config, trained.agent, environments(trained, config), goal)


def environments(trained: TrainedOfflineAgent, config: FinetuneConfig) -> Any:
    from statewise.envs.build import make_env

    return make_env(trained.config.env.config(cases.ID, config.num_envs, ("previous_action",)))


def weights(agent: DecisionS4) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in agent.policy.named_parameters()}


@pytest.fixture(scope="module")
def episodes(source: Path) -> list[PlayedEpisode]:
    loop = training(source, settings(num_envs=3, train_every=6))
    loop.begin()
    steps, found = loop.player.play(60, 0.3)
    assert steps < 3 * 60
    assert len(found) > 15
    return found


def test_a_played_episode_holds_its_rows_in_step(episodes: list[PlayedEpisode]) -> None:
    kinds = set()
    for one in episodes:
        T = int(one.obs["obs"][0, 1])  # the toy shows its length
        assert len(one.action) == len(one.reward) == T
        assert one.obs["obs"][:, 0].tolist() == list(range(T + 1))
        expected = torch.arange(T) + 1 + one.action[:, 0] * 2 / 8
        torch.testing.assert_close(one.reward, expected)
        kinds.add(one.terminated)
        assert set(one.obs) == {"obs"}
    assert kinds == {True, False}


def test_what_is_asked_for_is_drawn_per_episode_and_sinks_by_the_rewards(
    episodes: list[PlayedEpisode],
) -> None:
    asked = torch.stack([one.asked[0] for one in episodes])
    assert asked.min() >= 20 * 0.85
    assert asked.max() <= 20 * 1.15
    assert asked.max() - asked.min() > 2
    for one in episodes:
        left = one.asked[0] - torch.cat((torch.zeros(1), one.reward.cumsum(0)))
        torch.testing.assert_close(one.asked, left, atol=1e-4, rtol=0)


def test_the_memory_of_a_row_is_that_before_its_observation(
    source: Path, episodes: list[PlayedEpisode]
) -> None:
    agent = opened(source).agent
    assert isinstance(agent, DecisionS4)
    for one in episodes[:4]:
        state = agent.initial_state(1)
        for t in range(len(one.action) + 1):
            for key, value in one.state.items():
                torch.testing.assert_close(value[t], state[f"core.{key}"][0])
            given = {
                "obs": one.obs["obs"][t : t + 1],
                "previous_action": 2 * one.action[t - 1 : t] if t else torch.zeros(1, 1),
                "return_to_go": one.asked[t].view(1, 1),
            }
            first = torch.tensor([t == 0])
            _, _, state = agent.act(given, state, first, first, explore=False)


def test_stored_states_are_exact_before_the_weights_have_moved(source: Path) -> None:
    loop = training(source, settings())
    loop.begin()
    _, found = loop.player.play(30, 0.0)
    for one in found:
        loop.method.add(one)
    assert loop.method.staleness().keys() == {"staleness_0", "staleness_1"}
    assert max(loop.method.staleness().values()) < 1e-5


def test_noise_goes_in_straight_lines_from_value_to_value_after_the_quiet_steps() -> None:
    config = settings(total_steps=1000, noise=(0.2, 0.05, 0.01))
    at = {steps: noise_at(steps, 200, config) for steps in (0, 199, 200, 400, 600, 800, 1000, 2000)}
    expected = {0: 0, 199: 0, 200: 0.2, 400: 0.125, 600: 0.05, 800: 0.03, 1000: 0.01, 2000: 0.01}
    assert at == pytest.approx(expected)
    assert noise_at(700, 200, settings(noise=(0.3,))) == 0.3


def test_noise_is_in_units_of_the_bounds_and_stays_within_them() -> None:
    code = ActionCode(cases.BOX)
    action = torch.full((20_000, 1), 0.5)
    found = explored(code, action, 0.1, torch.Generator().manual_seed(0))
    assert abs(float(found.std()) - 0.2) < 0.01
    assert abs(float(found.mean()) - 0.5) < 0.01
    wide = explored(code, action, 5.0, torch.Generator().manual_seed(0))
    assert wide.abs().max() == 2.0
    assert explored(code, action, 0.0, torch.Generator()) is action


def test_what_is_asked_for_follows_what_is_got(source: Path) -> None:
    loop = training(source, settings(recalibrate_every=2, target_margin=0.1))

    def count(total: float) -> float:
        one = PlayedEpisode({}, torch.zeros(1, 1), torch.tensor([total]), torch.zeros(2), True, {})
        loop.method = Ignoring()
        loop._count(one)
        return loop.player.target

    assert count(8.0) == pytest.approx((20 + 2 * 8) / 3)
    assert count(10.0) == pytest.approx(12.0)
    assert count(11.0) == pytest.approx(10.5 + 0.1 * 20)
    assert count(30.0) == pytest.approx(12.5)
    assert count(30.0) == 20.0  # never above what was asked for at first


class Ignoring:
    """A method that learns nothing."""

    quiet_steps, quiet_noise = 0, 0.0

    def add(self, episode: PlayedEpisode) -> None:
        pass

    def train(self, steps: int, rounds: int) -> dict[str, float]:
        return {}

    def staleness(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_the_critics_own_phase_has_its_own_noise_and_leaves_the_agent_alone(
    source: Path, noise: float
) -> None:
    own_phase = {"critic_only_steps": 50, "critic_only_noise": noise}
    config = settings(total_steps=40, actor_critic=own_phase)
    loop = training(source, config)
    before, quiet = weights(loop.agent), []
    play = loop.player.play
    loop.player.play = lambda rows, noise: (quiet.append(noise), play(rows, noise))[1]  # type: ignore[method-assign,func-returns-value]
    loop.begin()
    while loop.steps < 40:
        loop.iterate()
    assert set(quiet) == {noise}
    assert isinstance(loop.method, ActorCritic)
    assert loop.method.critic_updates > 0
    for name, value in weights(loop.agent).items():
        assert torch.equal(value, before[name])


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "run"
    return finetune_run(source, path, settings(eval_every_steps=50), ["statewise"], quiet=True)


def test_a_run_goes_on_from_its_source_and_loads_as_it_does(source: Path, run: Path) -> None:
    before, after = opened(source), opened(run)
    assert before.step == 3
    assert isinstance(after.agent, DecisionS4)
    assert after.step > before.step
    moved = {
        name.rpartition(".")[2]
        for name, value in weights(after.agent).items()
        if not torch.equal(value, weights(before.agent)[name])
    }
    assert {"C", "weight"} <= moved
    assert not moved & {"log_dt", "log_neg_re", "A_im", "B"}
    assert after.manifest([])["data"] == before.manifest([])["data"]
    action, _ = after.predict(after.make_env().reset(seed=0)[0])
    assert action.shape == (1,)


def test_the_log_says_what_was_played_asked_for_and_learned(run: Path) -> None:
    rows = read_metrics(RunDirectory.open(run))
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert rows[-1]["step"] >= 60
    names = {"rollout/ep_rew_mean", "finetune/target", "finetune/noise", "train/critic_loss"}
    assert names | {"train/actor_loss", "train/staleness_0", "eval/score"} <= set(rows[-1])
    assert rows[-1]["train/staleness_1"] > 0


@pytest.mark.parametrize("method", ["actor_critic", "weighted_bc"])
def test_a_stopped_run_goes_on_bit_by_bit(
    source: Path, tmp_path: Path, method: Any, run: Path
) -> None:
    if method == "weighted_bc":
        config = FinetuneConfig(
            method="weighted_bc",
            weighted_bc=WeightedBCConfig(batch_size=3),
            **{
                key: getattr(settings(), key)
                for key in ("total_steps", "num_envs", "train_every", "learning_starts")
            },
            checkpoint_every_steps=30,
            checkpoints_kept=5,
            log_every_steps=15,
        )
        run = finetune_run(source, tmp_path / "whole", config, ["statewise"], quiet=True)
    other = tmp_path / "stopped"
    shutil.copytree(run, other)
    checkpoints = sorted((int(path.name), path) for path in (other / "checkpoints").iterdir())
    assert len(checkpoints) == 3
    shutil.rmtree(checkpoints[-1][1])
    assert resume_finetune(other, ["statewise"], quiet=True) == other
    assert_same(final_state(other), final_state(run))
    assert curves(other) == curves(run)
    with pytest.raises(RunError, match="is complete at"):
        resume_finetune(other, ["statewise"], quiet=True)


def test_the_command_finetunes_and_the_run_is_evaluated(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "tiny.yaml"
    preset.write_text(
        "total_steps: 20\nlearning_starts: 0\nmethod: weighted_bc\nweighted_bc: {batch_size: 2}\n"
    )
    path = tmp_path / "new"
    words = ["finetune", str(source), "--preset", str(preset), "--run", str(path)]
    assert main([*words, "--num-envs", "2", "--seed", "5"]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    assert main(["eval", str(path), "--episodes", "2"]) == 0
    assert "return" in capsys.readouterr().out
    manifest = RunDirectory.open(path).read_manifest()["finetune"]
    assert manifest == {"source": str(source.resolve()), "step": 3, "seed": 5, "target": 20.0}
    assert load_finetune(path / "finetune.yaml").num_envs == 2


def test_the_resume_of_training_refuses_a_run_of_fine_tuning(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: {run}: expected a run of training, got one of fine-tuning: "
        "use statewise finetune --resume\n"
    )


def test_an_agent_is_finetuned_in_memory(source: Path) -> None:
    trained = opened(source)
    assert isinstance(trained.agent, DecisionS4)
    before = weights(trained.agent)
    assert finetune(trained, settings(total_steps=40), seed=2) is trained
    assert any(not torch.equal(v, before[k]) for k, v in weights(trained.agent).items())


def test_presets_load() -> None:
    assert finetune_presets()
    for name in finetune_presets():
        assert load_finetune(name) != FinetuneConfig()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune"], "expected the run directory of a decision_s4 first"),
        (["finetune", "{source}", "--preset", "finetune/pendulun"], "did you mean finetune/pend"),
        (["finetune", "{source}", "--actor_critic.actor-rl", "1"], "expected a known field"),
        (["finetune", "{source}", "--noise", "-1"], "noise: expected numbers of 0 or more"),
        (["finetune", "{source}", "--train-every", "5", "--num-envs", "2"], "a multiple of num_en"),
        (["finetune", "{source}", "--weighted-bc.batch-size", "3"], "would be ignored with method"),
        (["finetune", "--resume", "{source}"], "use statewise train --resume"),
        (["finetune", "{source}", "--actor-critic.replay-gib", "1e-5"], "expected at most 1e-05"),
    ],
)
def test_mistakes_are_named_in_one_line(
    source: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    status = main([word.format(source=source) for word in words])
    error = capsys.readouterr().err
    assert (status, error.count("\n")) == (2, 1), error
    assert message in error


def test_data_without_reference_returns_are_refused(tmp_path: Path) -> None:
    run = cases.trained_run(tmp_path, ref_min=None, ref_max=None)
    with pytest.raises(ConfigError, match="expected data with reference returns"):
        finetune_run(run, tmp_path / "new", settings(), ["statewise"], quiet=True)
    assert not (tmp_path / "new").exists()


def test_an_agent_of_delayed_rewards_is_refused_and_leaves_no_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(source, tmp_path / "late")
    text = (source / "config.yaml").read_text()
    assert "reward: as_is" in text
    (tmp_path / "late/config.yaml").write_text(text.replace("as_is", "delayed"))
    words = ["finetune", str(tmp_path / "late"), "--run", str(tmp_path / "new")]
    assert main([*words, "--total-steps", "20"]) == 2
    error = capsys.readouterr().err
    assert "rewards as they come, got one with data.reward delayed: train it with" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_player_goes_on_where_it_was(source: Path) -> None:
    config = settings(num_envs=2)
    trained = opened(source)
    agent = trained.agent
    assert isinstance(agent, DecisionS4)

    def player(seed: int) -> EpisodePlayer:
        return EpisodePlayer(
            environments(trained, config), agent, target=20.0, spread=0.1, seed=seed
        )

    one, other = player(0), player(7)
    one.start(3)
    one.play(7, 0.2)
    other.load_state_dict(one.state_dict())
    a, b = one.play(20, 0.2)[1], other.play(20, 0.2)[1]
    assert len(a) == len(b) > 2
    for left, right in zip(a, b, strict=True):
        assert torch.equal(left.asked, right.asked)
        assert torch.equal(left.action, right.action)
        for key, value in left.state.items():
            assert torch.equal(value, right.state[key])
    assert np.isfinite([one.total for one in a]).all()
