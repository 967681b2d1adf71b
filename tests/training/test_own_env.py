"""Runs on an environment of one's own: loaded without it they act, and play nothing else."""

import inspect
import json
import signal
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import statewise
from statewise.__main__ import main
from statewise.agents import export, parallel
from statewise.data.toy_histories import EPISODES, dark_room_histories
from statewise.envs.build import EnvConfig, make_single
from statewise.training import distributed
from statewise.training.api import TrainedOfflineAgent, load, resume_training
from statewise.training.config import ConfigError
from statewise.training.evaluate import AS_THE_RUN, EvalOptions, evaluate_run
from statewise.training.finetune_config import FinetuneConfig, WeightedBCConfig
from statewise.training.finetune_run import finetune, finetune_run
from statewise.training.loop import Stopped
from statewise.training.own_env import Spaces, note, stand_in
from statewise.training.playing import PlayingAgent
from statewise.training.progress import Progress
from statewise.training.run import OWN_ENV, RunDirectory, RunError
from statewise.training.trained_replay import TrainedReplayAgent
from statewise.training.video import VideoOptions, film_run
from tests.training import offline_cases as cases
from tests.training.test_histories import TINY as AD
from tests.training.test_inspect import PPO, RSSM
from tests.training.toys import CounterEnv

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")
SMALL: dict[str, Any] = PPO | {
    "env__num_envs": 2,
    "rollout_steps": 16,
    "total_steps": 128,
    "eval__episodes": 3,
    "eval__num_envs": 2,
    "agent__num_minibatches": 2,
}


class Mine(gymnasium.Env[Any, Any]):
    """Spaces of CartPole-v1: six steps, each with a reward of 3."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def _obs(self) -> Any:
        return self.np_random.normal(size=4).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._count += 1
        return self._obs(), 3.0, self._count == 6, False, {}


def line(run: Path, call: str = "load") -> str:
    return (
        f"expected the environment of your own that {run} was trained on, got none: give the "
        f"callable from Python, statewise.{call}({str(run)!r}, env=...)"
    )


def stop_at(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C once, after the first iteration that ends at `steps` or later."""
    update, pressed = Progress.update, []

    def press(self: Progress, step: int, value: float | None = None) -> None:
        update(self, step, value)
        if step >= steps and not pressed:
            pressed.append(step)
            signal.raise_signal(signal.SIGINT)

    patch.setattr(Progress, "update", press)


TUNING = FinetuneConfig(
    method="weighted_bc",
    weighted_bc=WeightedBCConfig(batch_size=3),
    total_steps=60,
    num_envs=2,
    train_every=4,
    learning_starts=12,
)


def saved_ppo(folder: Path) -> Path:
    return statewise.make("ppo/cartpole", env=Mine, **SMALL).save(folder / "run")


def saved_dreamer(folder: Path) -> Path:
    agent = statewise.make("dreamer/delayed_offer", env=CounterEnv, **RSSM)
    assert isinstance(agent, TrainedReplayAgent)
    return agent.save(folder / "run")


def saved_s4(folder: Path) -> Path:
    data = cases.counter_data(count=6, env_id=cases.COUNTER)
    agent = statewise.make("decision_s4/pendulum", data=data, env=CounterEnv, **cases.S4)
    return agent.save(folder / "run")


