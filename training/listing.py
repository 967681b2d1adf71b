"""What `statewise list` shows: the literal tables of the folders, and what is installed."""

from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from statewise.agents.build import AGENTS
from statewise.envs.build import FAMILIES, find_family
from statewise.ssm.build import SEQUENCES
from statewise.training.config import S4WMRun, load_preset, preset_about, preset_names


def listing_table(topic: str) -> Table:
    """Return what there is of a topic: presets, layers, agents or envs."""
    return _TOPICS[topic]()


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as Text: brackets of an extra are no markup
    return table


def _presets() -> Table:
    return _table("presets", ("preset", "what"), [(name, _expect(name)) for name in preset_names()])


def _expect(preset: str) -> str:
    config = load_preset(preset)
    missing = None if isinstance(config, S4WMRun) else find_family(config.env.id).missing()
    return preset_about(preset) + (f" Needs: {missing}" if missing else "")


def _layers() -> Table:
    rows = [(name, row.about, row.page) for name, row in SEQUENCES.items()]
    return _table("layers", ("agent.sequence.kind", "what", "page"), rows)


def _agents() -> Table:
    rows = [(name, row.loop, row.about, row.page) for name, row in AGENTS.items()]
    return _table("agents", ("system", "loop", "what", "page"), rows)


def _envs() -> Table:
    rows = [
        (row.prefix or "anything else", row.example, row.missing() or "installed")
        for row in FAMILIES
    ]
    return _table("envs", ("ids that begin with", "for example", "state"), rows)


_TOPICS: dict[str, Callable[[], Table]] = {
    "presets": _presets,
    "layers": _layers,
    "agents": _agents,
    "envs": _envs,
}
