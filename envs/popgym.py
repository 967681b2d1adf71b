"""POPGym's environments (Morad et al., 2023), ids `popgym-<Name><Easy|Medium|Hard>-v0`."""

import importlib
import importlib.util


def missing() -> str:
    """Return "" if popgym can be imported, else the line that installs it."""
    found = importlib.util.find_spec("popgym") is not None
    return "" if found else "pip install 'statewise[popgym]'"


def register() -> None:
    """Make the ids known to gymnasium, which importing the package does."""
    importlib.import_module("popgym")
