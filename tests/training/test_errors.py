"""Bad input gets one clear line and status 2, and nothing is lost, made or damaged."""

import errno
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

import statewise.__main__ as program
from statewise.envs import build
from statewise.training import checkpoint as checkpoint_module
from statewise.training.api import load, run_training
from statewise.training.checkpoint import FORMAT, CheckpointWarning, newest_checkpoint
from statewise.training.config import load_preset
from tests.training.toys import CounterEnv

TINY = """
system: ppo
env: {{id: {id}, num_envs: 2, vectorization: sync}}
rollout_steps: 8
total_steps: {total}
agent:
  num_minibatches: 1
  num_epochs: 1
  encoder: {{hidden: [8]}}
  sequence: {{kind: s5, num_layers: 1, d_model: 8}}
  head_hidden: [8]
checkpoint: {{every_steps: 32, keep: 2}}
"""


class Spoiled(CounterEnv):
    """The counter, with one wrong number at its step 60."""

    spoil_obs = 1.0
    spoil_reward = 1.0

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        self._steps += 1
        if self._steps == 60:
            return obs * np.float32(self.spoil_obs), reward * self.spoil_reward, *rest
        return obs, reward, *rest


class NaNObservation(Spoiled):
    spoil_obs = float("nan")


class NaNReward(Spoiled):
    spoil_reward = float("nan")


class HugeReward(Spoiled):
    spoil_reward = 1e30


class TextObservation(CounterEnv):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Text(5)


class SequenceAction(CounterEnv):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Sequence(spaces.Discrete(2))


class TooWide(CounterEnv):
    """The counter with one number more."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-10, 100, (4,))

    def _obs(self) -> Any:
        return np.append(super()._obs(), np.float32(0))


TOYS = (
    CounterEnv,
    NaNObservation,
    NaNReward,
    HugeReward,
    TextObservation,
    SequenceAction,
    TooWide,
)
pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for toy in TOYS:
        gymnasium.register(f"toy/{toy.__name__}-v0", entry_point=toy)
    yield
    for toy in TOYS:
        del gymnasium.registry[f"toy/{toy.__name__}-v0"]


def preset(name: str = "CounterEnv", total: int = 400) -> str:
    """Write a preset for a toy and return its path."""
    path = Path(f"{name}.yaml")
    path.write_text(TINY.format(id=f"toy/{name}-v0", total=total))
    return str(path)


def snapshot(folder: Path) -> dict[str, str]:
    """Return the digest of every file, the lock aside."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def failure(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail, and return its one error line."""
    capsys.readouterr()
    assert program.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    # a run that had begun may have shown its progress before
    *progress, line = err.splitlines()
    assert all(" steps" in one for one in progress), err
    assert line.startswith("error: ")
    assert "Traceback" not in err
    return line.removeprefix("error: ")