def dark_room(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    return make_single(EnvConfig(id="statewise/DarkRoom-v0"), **kwargs).unwrapped


def saved_ad(folder: Path) -> Path:
    data = dark_room_histories(2 * EPISODES)
    return statewise.make("ad/dark_room", data=data, env=dark_room, **AD).save(folder / "run")


SAVED: dict[str, Callable[[Path], Path]] = {
    "ppo": saved_ppo,
    "dreamer": saved_dreamer,
    "decision_s4": saved_s4,
    "ad": saved_ad,
}
ENVS = {"ppo": Mine, "dreamer": CounterEnv, "decision_s4": CounterEnv, "ad": dark_room}


@pytest.fixture(scope="module", params=SAVED)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved agent on an environment of one's own; its id is another, registered one."""
    cases.register()
    return SAVED[request.param](tmp_path_factory.mktemp(request.param))


# --- what is loaded without the callable


def test_without_the_callable_an_agent_chooses_the_same_actions(saved: Path) -> None:
    alone = load(saved)
    whole = load(saved, env=ENVS[alone.config.system])
    assert (alone.obs_space, alone.action_space) == (whole.obs_space, whole.action_space)
    obs = {key: np.stack([space.sample()] * 3) for key, space in whole.obs_space.spaces.items()}
    first, again = (agent.predict(obs, deterministic=True)[0] for agent in (alone, whole))
    assert first.tolist() == again.tolist()


def test_whatever_makes_an_environment_asks_for_the_callable(saved: Path) -> None:
    agent = load(saved)
    asked: list[Callable[[], Any]] = [
        agent.make_env,
        agent.make_single_eval_env,
        agent.evaluate,
        lambda: agent.wrap(CounterEnv()),
        lambda: evaluate_run(saved),
        lambda: film_run(saved, EvalOptions(), VideoOptions()),
    ]
    if agent.goes_on_with.startswith("learn"):
        asked.append(lambda: agent.learn(8))
    for ask in asked:
        with pytest.raises(RunError) as caught:
            ask()
        assert str(caught.value) == line(saved)
    assert not (saved / "eval.json").exists()


def test_a_copy_that_was_saved_without_the_callable_asks_for_it_too(
    saved: Path, tmp_path: Path
) -> None:
    copy = load(saved).save(tmp_path / "copy")
    with pytest.raises(RunError, match="expected the environment of your own"):
        load(copy).make_env()
    first, again = (RunDirectory(one).read_manifest()[OWN_ENV] for one in (saved, copy))
    assert first == again


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("ppo", ["eval", "RUN", "--episodes", "2"]),
        ("ppo", ["eval", "RUN", "--video"]),
        ("ppo", ["inspect", "RUN"]),
        ("decision_s4", ["eval", "RUN"]),
        ("decision_s4", ["finetune", "RUN"]),
        ("dreamer", ["eval", "RUN"]),
        ("dreamer", ["imagine", "RUN"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_commands_that_play_name_the_run_and_the_call(
    system: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases.register()
    run = SAVED[system](tmp_path)
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    assert capsys.readouterr().err == f"error: {line(run)}\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run"]


def test_export_needs_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def export_policy(network: Any, obs: dict[str, Any], path: Path, batch_size: int) -> None:
        seen.append((obs["obs"].shape, path, batch_size))

    monkeypatch.setattr(export, "export_policy", export_policy)  # which takes seconds
    run = saved_ppo(tmp_path)
    assert main(["export", str(run)]) == 0
    assert seen == [((4,), run / "policy.pt2", 1)]


def test_arguments_of_ones_own_environment_do_not_reach_that_of_the_preset(tmp_path: Path) -> None:
    def other(size: int) -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.TransformObservation(
            Mine(), lambda obs: np.resize(obs, size), spaces.Box(-1, 1, (size,), np.float32)
        )

    agent = statewise.make("ppo/cartpole", env=other, env__kwargs={"size": 5}, **SMALL)
    run = agent.save(tmp_path / "run")
    alone = load(run)  # CartPole-v1 takes no size, and its weights would not fit
    assert alone.obs_space["obs"].shape == (5,)
    with pytest.raises(RunError, match="expected the environment of your own"):
        alone.evaluate()
    assert len(load(run, env=other).evaluate()[1]["episodes"]) == 3


def test_runs_without_a_note_are_played_as_before(tmp_path: Path) -> None:
    run = saved_ppo(tmp_path)
    path = RunDirectory(run).manifest_path
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in manifest.items() if k != OWN_ENV}))
    env = load(run).make_env()
    assert env.spec is not None
    assert env.spec.id == "CartPole-v1"
    path.write_text(json.dumps(manifest | {OWN_ENV: True}))  # of a version without the spaces
    with pytest.raises(RunError) as caught:
        load(run)
    assert str(caught.value) == line(run)


