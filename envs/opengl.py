"""OpenGL where there is no screen: which of MuJoCo's ways to draw this machine has.

MuJoCo's Python packages read MUJOCO_GL when they are first imported. A GPU draws through EGL;
Mesa draws on the CPU, through OSMesa or EGL. No other environment variable is set here.
"""

import ctypes
import ctypes.util
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from statewise.envs.protocol import EnvError

PACKAGES = "apt-get install -y --no-install-recommends libosmesa6 libegl1 libgl1"  # Debian
_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa", "glfw": "glfw"}


def _has_gpu() -> bool:
    return Path("/dev/dri").exists() or Path("/proc/driver/nvidia/version").exists()


def choose_for_mujoco() -> None:
    """Choose how MuJoCo will draw, unless the user has or there is no library for it."""
    if sys.platform == "linux" and "MUJOCO_GL" not in os.environ:
        for way in ("egl", "osmesa") if _has_gpu() else ("osmesa", "egl"):
            if ctypes.util.find_library(_LIBRARIES[way]) is not None:
                os.environ["MUJOCO_GL"] = way
                return


def check_mujoco(env_id: str) -> None:
    """Check that there is a library to draw an environment of MuJoCo with.

    Raises:
        EnvError: there is none, or the one that MUJOCO_GL names is missing.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if sys.platform != "linux" or (chosen and chosen not in _LIBRARIES):
        return
    wanted = [_LIBRARIES[chosen]] if chosen else ["OSMesa", "EGL"]
    if not any(ctypes.util.find_library(name) is not None for name in wanted):
        names = " or ".join(f"lib{name}" for name in wanted)
        raise EnvError(f"expected {names} to draw {env_id}, got none: {PACKAGES}")


def load_triton_first() -> None:
    """Import triton where it is installed, before Mesa is loaded to draw with.

    Both bring an LLVM, and triton 3.9 crashes the process if Mesa's is there already.
    """
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")


def load_globally() -> bool:
    """Make OpenGL's functions known to the whole process; return whether there is a library.

    A module that looks for them without naming a library, as envpool's do, has to be imported
    after this.
    """
    name = ctypes.util.find_library("GL") if sys.platform == "linux" else None
    if name is None:
        return sys.platform != "linux"
    ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    return True
