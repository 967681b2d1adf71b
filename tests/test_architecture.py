"""The shape of the repository: who imports whom, links, presets, and settings without a reader."""

import ast
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import statewise
from statewise.training.config import ROOTS, load_preset, preset_names
from statewise.training.schema import reached

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "statewise"
BELOW_TRAINING = {"kernels", "ssm", "nets", "worldmodels", "agents", "data", "envs", "configs"}
MAY_IMPORT: dict[str, set[str]] = {
    "configs": set(),
    "data": set(),
    "envs": set(),
    "kernels": set(),
    "ssm": {"kernels"},
    "nets": {"kernels", "ssm"},
    "worldmodels": {"kernels", "ssm", "nets", "data"},
    "agents": {"kernels", "ssm", "nets", "worldmodels", "data"},
    "training": BELOW_TRAINING,
    "bench": {*BELOW_TRAINING, "training"},
}
MUST_NOT_KNOW = {
    "configs": {"torch"},
    "data": {"gymnasium"},
    "envs": {"torch"},
    "kernels": {"gymnasium"},
    "ssm": {"gymnasium"},
}
OPTIONAL = {
    *("ale_py", "cv2", "dm_control", "gymnax", "jax", "minari", "popgym", "pyarrow", "pygame"),
    *("ray", "rliable", "sb3_contrib", "stable_baselines3"),
}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imported_folders(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported_names(path)]
    return {p[1] for p in parts if p[0] == PACKAGE and len(p) > 1 and p[1] in MAY_IMPORT}


def imported_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_names(path)}


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


def field_reads() -> set[str]:
    """Return every name that some source uses outside the checks of a dataclass.

    That is attributes that are read, and keys of literal dictionaries: loss terms meet their
    coefficients by name.
    """
    found = set()
    for folder in MAY_IMPORT:
        for path in sources(folder):
            tree = ast.parse(path.read_text())
            checks = {
                node
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef) and function.name == "__post_init__"
                for node in ast.walk(function)
            }
            found |= {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Load)
                and node not in checks
            }
            found |= {
                str(key.value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Dict)
                for key in node.keys
                if isinstance(key, ast.Constant)
            }
    return found


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_imports_point_downwards(folder: str) -> None:
    for path in sources(folder):
        extra = imported_folders(path) - MAY_IMPORT[folder] - {folder}
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


def test_an_upward_import_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text(
        "def f():\n    from statewise.agents import build\n    import statewise.envs.x\n"
    )
    assert imported_folders(path) == {"agents", "envs"}


@pytest.mark.parametrize("folder", sorted(MUST_NOT_KNOW))
def test_folders_do_not_know_what_is_not_their_business(folder: str) -> None:
    for path in sources(folder):
        extra = imported_packages(path) & MUST_NOT_KNOW[folder]
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


def test_one_file_knows_pydantic_and_tyro() -> None:
    users = {
        str(path.relative_to(ROOT))
        for folder in MAY_IMPORT
        for path in sources(folder)
        if imported_packages(path) & {"pydantic", "tyro"}
    }
    assert users == {"training/config.py"}


def test_nothing_is_pickled() -> None:
    for folder in MAY_IMPORT:
        for path in sources(folder):
            found = imported_packages(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
            assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


def test_configs_hold_no_python() -> None:
    assert sources("configs") == []


def test_every_folder_is_linked_under_the_import_name() -> None:
    for folder in MAY_IMPORT:
        link = ROOT / "src" / PACKAGE / folder
        assert link.is_dir(), f"src/{PACKAGE}/{folder}: expected a link to {folder}/"
        assert link.resolve() == ROOT / folder, f"src/{PACKAGE}/{folder} does not reach {folder}/"


def test_every_linked_folder_has_rules() -> None:
    linked = {path.name for path in (ROOT / "src" / PACKAGE).iterdir() if path.is_symlink()}
    assert linked == set(MAY_IMPORT)


def test_importing_the_package_imports_nothing_else() -> None:
    loaded = modules_after("import statewise")
    assert not loaded & (OPTIONAL | {"torch", "numpy", "gymnasium", "pydantic", "tyro", "rich"})


def test_training_and_loading_need_no_extra() -> None:
    loaded = modules_after("import statewise\nstatewise.load, statewise.make, statewise.train")
    assert "torch" in loaded
    assert not loaded & OPTIONAL


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    assert {"load", "make", "train", "__version__"} <= set(dir(statewise))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = statewise.lod


def test_every_setting_has_a_reader() -> None:
    reads = field_reads()
    unread = [
        f"{cls.__name__}.{entry.name}"
        for root in ROOTS.values()
        for cls in reached(root)
        for entry in dataclasses.fields(cls)
        if entry.name not in reads
    ]
    assert unread == []


def test_every_preset_loads_and_states_which_system_it_is_for() -> None:
    assert preset_names()
    for name in preset_names():
        assert name.startswith(f"{load_preset(name).system}/")
