"""Read a search-space file into a checked `SearchSpace`: one line names what is wrong, and where.

Only settings that leave `val_loss` comparable and the prepared data valid may be
searched, so a space that would compare losses of different kinds, or need another
encoder run per trial, is refused here and not discovered after a night of training.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from sesttune.config.checks import SEARCHERS
from sesttune.config.load import check_key
from sesttune.config.values import refuse_disguised
from sesttune.errors import UserError
from sesttune.search.constraint import Constraint, parse_constraint
from sesttune.search.parameter import Parameter
from sesttune.search.space import TUNABLE, SearchSpace

SPACES_FOLDER = Path(__file__).resolve().parents[1] / "search_spaces"
"""In a checkout a link to the one at the top; a wheel has the files themselves."""
_WHY_NOT = {
    "training.train_seed": "the validation sets follow the seed, so val_loss cannot be ranked",
    "model.kwargs.loss": "trials with different losses cannot be ranked by val_loss",
    "model.kwargs.st_cell_set_len": "val_loss depends on the set length, so it cannot be ranked",
    "training.val_check_interval": "trials validated at different steps cannot share rungs",
}
_LARGEST_INT = 2**53
"""Optuna keeps whole numbers as floats, which skip some beyond it."""
_KEYS = ("searcher", "num_trials", "parameters", "constraints")
_FIELDS = {
    "choice": ("values",),
    "uniform": ("low", "high", "quantum"),
    "loguniform": ("low", "high"),
    "int": ("low", "high", "quantum"),
}


def load_space(name_or_path: str) -> SearchSpace:
    """Read a YAML file, or the file of that name in `search_spaces/`.

    A bare name is looked for in `./search_spaces` and then in the package.
    Raises UserError naming the file and the key, and what would be right.
    """
    path = _find(name_or_path)
    try:
        # OmegaConf's reader takes 1e-4 for a number, plain YAML 1.1 takes it for a string.
        content = OmegaConf.to_container(OmegaConf.load(path))
        written = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)  # of which all is text
    except Exception as error:  # yaml and omegaconf raise unrelated families
        line = " ".join(str(error).split())
        raise UserError(f"search space {path} is not valid YAML: {line}") from None
    if not isinstance(content, dict):
        raise UserError(f"search space {path} must hold a mapping with 'parameters:'")
    try:
        refuse_disguised(written)
    except ValueError as error:
        raise UserError(f"search space {path}: {error}") from None
    return parse_space(cast(dict[str, Any], content), str(path))


def parse_space(content: Mapping[str, Any], source: str) -> SearchSpace:
    """Check the content of a space file; `source` names it in errors."""
    where = f"search space {source}"
    for key in content:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1, cutoff=0.0)
            raise UserError(f"{where}: unknown key '{key}', did you mean '{near[0]}'?")
    described = content.get("parameters")
    if not isinstance(described, Mapping) or not described:
        raise UserError(f"{where}: 'parameters:' must list at least one key to search")
    searcher = content.get("searcher", "tpe")
    if searcher not in SEARCHERS:
        raise UserError(f"{where}: searcher '{searcher}' is not one of {', '.join(SEARCHERS)}")
    num_trials = content.get("num_trials", 16)
    if not _is_int(num_trials) or num_trials < 1:
        raise UserError(f"{where}: num_trials={num_trials} must be a whole number, at least 1")
    parameters: dict[str, Parameter] = {}
    for key, value in described.items():
        parameters[str(key)] = _parameter(str(key), value, parameters, f"{where}: {key}")
    space = SearchSpace(
        source, parameters, searcher, num_trials, _constraints(content.get("constraints"), where)
    )
    if searcher == "grid":
        space.require_finite()
    return space


def _find(name: str) -> Path:
    given = Path(name).expanduser()
    if given.suffix in (".yaml", ".yml") and given.is_file():
        return given
    folders = [Path("search_spaces"), SPACES_FOLDER]
    for folder in folders:
        path = folder / f"{given.name.removesuffix('.yaml').removesuffix('.yml')}.yaml"
        if given.parent == Path() and path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(
        f"sweep.space={name}: no such file; give a YAML file or one of {', '.join(known)}"
    )


def _parameter(
    key: str, description: object, before: Mapping[str, Parameter], where: str
) -> Parameter:
    """`before`: the parameters further up in the file, which a condition may name."""
    _check_tunable(key, where)
    if not isinstance(description, Mapping):
        raise UserError(f"{where}: write {{type: choice, values: [...]}} or a range")
    kind = description.get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise UserError(f"{where}: type '{kind}' is not one of {', '.join(_FIELDS)}")
    for name in description:
        if name not in ("type", "when") and name not in _FIELDS[kind]:
            wanted = ", ".join(_FIELDS[kind])
            raise UserError(f"{where}: '{name}' does not go with type {kind} (it takes {wanted})")
    when = _condition(description.get("when", {}), before, where)
    if kind == "choice":
        values = _choices(description.get("values"), "values", where)
        return Parameter("choice", values=values, when=when)
    return replace(_range(kind, description, where), when=when)


def _condition(
    described: object, before: Mapping[str, Parameter], where: str
) -> dict[str, tuple[Any, ...]]:
    if not isinstance(described, Mapping):
        raise UserError(f"{where}: write when: {{training.lr_schedule: [cosine, wsd]}}")
    when = {}
    for key, values in described.items():
        if key not in before:
            known = ", ".join(before) or "none"
            raise UserError(f"{where}: 'when' names {key}; it may name keys above it: {known}")
        grid = before[key].grid()
        wanted = _choices(values, f"when {key}", where)
        if grid is None or not all(value in grid for value in wanted):
            raise UserError(f"{where}: 'when' wants {key} to be {list(wanted)}, which it never is")
        when[str(key)] = wanted
    return when


def _constraints(described: object, where: str) -> tuple[Constraint, ...]:
    if described is None:
        return ()
    if not isinstance(described, Sequence) or isinstance(described, str):
        raise UserError(f"{where}: 'constraints' must be a list of comparisons")
    return tuple(parse_constraint(text, TUNABLE, f"{where}: constraints") for text in described)


def _check_tunable(key: str, where: str) -> None:
    if key in TUNABLE:
        return
    try:
        check_key(key)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    why = _WHY_NOT.get(key, "it does not belong to a single trial")
    raise UserError(f"{where} cannot be searched: {why}; searchable are {', '.join(TUNABLE)}")


def _choices(values: object, what: str, where: str) -> tuple[Any, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise UserError(f"{where}: '{what}' must be a list with at least one value")
    if any(not isinstance(value, str | bool | int | float | None) for value in values):
        raise UserError(f"{where}: '{what}' must be plain numbers, words or null")
    if len(set(values)) < len(values):
        raise UserError(f"{where}: '{what}' names the same value twice")
    return tuple(values)


def _range(kind: str, description: Mapping[str, Any], where: str) -> Parameter:
    for name in ("low", "high"):
        if not _is_number(description.get(name)):
            raise UserError(f"{where}: '{name}' must be a number, got {description.get(name)}")
    low, high, quantum = description["low"], description["high"], description.get("quantum")
    if low >= high:
        raise UserError(f"{where}: low={low} must be below high={high}")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{where}: low={low} must be above 0 for a loguniform range")
    if quantum is not None and not (_is_number(quantum) and 0 < quantum <= high - low):
        raise UserError(f"{where}: quantum={quantum} must be above 0 and fit between low and high")
    if kind == "int" and not (_is_int(low) and _is_int(high) and (quantum or 1) % 1 == 0):
        raise UserError(f"{where}: low, high and quantum of an int range must be whole numbers")
    if kind == "int" and max(-low, high) > _LARGEST_INT:
        raise UserError(f"{where}: low and high of an int range must be within ±2^53")
    return Parameter(kind, low=low, high=high, quantum=quantum)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))
