"""The data sets that a claim learns from, as `statewise data make` makes them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from statewise.bench.plain_values import PlainReader
from statewise.training.make_data_folder import is_complete, settings_hash
from statewise.training.make_data_recipes import (
    TOYS,
    MakeConfig,
    ToyConfig,
    check_levels,
    find_recipe,
    folder_name,
    level_names,
    settings_of,
)
from statewise.training.schema import ConfigError

NUMBERS = {"length": 1, "steps": 1, "episodes": 1, "seed": 0}
"""Options of `statewise data make`, and the lowest number that each takes."""
MAKE, SKIP = "make", "skip"
_DIGITS = 8  # of a hash in the name of a folder


@dataclass(frozen=True)
class ClaimData:
    """Some levels of a data set."""

    name: str
    config: MakeConfig | ToyConfig
    levels: tuple[str, ...]
    folder: str
    """That of `statewise data make`, below the same root."""
    if_missing: str = MAKE
    """`MAKE`: it is made; `SKIP`: what learns from it is not run."""

    def files(self, root: Path) -> tuple[str, ...]:
        """Return what runs read, in the order of the levels."""
        return tuple(str(root / self.folder / f"{level}.hdf5") for level in self.levels)

    def is_there(self, root: Path) -> bool:
        """Return whether it has been made below `root`."""
        return is_complete(root / self.folder, settings_of(self.config), self.levels)

    @property
    def env_id(self) -> str:
        """The environment of the data."""
        config = self.config
        return TOYS[config.toy].env_id if isinstance(config, ToyConfig) else config.env_id

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Overrides of a run by which its environment is that of the data."""
        if isinstance(self.config, ToyConfig) and self.config.length is not None:
            return {f"env.kwargs.{TOYS[self.config.toy].length_kwarg}": self.config.length}
        return {}

    @property
    def obs_keys(self) -> tuple[str, ...]:
        """The names of its observations."""
        if isinstance(self.config, MakeConfig):  # of environments with one box
            return ("obs",)
        one = replace(self.config, episodes=1).make(self.levels[0])
        return tuple(one.info.obs_specs)


def read_claim_data(reader: PlainReader, name: str, value: Any) -> ClaimData:
    """Return the data set of an entry of `data`.

    Args:
        reader: of the claim file.
        name: of the entry.
        value: {make: ENV, levels: [LEVEL, ...], if_missing: make} and of `NUMBERS` what differs
            from the recipe; without levels all of them.

    Raises:
        ConfigError: it is something else, or nothing that can be made.
    """
    where = f"data.{reader.name(name, 'data')}"
    fields = reader.mapping(value, where, ("make",), ("levels", "if_missing", *NUMBERS))
    make = reader.text(fields["make"], f"{where}.make")
    numbers: dict[str, Any] = {
        key: reader.integer(fields[key], f"{where}.{key}", low)
        for key, low in NUMBERS.items()
        if key in fields
    }
    levels: tuple[str, ...] = ()
    if "levels" in fields:
        entries = reader.entries(fields["levels"], f"{where}.levels")
        levels = tuple(reader.text(entry, f"{where}.levels") for entry in entries)
    if_missing = reader.choice(fields.get("if_missing", MAKE), f"{where}.if_missing", (MAKE, SKIP))
    try:
        config = find_recipe(make, **numbers)
        check_levels(config, levels)
    except ConfigError as error:
        raise ConfigError(f"{reader.file}: {where}: {error}") from None
    folder = folder_name(make, config)
    if numbers.keys() - {"length"}:  # another set than the one that the name stands for
        folder += f"-{settings_hash(settings_of(config))[:_DIGITS]}"
    return ClaimData(name, config, levels or level_names(config), folder, if_missing)
