"""MuJoCo's warnings are told once, and no file of them is left behind."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mujoco")

CODE = """
import mujoco
from statewise.envs.build import EnvConfig, make_env
{first}
env = make_env(EnvConfig(id="HalfCheetah-v5", num_envs=3, vectorization="sync"))
model = mujoco.MjModel.from_xml_string("<mujoco><compiler settotalmass='3'/></mujoco>")
"""


def _output(first: str, folder: Path) -> str:
    command = [sys.executable, "-c", CODE.format(first=first)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert not list(folder.iterdir())
    return run.stdout + run.stderr


def test_a_warning_of_every_model_is_told_once(tmp_path: Path) -> None:
    assert _output("", tmp_path).count("settotalmass") == 1


def test_a_handler_of_the_user_stays(tmp_path: Path) -> None:
    own = "mujoco.set_mju_user_warning(lambda text: print('own', text[:9]))"
    text = _output(own, tmp_path)
    assert text.count("own compiler") >= 3
    assert "MuJoCo" not in text