def test_data_are_learned_from_without_the_environment(tmp_path: Path) -> None:
    cases.register()
    agent = load(saved_s4(tmp_path))
    agent.fit(cases.counter_data(count=6, env_id=cases.COUNTER), n_steps=2)
    assert agent.step == 2


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.5, 2.5, (2, 3), np.float32),
        spaces.Box(np.array([-np.inf, 0.1]), np.array([1e-3, np.inf]), dtype=np.float64),
        spaces.Box(0, 255, (4, 4, 3), np.uint8),
        spaces.Box(np.float32(0.1), np.inf, (1,), np.float32),
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([2, 7], start=[3, 0]),
        spaces.MultiBinary(4),
    ],
    ids=str,
)
def test_a_manifest_keeps_a_space_exactly(space: spaces.Space[Any], tmp_path: Path) -> None:
    entries = OrderedDict(b=space, a=spaces.Discrete(2))  # a plain dict would be sorted
    known = Spaces(spaces.Dict(entries), space)
    manifest = RunDirectory.create(tmp_path / "run", "", note(Mine, known)).read_manifest()
    found = stand_in(tmp_path / "run", manifest)
    assert found is not None
    assert found.spaces.action == space
    assert found.spaces.action.dtype == space.dtype
    assert list(found.spaces.obs.items()) == list(entries.items())


# --- going on


