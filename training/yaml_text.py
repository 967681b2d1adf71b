"""Reading YAML without its traps."""

import re
from pathlib import Path
from typing import Any

import yaml

from statewise.training.schema import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML without two traps: `3e-4` is a number here, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                mark = node.value[number][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"the key {key} twice", problem_mark=mark)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds: mappings, lists, numbers and text, never objects.

    Raises:
        ConfigError: the file cannot be read or is not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a configuration file, got: {error.strerror}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "text that is not YAML"
        raise ConfigError(f"{path}: {line}expected YAML, got {problem}") from error


def read_word(word: str) -> Any:
    """Return one word of a command line as YAML would read it, or the word itself."""
    try:
        return yaml.load(word, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError:
        return word
