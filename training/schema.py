"""Walks over nested configuration dataclasses: dotted paths, nearest names, command-line words.

Knows the standard library's dataclasses and type hints only; `training.config` holds the
schema itself and builds it.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

ACTIONS = ("greedy", "sample")  # how an agent acts in evaluations: its mode, or a sample of it
NO_VALUE = (["none"], ["None"], ["null"])  # as the help and YAML have it


class ConfigError(ValueError):
    """A preset, a configuration file or an override is not what it should be."""


def check_at_least(low: int, **values: int) -> None:
    """Raise ValueError for the first value below `low`."""
    for name, value in values.items():
        if value < low:
            raise ValueError(f"{name}: expected at least {low}, got {value}")


def check_device(device: str) -> None:
    """Raise ValueError unless this is the name of a device."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {device!r}")


def reached(cls: type) -> Iterator[type[Any]]:
    """Yield a dataclass and every dataclass among the types of its fields, at any depth."""
    yield cls
    for annotation in typing.get_type_hints(cls).values():
        for part in (annotation, *typing.get_args(annotation)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                yield from reached(part)


def leaves(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every field that is no dataclass itself."""
    for name, annotation in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(annotation):
            yield from leaves(typing.cast(type, annotation), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def resolve(cls: type, path: str) -> Any:
    """Return the type hint at a dotted path; Any below a dictionary field.

    Raises:
        ConfigError: there is no such field; names the nearest ones.
    """
    annotation: Any = cls
    parts = path.split(".")
    for number, part in enumerate(parts):
        if typing.get_origin(annotation) is dict:
            return Any
        if not dataclasses.is_dataclass(annotation):
            above = ".".join(parts[:number])
            raise ConfigError(f"{path}: expected {above} alone: it is a value, not a group")
        hints = typing.get_type_hints(annotation)
        if part not in hints:
            raise ConfigError(unknown_field(cls, ".".join(parts[: number + 1])))
        annotation = hints[part]
    return annotation


def unknown_field(cls: type, path: str) -> str:
    """Say that `path` is no field, and which fields its author may have meant."""
    parent, _, name = path.rpartition(".")
    group = resolve(cls, parent) if parent else cls
    names = [entry.name for entry in dataclasses.fields(group)]
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    meant = [f"{parent}.{other}".lstrip(".") for other in close]
    if not meant:
        meant = [leaf for leaf in leaves(cls) if leaf.rpartition(".")[2] == name]
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"valid: {', '.join(names)}"
    return f"{path}: expected a known field, got an unknown one: {hint}"


def nearest(name: str, names: Sequence[str]) -> str:
    """Return ": did you mean ...?" with the names nearest to `name`, or nothing."""
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    return f": did you mean {' or '.join(close)}?" if close else ""


def number_problems(annotation: Any, value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, problem) where a boolean, or text in an integer field, would pass as a number.

    Args:
        annotation: type hint of `value`; a dataclass where `value` is a mapping.
        value: what is about to be validated.
        path: dotted path of `value`, empty at the root.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        for name, part in typing.get_type_hints(annotation).items():
            if name in value:
                yield from number_problems(part, value[name], f"{path}.{name}".lstrip("."))
    elif origin is tuple and isinstance(value, list | tuple):
        parts = args[:1] * len(value) if args[-1] is Ellipsis else args
        for number, (part, entry) in enumerate(zip(parts, value, strict=False)):
            yield from number_problems(part, entry, f"{path}.{number}")
    elif origin in (typing.Union, types.UnionType) and value is not None:
        yield from number_problems(_without_none(annotation), value, path)
    elif annotation is int and isinstance(value, bool | str | float):
        yield path, f"{path}: expected an integer, got {value!r}{_written_out(value)}"
    elif annotation is float and isinstance(value, bool):
        yield path, f"{path}: expected a number, got {value!r}"


def split_tokens(tokens: Sequence[str]) -> dict[str, list[str]]:
    """Group `--dotted.path value value` and `--dotted.path=value`; the last of a path wins.

    Raises:
        ConfigError: a value stands before any `--name`.
    """
    found: dict[str, list[str]] = {}
    words: list[str] | None = None
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            if not re.fullmatch(r"\w+([.-]\w+)*", name):
                raise ConfigError(f"expected --name value, got {token!r}")
            words = [value] if equals else []
            found[name.replace("-", "_")] = words
        elif words is None:
            hint = f": write --{token}" if "=" in token else ""
            raise ConfigError(f"expected --name value, got {token!r}{hint}")
        else:
            words.append(token)
    return found


def parse_words(
    path: str, words: Sequence[str], annotation: Any, read: Callable[[str], Any]
) -> Any:
    """Turn the words after an option into a value that suits the type of its field.

    Ranges and choices are not judged here, and a word that does not fit stays text.

    Args:
        path: dotted path, for errors.
        words: what stood after the option.
        annotation: type hint of the field.
        read: reads a word whose field has no type, below `env.kwargs`.

    Raises:
        ConfigError: the path is a group of fields, which takes {} alone, or the number of words
            is wrong.
    """
    if list(words) not in NO_VALUE:
        annotation = _without_none(annotation)
    if dataclasses.is_dataclass(annotation) and list(words) == ["{}"]:
        return {}  # back to its defaults
    if dataclasses.is_dataclass(annotation):
        names = ", ".join(f"--{path}.{entry.name}" for entry in dataclasses.fields(annotation))
        raise ConfigError(f"{path}: expected one of its fields, got the group: write {names}")
    if typing.get_origin(annotation) is tuple:
        entry = typing.get_args(annotation)[0]
        return [_parse_word(word, entry, read) for word in _entries(words)]
    if annotation is Any and len(words) > 1:
        return [read(word) for word in words]
    if typing.get_origin(annotation) is dict:
        return read(" ".join(words))
    if len(words) != 1:
        raise ConfigError(f"{path}: expected one value, got {' '.join(words) or 'none'}")
    return _parse_word(words[0], annotation, read)


def _entries(words: Sequence[str]) -> list[str]:
    """Return the entries of a list, also of one that is written as in YAML, `[64, 64]` or `[]`."""
    text = " ".join(words)
    if not (text.startswith("[") and text.endswith("]")):
        return list(words)
    return [entry for part in text[1:-1].split(",") if (entry := part.strip().strip("'\""))]


def _parse_word(word: str, annotation: Any, read: Callable[[str], Any]) -> Any:
    if annotation is int and re.fullmatch(r"[-+]?\d+(_\d+)*", word):
        return int(word)
    if annotation is bool:
        return {"true": True, "false": False}.get(word.lower(), word)
    if annotation is Any:
        return read(word)
    return None if types.NoneType in typing.get_args(annotation) else word


def _without_none(annotation: Any) -> Any:
    """Return T for `T | None`, else the hint itself."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    parts = [part for part in typing.get_args(annotation) if part is not types.NoneType]
    return parts[0] if len(parts) == 1 else annotation


def _written_out(value: bool | str | float) -> str:
    """Return ": write 1000000" for 1e6, which is a whole number but no integer notation."""
    if isinstance(value, bool):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    return f": write {number:.0f}" if number.is_integer() else ""
