import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from statewise import __main__ as program
from statewise.agents.build import AGENTS
from statewise.envs.build import FAMILIES
from statewise.envs.protocol import EnvError
from statewise.kernels.dispatch import BackendError
from statewise.ssm.build import SEQUENCES
from statewise.training import api, cli, evaluate, plot
from statewise.training import doctor as doctor_module
from statewise.training.checkpoint import CheckpointError
from statewise.training.config import ConfigError, TrainConfig, preset_names
from statewise.training.listing import listing_table
from statewise.training.run import RunError

TINY = ["--total-steps", "64", "--rollout-steps", "8", "--env.num-envs", "4"]


def error_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail, and return the one line it says."""
    capsys.readouterr()
    assert program.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err.removeprefix("error: ").strip()


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def command(argv: list[str]) -> int:
        """Fail."""
        raise error

    return command


def rendered(thing: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


# --- the program


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_with_its_first_line(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(argv) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, command in program.COMMANDS.items():
        line = (command.__doc__ or "").splitlines()[0]
        assert 10 < len(line) < 100
        assert f"{name} {line}" in text


def test_the_commands_of_training_and_bench_are_all_there() -> None:
    wanted = {"train", "eval", "plot", "list", "doctor", "bench", "reproduce"}
    assert wanted <= set(program.COMMANDS)


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("eval", "plot", "list", "doctor"):
        with pytest.raises(SystemExit) as caught:
            program.main([name, "--help"])
        assert caught.value.code == 0
        assert f"usage: statewise {name}" in capsys.readouterr().out


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == program.statewise.__version__


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line(["trian", "ppo/cartpole"], capsys)
    assert line == "expected a command, got 'trian': did you mean train?"
    assert "statewise --help" in error_line(["zzz"], capsys)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a: b"),
        EnvError("a: b"),
        CheckpointError("a: b"),
        RunError("a:\n b"),
        BackendError("a: b"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_user_error_is_one_line_and_status_2(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(program.COMMANDS, "fail", raising(error))
    assert error_line(["fail"], capsys) == "a: b"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "runs: Permission denied"),
    ],
)
def test_a_full_disk_and_a_forbidden_file_are_user_errors(
    error: OSError,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(program.COMMANDS, "fail", raising(error))
    assert error_line(["fail"], capsys) == text


def test_interrupt_ends_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(program.COMMANDS, "fail", raising(KeyboardInterrupt()))
    assert program.main(["fail"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_pipe_that_is_read_no_further_ends_the_command_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise BrokenPipeError

    silenced: list[int] = []
    monkeypatch.setitem(program.COMMANDS, "fail", fail)
    monkeypatch.setattr(program.os, "dup2", lambda source, target: silenced.append(target))
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    assert program.main(["fail"]) == 141
    assert silenced == [1]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [ValueError("defect"), RuntimeError("defect"), OSError(errno.EIO, "defect")]
)
def test_an_unexpected_exception_is_not_swallowed(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(program.COMMANDS, "fail", raising(error))
    with pytest.raises(type(error), match="defect"):
        program.main(["fail"])


def test_help_is_answered_without_torch() -> None:
    code = (
        "import sys\nfrom statewise.__main__ import main\nmain(['--help'])\n"
        "assert not {'torch', 'gymnasium', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# --- train


class Recorder:
    """Stands in for the functions of the api and remembers what they were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        monkeypatch.setattr(api, "run_training", self._run)
        monkeypatch.setattr(api, "resume_training", self._resume)

    def _run(self, config: TrainConfig, path: Path, command: list[str]) -> Path:
        self.calls.append((config, path, command))
        return path

    def _resume(self, path: Path, command: list[str], overrides: list[str]) -> Path:
        self.calls.append((path, command, overrides))
        return path


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    monkeypatch.chdir(tmp_path)
    return Recorder(monkeypatch)


def test_train_passes_the_overridden_preset_on(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "ppo/t_maze", "--seed", "3", "--run", "here", "--env.kwargs.length", "9"]
    assert program.main(argv) == 0
    [(config, path, command)] = recorder.calls
    assert (config.seed, config.env.kwargs, path) == (3, {"length": 9}, Path("here"))
    assert command == ["statewise", *argv]
    assert capsys.readouterr().out == "here\n"


def test_negative_values_are_values_and_not_options(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "ppo/cartpole", "--env.kwargs.start", "-0.5", "--seed", "1"]
    assert program.main(argv) == 0
    assert recorder.calls[0][0].env.kwargs == {"start": -0.5}
    assert recorder.calls[0][0].seed == 1


