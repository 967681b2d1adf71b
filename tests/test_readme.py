"""The README is run: every command, the Python block, every row of its tables, every link.

The text is the single source. What it shows is run as it stands, only smaller: `SHRINK` says
what is added to a command or replaced in it, and `RUNS` which preset makes the runs that it
names. A command or run that neither table knows fails, so that nothing unproven enters the text.
"""

import dataclasses
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import gymnasium
import pytest
import yaml

from statewise import __main__ as program
from statewise.agents.build import AGENTS
from statewise.bench import claims, worker
from statewise.bench import diagnose as bench_diagnose
from statewise.bench import layers as bench_layers
from statewise.bench import ppo as bench_ppo
from statewise.bench import rounds as bench_rounds
from statewise.bench import scan as bench_scan
from statewise.data import DatasetInfo, EpisodeDataset, write_d4rl
from statewise.envs.build import FAMILIES, EnvConfig
from statewise.envs.previous import Input
from statewise.ssm.build import SEQUENCES
from statewise.training.config import load_config, load_preset
from statewise.training.run import RunDirectory
from tests.bench.offline_claims import run_here
from tests.training.offline_cases import play

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_OURS = {"build", "datasets", "dist", "runs"}
INPUTS = get_args(Input)
# Long enough for an episode of every preset named here to end.
STEPS = 240
TINY = [
    "--total_steps",
    str(STEPS),
    "--rollout_steps",
    "64",
    "--env.num_envs",
    "4",
    "--agent.num_minibatches",
    "4",
]
TINY_ON_DATA = [
    "--total-updates",
    "2",
    "--agent.batch-size",
    "2",
    "--eval.episodes",
    "2",
    "--eval.num-envs",
    "2",
]
TINY_WORLD = [
    "--total-steps",
    "40",
    "--env.num-envs",
    "2",
    "--windows.batch-size",
    "2",
    "--windows.length",
    "4",
    "--windows.train-ratio",
    "1",
    "--windows.prefill",
    "24",
    "--eval.every-steps",
    "0",
]
RUNS = {
    "runs/ppo-repeat_previous_easy-1": ["ppo/repeat_previous_easy"],
    "runs/ppo-cartpole-1": ["ppo/cartpole"],
    "runs/decision_s4-pendulum-1": [
        "decision_s4/pendulum",
        "--data",
        "datasets/pendulum/full-replay.hdf5",
    ],
    "runs/r2i-delayed_offer-1": ["r2i/delayed_offer"],
}
TOOLS = {"mypy", "pre-commit", "python", "ruff", "torchrun"}  # other documents may call these, too
PLACEHOLDER = re.compile(r"@[A-Z]+@")
# A call of the program in a recipe, and the variable of the shell that takes what it prints.
CALL = re.compile(r"(?:(\w+)=\$\()?\S*bin/statewise ([^)&|;]+)")
PROGRAM = re.compile(r"(?:\.venv/bin/)?statewise$")


def with_tiny_settings(words: list[str]) -> list[str]:
    """Let training be short; the help and a resumed run take no settings."""
    if {"--resume", "--help"} & set(words):
        return words
    if words[1].startswith("r2i/"):
        return [*words, *TINY_WORLD]
    return [*words, *(TINY_ON_DATA if "--data" in words else TINY)]


def with_few_episodes(words: list[str]) -> list[str]:
    return [*words, "--episodes", "2"]  # the last of two options wins


def with_data_of_a_formula(words: list[str]) -> list[str]:
    """Make the data set that needs no training."""
    return ["data", "make", "double-integrator"] if words[1] == "make" else words


def as_it_is(words: list[str]) -> list[str]:
    return words


def with_quick_sizes(words: list[str]) -> list[str]:
    alone = ["--workers", "1"] if words[1] == "diagnose" else []
    return [*words, "--quick", *alone]


