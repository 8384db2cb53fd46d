"""Durations as people write them: `90m`, `8h`, `1d12h`."""

import re

from sesttune.errors import UserError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str, key: str) -> float:
    """The duration in seconds, above 0; raises UserError naming `key` where it is not one."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not text or "".join(number + unit for number, unit in parts) != text:
        raise UserError(f"{key}={text} is not a duration: write e.g. 90m, 8h or 1d12h")
    total = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if total <= 0:
        raise UserError(f"{key}={text} must be longer than nothing")
    return total