def test_the_default_run_directory_is_the_first_free_number(tmp_path: Path) -> None:
    assert cli.default_run("ppo/t_maze", tmp_path) == tmp_path / "ppo-t_maze-1"
    (tmp_path / "ppo-t_maze-1").mkdir()
    (tmp_path / "ppo-t_maze-3").mkdir()
    assert cli.default_run("ppo/t_maze", tmp_path) == tmp_path / "ppo-t_maze-2"
    assert cli.default_run("my/own.yaml", tmp_path) == tmp_path / "own-1"


def test_data_are_laid_over_the_settings(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "dt/pendulum", "--data", "a.hdf5", "b", "--seed", "3"]
    assert program.main(argv) == 0
    [(config, path, command)] = recorder.calls
    assert (config.data.paths, config.seed, path) == (
        ("a.hdf5", "b"),
        3,
        Path("runs/dt-pendulum-1"),
    )
    assert command == ["statewise", *argv]
    assert capsys.readouterr().out == "runs/dt-pendulum-1\n"


def test_train_without_a_run_uses_the_default_one(recorder: Recorder) -> None:
    assert program.main(["train", "ppo/cartpole"]) == 0
    assert recorder.calls[0][1] == Path("runs/ppo-cartpole-1")


def test_resume_passes_the_run_and_the_overrides_on(recorder: Recorder) -> None:
    assert program.main(["train", "--resume", "runs/a", "--seed", "4"]) == 0
    assert recorder.calls == [
        (
            Path("runs/a"),
            ["statewise", "train", "--resume", "runs/a", "--seed", "4"],
            ["--seed", "4"],
        )
    ]