def with_a_tiny_claim(words: list[str]) -> list[str]:
    """Put in the place of the claim, or of all of them, the same with one arm and few steps."""
    [name] = {word for word in words if word in {*claims.claim_names(), "--all"}}
    claim = claims.load_claim(claims.claim_names()[0] if name == "--all" else name)
    tiny = {
        "title": claim.title,
        "statement": claim.statement,
        "seeds": [1],
        "episodes": 2,
        "actions": claim.actions,
        "arms": [
            {
                "name": "s5",
                "preset": "ppo/repeat_previous_easy",
                "overrides": {
                    "total_steps": STEPS,
                    "rollout_steps": 64,
                    "env.num_envs": 4,
                    "agent.num_minibatches": 4,
                },
            }
        ],
        "checks": [{"arm": "s5", "statistic": "mean", "at_least": -10}],
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    return ["tiny.yaml" if word == name else word for word in words]


def run_job_here(job: dict[str, Any], **_: str) -> dict[str, Any]:
    """Run a job of a benchmark without the process that it would get: starting one takes long."""
    answer: dict[str, Any] = json.loads(json.dumps(worker.run_job(json.loads(json.dumps(job)))))
    return answer


def with_few_steps(words: list[str]) -> list[str]:
    settings = {"total-steps": 60, "learning-starts": 20, "actor-critic.critic-only-steps": 20}
    return words + [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def with_one_task(words: list[str]) -> list[str]:
    at = words.index("--tasks")
    words = [*words[: at + 1], "popgym-RepeatPreviousEasy-v0", *words[at + 2 :], *TINY]
    return [
        *words,
        "--seeds",
        "1",
        "--workers",
        "1",
        *("--eval.episodes", "2", "--eval.num-envs", "2"),
    ]


SHRINK: dict[str, Callable[[list[str]], list[str]]] = {
    "data": with_data_of_a_formula,
    "train": with_tiny_settings,
    "eval": with_few_episodes,
    "finetune": with_few_steps,
    "plot": as_it_is,
    "imagine": as_it_is,
    "inspect": as_it_is,
    "export": as_it_is,
    "list": as_it_is,
    "doctor": as_it_is,
    "bench": with_quick_sizes,
    "reproduce": with_a_tiny_claim,
    "suite": with_one_task,
}


def fenced(language: str, text: str) -> Iterator[str]:
    """Yield the fenced blocks of a language."""
    for match in re.finditer(rf"^```(?:{language})\n(.*?)^```$", text, re.M | re.S):
        yield match[1]


def commands(text: str) -> list[str]:
    """Return every command of a text: lines of shell blocks, and spans that begin like one."""
    lines = [
        line.removeprefix("$ ").partition(" #")[0].strip()
        for block in fenced("bash|console|sh|shell", text)
        for line in block.splitlines()
    ]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    lines += [span for span in re.findall(r"`([^`\n]+)`", prose) if is_command(span)]
    return list(dict.fromkeys(line for line in lines if line))


def is_command(span: str) -> bool:
    return " " in span and (span.startswith("make ") or bool(PROGRAM.match(span.split()[0])))


def dry_run(line: str) -> list[str]:
    """Return the recipe that `make` would run for a line, without running anything."""
    words = shlex.split(line)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run(
        ["make", "--dry-run", *words[1:]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{line}: {result.stderr.strip()}"
    return [entry for entry in result.stdout.splitlines() if not entry.startswith("make")]


def make_data(path: Path) -> None:
    """Write two episodes of Pendulum that a random policy played."""
    facts = DatasetInfo(
        env_id="Pendulum-v1", max_episode_steps=200, ref_min=-1200.0, ref_max=-150.0
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    episodes = play(gymnasium.make("Pendulum-v1"), 2, seed=0)
    write_d4rl(EpisodeDataset.from_episodes(episodes, facts), path)


def make_runs(words: list[str]) -> None:
    """Make, in a moment, the data and runs that a command reads and that are not there yet."""
    written = words[words.index("--run") + 1] if "--run" in words else None
    for word in words:
        if word.startswith("datasets/") and not Path(word).exists():
            make_data(Path(word))
        if word.startswith("runs/") and word != written and not Path(word).exists():
            assert word in RUNS, f"{word}: expected a run of {sorted(RUNS)}: say how it is made"
            make_runs(RUNS[word])
            made = with_tiny_settings(["train", *RUNS[word], "--run", word])
            assert program.main(made) == 0
    if "--resume" in words:  # what was stopped half way is a run with fewer steps than it wants
        config = RunDirectory.open(Path(words[words.index("--resume") + 1])).config_path
        text = config.read_text()
        assert f"total_steps: {STEPS}\n" in text
        config.write_text(text.replace(f"total_steps: {STEPS}\n", f"total_steps: {2 * STEPS}\n"))


def run_statewise(line: str) -> None:
    """Run one `statewise` command, shrunk, in the working directory."""
    words = shlex.split(line)[1:]
    assert words[0] in SHRINK, f"{line}: expected one of {sorted(SHRINK)}: say how it is shrunk"
    make_runs(words)
    try:
        status = program.main(SHRINK[words[0]](words))
    except SystemExit as stop:  # how argparse ends after the help
        status = int(stop.code or 0)
    assert status == 0, line


def check_words(line: str) -> None:
    """Check what can be checked of a command without running it."""
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "make":
        assert dry_run(f"{line} --always-make")
    elif is_command(line):
        assert words[1] in program.COMMANDS, f"{line}: no such command"
        if words[1] == "train" and len(words) > 2 and not words[2].startswith("-"):
            load_preset(words[2], words[3:])
    else:
        assert Path(words[0]).name in TOOLS or (ROOT / words[0]).is_file(), line
        missing = [w for w in words if w.startswith("tests/") and not (ROOT / w).exists()]
        assert not missing, f"{line}: no {missing}"


def check_links(path: Path) -> list[str]:
    """Return the links of a document that lead nowhere in the repository."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    relative = [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)]
    return [target for target in relative if not (path.parent / target).exists()]


def documents() -> list[Path]:
    """Return every Markdown file of the project."""
    found: list[Path] = []
    for folder, inner, files in os.walk(ROOT):
        inner[:] = [name for name in inner if name not in NOT_OURS and not name.startswith(".")]
        found += [Path(folder) / name for name in files if name.endswith(".md")]
    return sorted(found)


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


MAKE_LINES = [line for line in commands(README) if line.startswith("make ")]
PAGES = [path for path in documents() if path != ROOT / "README.md"]
STATEWISE_LINES = [line for line in commands(README) if not line.startswith("make ")]


# --- commands


@pytest.mark.parametrize("line", STATEWISE_LINES)
def test_every_command_of_the_readme_runs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_command(line), f"{line}: expected make or statewise: say how it is checked"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_scan, "launch", run_job_here)
    monkeypatch.setattr(bench_ppo, "launch", run_job_here)
    monkeypatch.setattr(bench_layers, "launch", run_job_here)
    monkeypatch.setattr(bench_rounds, "launch", run_job_here)
    run_here(monkeypatch)
    run_here(monkeypatch, bench_diagnose)
    run_statewise(line)


@pytest.mark.parametrize("line", MAKE_LINES)
def test_every_make_target_of_the_readme_has_a_recipe(line: str) -> None:
    assert dry_run(f"{line} --always-make")


@pytest.mark.parametrize(
    "line", [line for line in MAKE_LINES if line.split()[1] in ("train", "results")]
)
def test_what_make_calls_runs(
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = " ".join(entry.removesuffix("\\") for entry in dry_run(line))
    monkeypatch.chdir(tmp_path)
    run_here(monkeypatch)
    printed: dict[str, str] = {}
    for name, call in CALL.findall(recipe):
        for known, text in printed.items():
            call = call.replace(f"${known}", text)
        capsys.readouterr()
        run_statewise(f"statewise {call}")
        printed[name or "_"] = capsys.readouterr().out.splitlines()[-1]
    assert printed
    if line == "make train":
        assert printed["run"] in README
        assert Path(printed["curve"]).is_file()


def test_the_two_commands_come_first() -> None:
    assert next(fenced("bash", README)).split("\n") == ["make train", "make test", ""]
    assert any("pytest" in entry for entry in dry_run("make test"))


def test_a_train_command_leaves_a_run_where_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_statewise("statewise train ppo/cartpole")
    assert load_config(Path("runs/ppo-cartpole-1/config.yaml")).env.id == "CartPole-v1"
    for run, (preset, *_) in RUNS.items():
        assert load_preset(preset), run


def test_an_unknown_command_or_run_is_not_taken_for_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="say how it is shrunk"):
        run_statewise("statewise dream")
    with pytest.raises(AssertionError, match="say how it is made"):
        run_statewise("statewise plot runs/unheard-of")


def test_commands_are_found_in_blocks_and_in_spans() -> None:
    text = "a `statewise list` b `runs/x`\n```bash\nmake lint  # all\n```\n```python\nx\n```\n"
    assert commands(text) == ["make lint", "statewise list"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_the_other_documents_could_run(path: Path) -> None:
    for line in commands(path.read_text(encoding="utf-8")):
        check_words(line)


# --- Python


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = list(fenced("python", README))
    assert len(blocks) == 1
    code = re.sub(r"total_timesteps=[\d_]+", "total_timesteps=64", blocks[0])
    monkeypatch.chdir(tmp_path)
    make_runs(re.findall(r'load\("([^"]+)"\)', code))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert {"agent", "action", "memory", "own"} <= set(names)
    assert len(blocks[0].splitlines()) <= 12


# --- what the tables and links say


def test_the_readme_has_a_row_for_every_layer_and_agent() -> None:
    rows = table_rows(README)
    for name, page in [(n, r.page) for n, r in SEQUENCES.items()] + [
        (n, r.page) for n, r in AGENTS.items()
    ]:
        assert any(f"`{name}`" in row and page in row for row in rows), f"no row for {name}"
        assert (ROOT / page).is_file()


def test_the_readme_has_a_row_for_every_family_of_environments() -> None:
    for family in FAMILIES:
        rows = [row for row in table_rows(README) if f"`{family.example}`" in row]
        assert rows, f"no row for {family.example}"
        assert family.extra is None or f"`{family.extra}`" in rows[0]


def test_every_kernel_has_a_readme() -> None:
    for folder in {path.parent for path in (ROOT / "kernels").glob("*/op.py")}:
        assert (folder / "README.md").is_file(), f"{folder.name} has no README.md"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    assert check_links(path) == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_waits_for_what_is_to_be_filled_in(path: Path) -> None:
    assert PLACEHOLDER.findall(path.read_text(encoding="utf-8")) == []


def test_a_placeholder_would_be_seen() -> None:
    assert PLACEHOLDER.findall("a@b.org @RESULTS@ `@dataclass`") == ["@RESULTS@"]


def test_the_page_of_environments_has_every_family_and_every_setting() -> None:
    rows = table_rows((ROOT / "docs/environments.md").read_text(encoding="utf-8"))
    for family in FAMILIES:
        named = [row for row in rows if f"`{family.example}`" in row]
        assert any(f"`{family.prefix}`" in row or not family.prefix for row in named), family.prefix
    for setting in dataclasses.fields(EnvConfig):
        found = [row for row in rows if re.match(rf"\| `env\.{setting.name}[`.]", row)]
        assert len(found) == 1, f"{len(found)} rows for env.{setting.name}"
        words = INPUTS if setting.name == "inputs" else ()
        assert all(f"`{word}`" in found[0] for word in words), found[0]


def test_a_dead_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](page.md) [b](gone.md#x) [c](https://example.org) `[d](code.md)`\n")
    assert check_links(page) == ["gone.md"]
