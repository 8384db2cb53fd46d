"""Values as a person writes them: text literally, all else as YAML, but no number in disguise.

To YAML `007` and `0500` are octal, `1:30` is base 60, `no` is false and ` #` begins a comment.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast, get_args

from omegaconf import OmegaConf

from sesttune.config.schema import Config

NOTHING = ("", "~", "null")
_PLAINLY = "write plain decimal numbers, without a leading 0 and without ':'"
_DISGUISED = re.compile(r"(?<![\w.+-])[-+]?0\d|\d:\d")


def read_value(key: str, text: str) -> object:
    """The value of the setting `key` from a command line.

    Text may be quoted. Raises ValueError, or what YAML raises, where it cannot be read.
    """
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if takes_text(key) and not quoted:
        return None if text in NOTHING else text
    return _from_yaml(text) if quoted else _undisguised(_from_yaml(text), text)


def value_in_file(key: str, value: object, written: object) -> object:
    """The value of the setting `key` that YAML read as `value` where a file has `written`."""
    if isinstance(written, str) and takes_text(key):
        return value if value is None else written
    if not isinstance(value, str):
        refuse_disguised(written, key)
    return value


def refuse_disguised(written: object, key: str = "") -> None:
    """Raise ValueError with key and text where `written` is, or holds, a number in disguise.

    `written`: the text that a YAML file has under `key`, or lists and mappings of it.
    """
    if isinstance(written, Mapping):
        for name, part in written.items():
            refuse_disguised(part, f"{key}.{name}" if key else name)
    elif isinstance(written, list):
        for part in written:
            refuse_disguised(part, key)
    elif isinstance(written, str) and _DISGUISED.search(written):
        raise ValueError(f"{key}={written}: {_PLAINLY}")


def write_value(key: str, value: object) -> str:
    """`value` so that `read_value` reads the same; text is quoted only where it must be."""
    if takes_text(key) and isinstance(value, str):
        plain = value not in NOTHING and value[0] not in "'\""
        return value if plain else json.dumps(value)
    return json.dumps(value)


def takes_text(key: str) -> bool:
    """Whether the setting is text, and not a number that may be text too."""
    schema: Any = Config
    for name in key.split("."):
        schema = next(item.type for item in fields(schema) if item.name == name)
    kinds = get_args(schema) or (schema,)
    return str in kinds and not {int, float}.intersection(kinds)


def _from_yaml(text: str) -> object:
    # The YAML reader of OmegaConf, so that 1e-4 is a float and null is None.
    parsed = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))
    return cast(dict[str, object], parsed)["value"]


def _undisguised(value: object, text: str) -> object:
    if not isinstance(value, str) and _DISGUISED.search(text):
        raise ValueError(_PLAINLY)
    return value
