"""MuJoCo's warnings, each of them once per process.

MuJoCo prints every warning for each model that is loaded, and appends it to a file MUJOCO_LOG.TXT
in the working folder. Here they go to `logging` instead.
"""

import functools
import importlib
import logging

_log = logging.getLogger(__name__)


@functools.cache
def _tell(text: str) -> None:
    _log.warning("MuJoCo: %s", text)


def tell_each_once() -> None:
    """Let MuJoCo's warnings be logged once each, unless the user has set a handler.

    Raises:
        ImportError: there is no mujoco package.
    """
    mujoco = importlib.import_module("mujoco")
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_tell)
