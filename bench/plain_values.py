"""Checks of the plain values of a claim file; every error names the file and the place in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from statewise.training.schema import ConfigError, nearest


@dataclass(frozen=True)
class PlainReader:
    """Returns values as what they should be; `where` is the dotted place of a value."""

    file: str

    def mapping(
        self, value: Any, where: str, needed: Sequence[str], optional: Sequence[str] = ()
    ) -> Mapping[str, Any]:
        """Return a mapping with all the needed keys and no unknown ones."""
        if not isinstance(value, Mapping):
            self.fail(where, "a mapping of fields", value)
        known = [*needed, *optional]
        for key in value:
            if key not in known:
                hint = nearest(str(key), known)
                self.fail(where, f"only {', '.join(known)}", f"{key!r}{hint}", plain=True)
        for key in needed:
            if key not in value:
                self.fail(where, f"the field {key}", "none", plain=True)
        fields: Mapping[str, Any] = value
        return fields

    def named(self, value: Any, where: str, expected: str) -> Mapping[str, Any]:
        """Return a mapping whose keys are text."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            self.fail(where, expected, value)
        fields: Mapping[str, Any] = value
        return fields

    def entries(self, value: Any, where: str) -> list[Any]:
        """Return a list with entries."""
        if not isinstance(value, list) or not value:
            self.fail(where, "a list that is not empty", value)
        entries: list[Any] = value
        return entries

    def text(self, value: Any, where: str) -> str:
        """Return text in one line."""
        if not isinstance(value, str) or not value.strip():
            self.fail(where, "text", value)
        return " ".join(str(value).split())

    def name(self, value: Any, where: str) -> str:
        """Return text that can be a part of a file's name."""
        name = self.text(value, where)
        if not name.replace("-", "").replace("_", "").isalnum():
            self.fail(where, "letters, digits, - and _", name)
        return name

    def choice(self, value: Any, where: str, allowed: Sequence[str]) -> str:
        """Return one of the allowed words."""
        if value not in allowed:
            self.fail(where, f"one of {', '.join(allowed)}", value)
        return str(value)

    def integer(self, value: Any, where: str, low: int) -> int:
        """Return an integer of at least `low`."""
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            self.fail(where, f"an integer of at least {low}", value)
        number: int = value
        return number

    def number(self, value: Any, where: str) -> float:
        """Return a finite number."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            self.fail(where, "a number", value)
        return float(value)

    def fail(self, where: str, expected: str, got: Any, *, plain: bool = False) -> NoReturn:
        """Raise ConfigError; `plain` shows text without quotes."""
        shown = got if plain else repr(got)
        raise ConfigError(f"{self.file}: {where}: expected {expected}, got {shown}")
