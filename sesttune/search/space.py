"""What a sweep varies: a YAML file read once into a checked, frozen `SearchSpace`.

Only settings that leave `val_loss` comparable and the prepared data valid may be
searched, so a space that would compare losses of different kinds, or need another
encoder run per trial, is refused here and not discovered after a night of training.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

from sesttune.config.load import check_key, with_point
from sesttune.config.schema import Config
from sesttune.errors import UserError

SPACES_FOLDER = Path(__file__).resolve().parents[2] / "search_spaces"
SEARCHERS = ("tpe", "random", "grid")
TUNABLE = (
    "training.max_steps",
    "training.batch_size",
    "training.lr",
    "training.lr_schedule",
    "training.warmup_steps",
    "training.lr_decay_frac",
    "training.lr_final_frac",
    "training.weight_decay",
    "training.ema_decay",
    "training.gradient_clip_val",
    "training.accumulate_grad_batches",
    "model.kwargs.hidden_dim",
    "model.kwargs.n_layers",
    "model.kwargs.n_heads",
    "model.kwargs.dropout",
)
_WHY_NOT = {
    "training.train_seed": "the validation sets follow the seed, so val_loss cannot be ranked",
    "model.kwargs.loss": "trials with different losses cannot be ranked by val_loss",
    "model.kwargs.st_cell_set_len": "val_loss depends on the set length, so it cannot be ranked",
    "training.val_check_interval": "trials validated at different steps cannot share rungs",
}
_KEYS = ("searcher", "num_trials", "parameters")
_FIELDS = {
    "choice": ("values",),
    "uniform": ("low", "high", "quantum"),
    "loguniform": ("low", "high"),
    "int": ("low", "high", "quantum"),
}

Point = dict[str, Any]
"""One setting of every searched key, e.g. `{"training.lr": 1e-4}`."""


@dataclass(frozen=True)
class Parameter:
    """One searched key. `values` for a choice; `low` to `high`, both included, else."""

    kind: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    quantum: float | None = None

    def grid(self) -> tuple[Any, ...] | None:
        """Every value it can take; None where there is no end of them."""
        if self.kind == "choice":
            return self.values
        if self.kind == "int":
            return tuple(range(int(self.low), int(self.high) + 1, int(self.quantum or 1)))
        if self.kind == "uniform" and self.quantum:
            steps = int((self.high - self.low) / self.quantum + 1e-9)
            # Rounded, so that 3 x 0.1 is 0.3 as the file would write it.
            return tuple(round(self.low + k * self.quantum, 12) for k in range(steps + 1))
        return None

    def extremes(self) -> tuple[Any, ...]:
        """Values that must be acceptable settings, the ends of the range among them."""
        grid = self.grid()
        if grid is not None:
            return grid if self.kind == "choice" else (grid[0], grid[-1])
        # A fraction in between, so that a real range over a whole-number key is refused.
        return (float(self.low), float(self.high), self.low + (self.high - self.low) / math.e)


@dataclass(frozen=True)
class SearchSpace:
    """The searched keys with their ranges, and the file's own searcher and trial count."""

    source: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    searcher: str = "tpe"
    num_trials: int = 16

    def without(self, keys: Sequence[str]) -> "SearchSpace":
        """The space with `keys` taken out (fixed elsewhere); UserError if nothing remains."""
        left = {key: value for key, value in self.parameters.items() if key not in keys}
        if not left:
            raise UserError(
                f"search space {self.source}: every searched key is fixed on the command line; "
                "leave one out, or run `sesttune train`"
            )
        return replace(self, parameters=left)

    def grid(self) -> Iterator[Point] | None:
        """All points, the last key varying fastest; None for a space without end.

        The largest max_steps comes first: the shorter trials are the beginning of its training.
        """
        axes = [parameter.grid() for parameter in self.parameters.values()]
        if any(axis is None for axis in axes):
            return None
        finite = [
            tuple(sorted(axis, reverse=True)) if key == "training.max_steps" else axis
            for key, axis in zip(self.parameters, cast(list[tuple[Any, ...]], axes), strict=True)
        ]
        return (dict(zip(self.parameters, values, strict=True)) for values in product(*finite))

    def size(self) -> float:
        """How many points there are (`math.inf` without end)."""
        axes = [parameter.grid() for parameter in self.parameters.values()]
        return math.prod(math.inf if axis is None else len(axis) for axis in axes)

    def require_finite(self) -> None:
        """Raise UserError unless a grid of this space ends."""
        for key, parameter in self.parameters.items():
            if parameter.grid() is None:
                raise UserError(
                    f"search space {self.source}: {key} is a {parameter.kind} range, and a grid "
                    "needs a finite list: use type: choice, or searcher tpe or random"
                )

    def check(self, config: Config) -> None:
        """Raise UserError unless `config` accepts every extreme value of every key."""
        first = {key: parameter.extremes()[0] for key, parameter in self.parameters.items()}
        for key, parameter in self.parameters.items():
            for value in parameter.extremes():
                try:
                    with_point(config, first | {key: value})
                except UserError as error:
                    raise UserError(f"search space {self.source}: {error}") from None
        if (config.sweep.searcher or self.searcher) == "grid":
            self.require_finite()

    def longest(self, config: Config) -> int:
        """The largest max_steps a trial can have."""
        parameter = self.parameters.get("training.max_steps")
        return int(max(parameter.extremes())) if parameter else config.training.max_steps

    def to_dict(self) -> dict[str, Any]:
        """The content of the YAML file, for the record; `parse_space` reads it back."""
        described = {}
        for key, parameter in self.parameters.items():
            fields = {name: getattr(parameter, name) for name in _FIELDS[parameter.kind]}
            if "values" in fields:
                fields["values"] = list(parameter.values)
            given = {name: value for name, value in fields.items() if value is not None}
            described[key] = {"type": parameter.kind, **given}
        return {
            "searcher": self.searcher,
            "num_trials": self.num_trials,
            "parameters": described,
        }