# --- before anything is made


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        (["ppo/cartpol"], r"^preset: .*'ppo/cartpol'.*ppo/cartpole"),
        (["ppo/repeat_previous"], r"^preset: .*ppo/repeat_previous_easy"),
        (["nosuchfile.yaml"], r"nosuchfile\.yaml"),
        (["ppo/cartpole", "--agent.learning-rat", "1"], r"agent\.learning_rat\b.*learning_rate"),
        (["ppo/cartpole", "--agent.sequence.s5.dt", "1"], r"agent\.sequence\.s5\.dt\b.*dt_m"),
        (["ppo/cartpole", "--agent.num-epochs", "many"], r"agent\.num_epochs: expected .*'many'"),
        (["ppo/cartpole", "--agent.num-epochs", "1.5"], r"agent\.num_epochs: expected .*1\.5"),
        (["ppo/cartpole", "--agent.clip", "-1"], r"agent\.clip: expected a positive number"),
        (["ppo/cartpole", "--agent.discount", "2"], r"agent\.discount: expected \[0, 1\], got 2"),
        (["ppo/cartpole", "--agent.clip", "nan"], r"agent\.clip: expected .*nan"),
        (["ppo/cartpole", "--checkpoint.keep", "0"], r"checkpoint\.keep: expected at least 1"),
        (["ppo/cartpole", "--rollout-steps", "0"], r"rollout_steps: expected at least 1, got 0"),
        (["ppo/cartpole", "--agent.num-minibatches", "3"], r"agent\.num_minibatches: .*divisor"),
        (["ppo/cartpole", "--agent.sequence.kind", "s6"], r"agent\.sequence\.kind: .*'s6'"),
        (["ppo/cartpole", "--agent.sequence.s5.dt-min", "9"], r"agent\.sequence\.s5\.dt_min"),
        (["ppo/cartpole", "--env.num-envs", "0"], r"env\.num_envs: expected at least 1, got 0"),
        (["ppo/cartpole", "--env.id", "CartPol-v1"], r"'CartPol-v1'.*CartPole-v1"),
        (["ppo/cartpole", "--env.id", "Qqqqqqqqqq-v0"], r"'Qqqqqqqqqq-v0': register it first"),
        (["ppo/cartpole", "--env.id", "statewise/MemoryChan-v0"], r"statewise/MemoryChain-v0"),
        (["ppo/t_maze", "--env.kwargs.lenght", "5"], r"TMaze.*lenght"),
        (["ppo/t_maze", "--env.kwargs.length", "0"], r"length >= 1, got 0"),
        (["ppo/cartpole", "--device", "tpu"], r"^override: device: expected cpu, cuda"),
    ],
)
def test_a_bad_setting_is_named_and_nothing_is_made(
    argv: list[str], pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(["train", *argv, "--run", "new"], capsys)
    assert re.search(pattern, line), line
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (("rollout_steps: 8", "rollout_step: 8"), r"bad\.yaml: .*rollout_step\b.*rollout_steps"),
        (("rollout_steps: 8", "rollout_steps: eight"), r"bad\.yaml: rollout_steps: .*'eight'"),
        (("hidden: [8]", "hidden: [0]"), r"bad\.yaml: agent\.encoder\.hidden"),
        (("num_envs: 2", "num_envs: -2"), r"bad\.yaml: env\.num_envs: .*-2"),
        (("system: ppo", "system: [ppo"), r"bad\.yaml"),
    ],
)
def test_a_bad_file_is_named_with_the_dotted_path(
    change: tuple[str, str], pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TINY.format(id="toy/CounterEnv-v0", total=64)
    assert change[0] in text
    Path("bad.yaml").write_text(text.replace(*change))
    line = failure(["train", "bad.yaml", "--run", "new"], capsys)
    assert re.search(pattern, line), line
    assert not Path("new").exists()


def test_a_missing_extra_gives_the_line_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = build.popgym.importlib.util.find_spec
    monkeypatch.setattr(
        build.popgym.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "popgym" else find_spec(name, *rest),
    )
    line = failure(["train", "ppo/repeat_previous_easy", "--run", "new"], capsys)
    assert "pip install 'statewise[popgym]'" in line
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("TextObservation", r"expected a Box, Discrete.* observation, got Text"),
        ("SequenceAction", r"expected a Discrete.* action space, got Sequence"),
    ],
)
def test_an_unsupported_space_is_named_with_what_is_supported(
    name: str, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(["train", preset(name), "--run", "new"], capsys)
    assert re.search(pattern, line), line
    assert not Path("new").exists()


# --- a finished run that must stay as it is


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY.format(id="CartPole-v1", total=100))
    config = load_preset(str(folder / "tiny.yaml"))
    return run_training(config, folder / "run", ["statewise", "train"], quiet=True)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def newest(run: Path) -> Path:
    path = newest_checkpoint(run / "checkpoints")
    assert path is not None
    return path


def test_a_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(run)
    line = failure(["train", preset(), "--run", str(run)], capsys)
    assert "already holds a run: pass --resume" in line
    assert snapshot(run) == before


def test_a_checkpoint_of_another_format_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = newest(run) / "state.json"
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', '"format": 99'))
    before = snapshot(run)
    line = failure(["eval", str(run), "--checkpoint", newest_name(run)], capsys)
    assert f"has checkpoint format 99, expected {FORMAT}" in line
    assert snapshot(run) == before
    # without a number the older one serves
    with pytest.warns(CheckpointWarning, match="format 99"):
        assert program.main(["eval", str(run), "--episodes", "1"]) == 0