@pytest.mark.parametrize(
    ("argv", "start"),
    [
        ([], "train: expected a preset first or --resume RUN, got nothing"),
        (["--seed", "1", "ppo/cartpole"], "train: expected a preset first or --resume RUN"),
        (["ppo/cartpol"], "preset: expected a name from `statewise list presets`"),
        (["ppo/cartpole", "--sed", "1"], "override: sed: expected a known field"),
        (["ppo/cartpole", "extra"], "override: expected --name value, got 'extra'"),
        (["ppo/cartpole", "--resume", "a"], "train: expected --resume RUN alone, got a preset"),
        (["--resume", "a", "--run", "b"], "train: expected --resume RUN alone, got --run"),
        (["--resume", "a", "--data", "b"], "train: expected --resume RUN alone, got --data"),
        (["ppo/cartpole", "--data", "a"], "data: expected none for ppo, which learns in its"),
        (["dt/pendulum", "--data"], "train: argument --data: expected at least one argument"),
        (["ppo/cartpole", "--run"], "train: argument --run: expected one argument"),
    ],
)
def test_wrong_words_after_train_are_one_line(
    argv: list[str], start: str, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_line(["train", *argv], capsys).startswith(start)
    assert recorder.calls == []


def test_train_help_shows_the_options_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert "--resume" in short
    assert "--agent.learning-rate" not in short
    assert program.main(["train", "ppo/t_maze", "--help"]) == 0
    assert "--agent.learning-rate" in capsys.readouterr().out


# --- eval, plot


def test_eval_passes_its_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def evaluate_run(path: Path, **options: Any) -> evaluate.EvalResult:
        calls.append((path, options))
        return evaluate.EvalResult(0.5, (0.25, 0.75), [{"return": 0.5}] * 7)

    monkeypatch.setattr(evaluate, "evaluate_run", evaluate_run)
    words = "--episodes 7 --num-envs 2 --seed 0 --actions sample --targets -9 2.5 --checkpoint 64"
    assert program.main(["eval", "runs/a", *words.split(), "--device", "cpu"]) == 0
    assert program.main(["eval", "runs/a"]) == 0
    unset = dict.fromkeys(
        ["episodes", "num_envs", "seed", "actions", "targets", "checkpoint", "device"]
    )
    given = {"episodes": 7, "num_envs": 2, "seed": 0, "actions": "sample", "checkpoint": 64}
    given |= {"targets": (-9.0, 2.5), "device": "cpu"}
    assert calls == [(Path("runs/a"), given), (Path("runs/a"), unset)]
    assert "return 0.5, 95 % interval 0.25 to 0.75, 7 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["eval"], "required: run"),
        (["eval", "a", "--episodes", "0"], "expected an integer of at least 1, got '0'"),
        (["eval", "a", "--seed", "-1"], "expected an integer of at least 0, got '-1'"),
        (["eval", "a", "--actions", "best"], "invalid choice: 'best'"),
        (["eval", "a", "--episode", "3"], "unrecognized arguments: --episode 3"),
        (["eval", "a", "--targets", "high"], "argument --targets: invalid float value: 'high'"),
        (["plot"], "required: RUN"),
        (["list", "layer"], "invalid choice: 'layer'"),
        (["doctor", "now"], "unrecognized arguments: now"),
    ],
)
def test_wrong_words_are_one_line_that_says_where_to_look(
    argv: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_line(argv, capsys)
    assert text in line
    assert line.endswith(f"see statewise {argv[0]} -h")


def test_plot_passes_its_runs_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def plot_runs(runs: list[Path], out: Path | None) -> Path:
        calls.append((runs, out))
        return Path("fig.png")

    monkeypatch.setattr(plot, "plot_runs", plot_runs)
    assert program.main(["plot", "a", "b", "--out", "fig.png"]) == 0
    assert program.main(["plot", "a"]) == 0
    assert calls == [([Path("a"), Path("b")], Path("fig.png")), ([Path("a")], None)]
    assert capsys.readouterr().out == "fig.png\nfig.png\n"


def test_a_run_is_trained_evaluated_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert program.main(["train", "ppo/cartpole", "--run", str(run), *TINY]) == 0
    assert program.main(["eval", str(run), "--episodes", "3"]) == 0
    assert program.main(["plot", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(run)
    assert "3 episodes" in lines[1]
    assert Path(lines[2]).is_file()
    assert "nothing to resume" in error_line(["train", "--resume", str(run)], capsys)


def test_a_folder_that_is_no_run_is_a_user_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (["eval", str(tmp_path)], ["plot", str(tmp_path)]):
        assert str(tmp_path) in error_line(argv, capsys)


# --- list, doctor


def test_list_shows_every_row_of_every_table() -> None:
    tables = {
        "presets": preset_names(),
        "layers": list(SEQUENCES),
        "agents": list(AGENTS),
        "envs": [row.example for row in FAMILIES],
    }
    for topic, names in tables.items():
        text = rendered(listing_table(topic))
        for name in names:
            assert f" {name} " in text


def test_list_without_a_topic_shows_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["list"]) == 0
    everything = capsys.readouterr().out
    assert program.main(["list", "layers"]) == 0
    layers = capsys.readouterr().out
    assert all(topic in everything for topic in cli.TOPICS)
    assert layers in everything
    assert "ppo/cartpole" not in layers
    assert "none in this version" not in everything


def test_a_topic_that_there_is_not_names_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = error_line(["list", "worldmodels"], capsys)
    assert "'worldmodels'" in line
    assert all(topic in line for topic in cli.TOPICS)


def test_list_tells_what_a_family_and_its_presets_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "pip install 'statewise[popgym]'"
    rows = tuple(
        row._replace(missing=lambda: line) if row.prefix == "popgym-" else row for row in FAMILIES
    )
    monkeypatch.setattr("statewise.envs.build.FAMILIES", rows)
    monkeypatch.setattr("statewise.training.listing.FAMILIES", rows)
    assert rendered(listing_table("envs")).count(line) == 1
    presets = rendered(listing_table("presets")).splitlines()
    needy = [text.split()[0] for text in presets if line in text]
    levels = {"dreamer": ("easy",), "ppo": ("easy", "medium"), "r2i": ("easy", "hard", "medium")}
    assert needy == [f"{kind}/repeat_previous_{x}" for kind in levels for x in levels[kind]]


def test_doctor_tells_versions_backends_and_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("statewise", "torch", "cuda", "reference", "auto", "compiler", "cache", "popgym"):
        assert word in text


def test_doctor_gives_the_line_that_gets_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "torch>=2.4",
        'nosuchthing>=1; extra == "games"',
        'numpy>=1; extra == "games"',
        'numpy>=1; extra == "math"',
        'statewise[games,math]; extra == "all"',
    ]
    monkeypatch.setattr(doctor_module.metadata, "requires", lambda name: requirements)
    text = rendered(doctor_module.doctor_tables()[-1])
    rows = [line.split(maxsplit=1) for line in text.splitlines()[1:] if line.strip()]
    assert {name: rest.strip() for name, rest in rows} == {
        "games": "nosuchthing missing: pip install 'statewise[games]'",
        "math": "installed",
    }