@pytest.mark.parametrize("system", ["ppo", "decision_s4"])
def test_a_run_that_was_stopped_goes_on_exactly_from_python(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases.register()

    def begin(run: Path) -> PlayingAgent:
        if system == "ppo":
            return statewise.train("ppo/cartpole", env=Mine, run=run, **SMALL)
        preset, settings = "decision_s4/pendulum", cases.S4 | {"eval__every_updates": 6}
        return statewise.train(preset, env=CounterEnv, run=run, data=data, **settings)

    env, at = (Mine, 64) if system == "ppo" else (CounterEnv, 7)
    data, run = cases.written(tmp_path, count=8), tmp_path / "run"
    whole = begin(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(at, patch)
        with pytest.raises(Stopped) as stopped:
            begin(run)
    capsys.readouterr()
    assert str(stopped.value).endswith(f"saved: statewise.resume({str(run)!r}, env=...) in Python")
    assert main(["train", "--resume", str(run)]) == 2
    assert capsys.readouterr().err == f"error: {line(run, 'resume')}\n"
    half = load(run).step
    assert 0 < half < whole.step
    agent = statewise.resume(run, env=env)
    assert agent.step == whole.step
    first, again = (one.agent.state_dict() for one in (agent, whole))
    assert_same(first, again)
    agent.make_env().close()
    assert load(run).step == agent.step
    with pytest.raises(RunError, match="is complete at"):
        resume_training(run, [])  # before it asks for what it does not need


def assert_same(a: Any, b: Any) -> None:
    """Assert that two trees have the same tensors and numbers."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_fine_tuning_goes_on_and_never_plays_another_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases.register()
    source, run, config = saved_s4(tmp_path), tmp_path / "tuned", TUNING
    with pytest.raises(RunError, match="expected the environment of your own"):
        finetune_run(source, run, config, [], quiet=True)
    assert not run.exists()
    with monkeypatch.context() as patch:
        stop_at(20, patch)
        with pytest.raises(Stopped, match=r"saved: statewise\.resume\("):
            finetune_run(source, run, config, ["finetune"], env=CounterEnv, quiet=True)
    whole = finetune_run(source, tmp_path / "whole", config, [], env=CounterEnv, quiet=True)
    with pytest.raises(RunError) as caught:
        statewise.resume(run)
    assert str(caught.value) == line(run, "resume")
    first, again = statewise.resume(run, env=CounterEnv), load(whole, env=CounterEnv)
    assert_same(first.agent.state_dict(), again.agent.state_dict())
    made: list[int] = []

    def counted() -> CounterEnv:
        made.append(1)
        return CounterEnv()

    own = load(source, env=counted)
    made.clear()
    assert isinstance(own, TrainedOfflineAgent)
    finetune(own, config)  # in the environment that it was loaded with
    assert made


def test_fine_tuning_in_memory_is_evaluated_where_it_plays(tmp_path: Path) -> None:
    alone = load(saved_s4(tmp_path))
    assert isinstance(alone, TrainedOfflineAgent)
    finetune(alone, replace(TUNING, eval_every_steps=40), env=CounterEnv)
    assert alone.evaluate(episodes=2)[0].episodes
    assert isinstance(alone.make_env().unwrapped, CounterEnv)


def test_fine_tuning_takes_no_encoder(tmp_path: Path) -> None:
    run = finetune_run(
        saved_s4(tmp_path), tmp_path / "tuned", TUNING, [], env=CounterEnv, quiet=True
    )
    with pytest.raises(ConfigError, match="encoder: expected none for fine-tuning"):
        statewise.resume(run, env=CounterEnv, encoder=lambda space: torch.nn.Identity())


def test_what_cannot_play_is_left_as_it_is(tmp_path: Path) -> None:
    alone = load(saved_ppo(tmp_path))
    before = alone.agent.total_steps
    with pytest.raises(RunError, match="expected the environment of your own"):
        alone.learn(8)
    assert alone.agent.total_steps == before


def test_a_note_that_is_damaged_asks_for_the_callable(tmp_path: Path) -> None:
    entry = {"type": "Discrete", "n": 0, "start": 0}
    manifest = {OWN_ENV: {"observation": {"obs": entry}, "action": entry}}
    with pytest.raises(RunError) as caught:
        stand_in(tmp_path, manifest)
    assert str(caught.value) == line(tmp_path)


def test_fine_tuning_where_settings_name_the_environment_goes_on_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases.register()
    data, run = cases.counter_data(count=6, env_id=cases.COUNTER), tmp_path / "tuned"
    source = statewise.make("decision_s4/pendulum", data=data, **cases.S4).save(tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at(20, patch)
        with pytest.raises(Stopped, match=f"saved: statewise finetune --resume {run}$"):
            finetune_run(source, run, TUNING, ["finetune"], quiet=True)
    assert statewise.resume(run).make_env().spec.id == cases.COUNTER
    assert RunDirectory(run).read_manifest()["resumed"][0]["command"][1] == "finetune"


def test_what_goes_on_is_a_command_or_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, plain = saved_ppo(tmp_path), tmp_path / "plain"
    assert distributed.resume_line(plain) == f"statewise train --resume {plain}"
    assert distributed.resume_line(plain, "finetune") == f"statewise finetune --resume {plain}"
    call = f"statewise.resume({str(own)!r}, env=...) in Python"
    assert distributed.resume_line(own) == call
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    start = "torchrun --nproc-per-node 2"
    assert distributed.resume_line(plain) == f"{start} -m statewise train --resume {plain}"
    assert distributed.resume_line(own) == f"{call} in a script that {start} starts"
    assert parallel.num_processes() == 1


# --- evaluations from Python


def test_an_evaluation_takes_its_options_as_words(tmp_path: Path) -> None:
    agent = load(saved_ppo(tmp_path), env=Mine)
    result, report = agent.evaluate()
    assert [one["return"] for one in report["episodes"]] == [18.0] * 3  # eval.episodes
    assert result == agent.evaluate(EvalOptions())[0] == agent.evaluate(AS_THE_RUN)[0]
    _, report = agent.evaluate(episodes=5, actions="sample", seed=7)
    assert report["actions"] == "sample"
    assert sorted(one["seed"] for one in report["episodes"]) == [7, 7, 8, 8, 8]
    assert len(agent.evaluate(EvalOptions(episodes=2), actions="sample")[1]["episodes"]) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"episode": 3}, "expected options among .*, got 'episode': did you mean episodes"),
        ({"episodes": 0}, "episodes: expected an integer, at least 1, got 0"),
        ({"episodes": "20"}, "episodes: expected an integer, at least 1, got '20'"),
        ({"num_envs": 1.5}, r"num_envs: expected an integer, at least 1, got 1\.5"),
        ({"seed": -1}, "seed: expected an integer, at least 0, got -1"),
        ({"targets": 20.0}, r"targets: expected a sequence of numbers, got 20\.0"),
        ({"targets": ("20",)}, "targets: expected a sequence of numbers, got "),
        ({"actions": "gredy"}, "actions: expected greedy or sample, got 'gredy'"),
    ],
)
def test_a_word_that_is_no_option_is_refused(
    changes: dict[str, Any], said: str, saved: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        load(saved).evaluate(**changes)


def test_every_kind_of_agent_takes_the_same_options() -> None:
    kinds = [PlayingAgent]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert len(kinds) >= 6
    signatures = {str(inspect.signature(kind.evaluate)).split("->")[0] for kind in kinds}
    assert len(signatures) == 1