def newest_name(run: Path) -> str:
    return max((entry.name for entry in (run / "checkpoints").iterdir()), key=int)


@pytest.mark.parametrize("command", ["eval", "train --resume"])
@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ("CartPole-v1", "toy/TooWide-v0", r"another agent or environment"),
        (
            "CartPole-v1",
            "toy/CounterEnv-v0",
            r"another agent or environment: .*\(8, 3\), got \(8, 4\)",
        ),
        ("d_model: 8", "d_model: 16", r"another agent or environment: .*expected"),
    ],
    ids=["actions", "observations", "network"],
)
def test_a_checkpoint_of_another_environment_or_network_is_refused(
    command: str,
    old: str,
    new: str,
    pattern: str,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(
        text.replace(old, new).replace("total_steps: 100", "total_steps: 300")
    )
    before = snapshot(run)
    line = failure([*command.split(), str(run)], capsys)
    assert re.search(pattern, line), line
    unchanged = snapshot(run)
    assert {k: v for k, v in unchanged.items() if not k.startswith("tb/")} == {
        k: v for k, v in before.items() if not k.startswith("tb/")
    }


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        (["eval", "nowhere"], r"nowhere is not a run directory"),
        (["train", "--resume", "nowhere"], r"nowhere is not a run directory"),
        (["eval", "run", "--checkpoint", "7"], r"7/state\.json cannot be read"),
        (["train", "--resume", "run", "--seed", "1"], r"expected no settings, got --seed 1"),
        (["train", "--resume", "run"], r"nothing to resume"),
    ],
)
def test_what_cannot_be_loaded_or_resumed_is_named_and_left_alone(
    argv: list[str], pattern: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(run)
    line = failure(argv, capsys)
    assert re.search(pattern, line), line
    assert snapshot(run) == before


# --- while training


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = checkpoint_module.write_synced, []

    def full(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == 11:  # three files per checkpoint: the fourth one fails in its middle
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_synced", full)
        line = failure(["train", preset(), "--run", "new"], capsys)
    assert "No space left on device" in line
    assert "older checkpoints are intact" in line
    left = sorted(entry.name for entry in Path("new/checkpoints").iterdir())
    assert len(left) == 2
    assert all(name.isdecimal() for name in left)
    assert load(Path("new")).step == int(max(left, key=int)) > 0
    assert program.main(["train", "--resume", "new"]) == 0
    assert load(Path("new")).step >= 400


def test_a_full_disk_at_the_start_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_module, "write_synced", full)
    assert "No space left on device" in failure(["train", preset(), "--run", "new"], capsys)


def test_a_full_disk_while_logging_keeps_the_last_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from statewise.training.log import MetricLogger

    write, calls = MetricLogger.write, []

    def full(self: MetricLogger, step: int, metrics: dict[str, float]) -> None:
        calls.append(step)
        if len(calls) == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, step, metrics)

    monkeypatch.setattr(MetricLogger, "write", full)
    assert "No space left on device" in failure(["train", preset(), "--run", "new"], capsys)
    assert load(Path("new")).step > 0


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("NaNObservation", r"NaN in 'obs' of environment \d at step \d+"),
        ("NaNReward", r"NaN in reward of environment \d at step \d+"),
        ("HugeReward", r"value_loss.* after \d+ steps"),
    ],
)
def test_numbers_that_are_not_finite_stop_the_run_and_keep_the_last_checkpoint(
    name: str, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(["train", preset(name), "--run", "new"], capsys)
    assert re.search(pattern, line), line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = load(Path("new"))
    assert 32 <= agent.step < 200
    assert all(p.isfinite().all() for p in agent.agent.network.parameters())
    last = Path("new/metrics.jsonl").read_text().splitlines()[-1]
    assert f'"step": {agent.step}' in last or agent.step < int(
        re.findall(r'"step": (\d+)', last)[0]
    )


def test_the_batch_of_a_loss_that_is_not_finite_is_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failure(["train", preset("HugeReward"), "--run", "new"], capsys)
    batch = load_file("new/bad_batch.safetensors")
    assert batch["reward"].shape == (2, 8)
    assert batch["reward"].abs().max() > 1e29
    assert batch["obs.obs"].shape == (2, 8, 3)
    assert batch["valid"].dtype == torch.bool
