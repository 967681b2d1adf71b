"""What `statewise list` shows: the literal tables of the folders, and what is installed."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from statewise.agents.build import AGENTS
from statewise.envs.build import FAMILIES, find_family
from statewise.ssm.build import SEQUENCES
from statewise.training.config import load_preset, preset_about, preset_names

WORLD_MODELS = "statewise.worldmodels.build"


def listing_table(topic: str) -> RenderableType:
    """Return what there is of a topic: presets, layers, agents, worldmodels or envs."""
    return _TOPICS[topic]()


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, overflow="fold")
    return table


def _presets() -> Table:
    table = _table("presets", "preset", "what")
    for name in preset_names():
        missing = find_family(load_preset(name).env.id).missing()
        needs = f" Needs: {missing}" if missing else ""
        table.add_row(name, preset_about(name) + needs)
    return table


def _layers() -> Table:
    table = _table("layers", "agent.sequence.kind", "what", "page")
    for name, row in SEQUENCES.items():
        table.add_row(name, row.about, row.page)
    return table


def _agents() -> Table:
    table = _table("agents", "system", "loop", "what", "page")
    for name, row in AGENTS.items():
        table.add_row(name, row.loop, row.about, row.page)
    return table


def _world_models() -> RenderableType:
    if find_spec(WORLD_MODELS) is None:
        return Text("worldmodels: none in this version")
    table = _table("worldmodels", "model", "what", "page")
    rows: dict[str, Any] = import_module(WORLD_MODELS).WORLD_MODELS
    for name, row in rows.items():
        table.add_row(name, row.about, row.page)
    return table


def _envs() -> Table:
    table = _table("envs", "ids that begin with", "for example", "state")
    for row in FAMILIES:
        table.add_row(row.prefix or "anything else", row.example, row.missing() or "installed")
    return table


_TOPICS: dict[str, Callable[[], RenderableType]] = {
    "presets": _presets,
    "layers": _layers,
    "agents": _agents,
    "worldmodels": _world_models,
    "envs": _envs,
}