def load_space(name_or_path: str) -> SearchSpace:
    """Read a YAML file, or the file of that name in `search_spaces/`.

    A bare name is looked for in `./search_spaces` and then beside the package.
    Raises UserError naming the file and the key, and what would be right.
    """
    path = _find(name_or_path)
    from omegaconf import OmegaConf

    try:
        # OmegaConf's reader takes 1e-4 for a number, plain YAML 1.1 takes it for a string.
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # yaml and omegaconf raise unrelated families
        line = " ".join(str(error).split())
        raise UserError(f"search space {path} is not valid YAML: {line}") from None
    if not isinstance(content, dict):
        raise UserError(f"search space {path} must hold a mapping with 'parameters:'")
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
    parameters = {
        str(key): _parameter(str(key), value, f"{where}: {key}") for key, value in described.items()
    }
    space = SearchSpace(source, parameters, searcher, num_trials)
    if searcher == "grid":
        space.require_finite()
    return space


def _find(name: str) -> Path:
    given = Path(name).expanduser()
    if given.suffix in (".yaml", ".yml") and given.is_file():
        return given
    folders = [Path("search_spaces"), SPACES_FOLDER]
    for folder in folders:
        path = folder / f"{given.stem}.yaml"
        if given.parent == Path() and path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(
        f"sweep.space={name}: no such file; give a YAML file or one of {', '.join(known)}"
    )


def _parameter(key: str, description: object, where: str) -> Parameter:
    _check_tunable(key, where)
    if not isinstance(description, Mapping):
        raise UserError(f"{where}: write {{type: choice, values: [...]}} or a range")
    kind = description.get("type")
    if kind not in _FIELDS:
        raise UserError(f"{where}: type '{kind}' is not one of {', '.join(_FIELDS)}")
    for name in description:
        if name != "type" and name not in _FIELDS[kind]:
            wanted = ", ".join(_FIELDS[kind])
            raise UserError(f"{where}: '{name}' does not go with type {kind} (it takes {wanted})")
    if kind == "choice":
        return Parameter("choice", values=_choices(description.get("values"), where))
    return _range(kind, description, where)


def _check_tunable(key: str, where: str) -> None:
    if key in TUNABLE:
        return
    try:
        check_key(key)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    why = _WHY_NOT.get(key, "it does not belong to a single trial")
    raise UserError(f"{where} cannot be searched: {why}; searchable are {', '.join(TUNABLE)}")


def _choices(values: object, where: str) -> tuple[Any, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise UserError(f"{where}: 'values' must be a list with at least one value")
    if any(not isinstance(value, str | bool | int | float | None) for value in values):
        raise UserError(f"{where}: 'values' must be plain numbers, words or null")
    if len(set(values)) < len(values):
        raise UserError(f"{where}: 'values' names the same value twice")
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
    return Parameter(kind, low=low, high=high, quantum=quantum)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))
