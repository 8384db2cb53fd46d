"""What a sweep varies: parameters with their ranges, conditions and constraints.

A parameter may hold `when` others have certain values, else the point leaves it out and the
settings' own value counts. Constraints are arithmetic over settings; a point that breaks one is
never proposed.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sesttune.config.load import settings_by_key, with_point
from sesttune.config.schema import Config
from sesttune.errors import UserError
from sesttune.search.constraint import Constraint
from sesttune.search.parameter import Parameter, Point

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
WIDTH, HEADS = "model.kwargs.hidden_dim", "model.kwargs.n_heads"
SIZES = (WIDTH, "model.kwargs.n_layers")
WARM_UP, STEPS = "training.warmup_steps", "training.max_steps"
_PROBES = 1_000
"""Random points tried to see that a space without end holds any that its constraints allow."""
_LARGEST_GRID = 100_000
"""Points that are listed one by one; more are drawn from, as from a range of real numbers."""


@dataclass(frozen=True)
class SearchSpace:
    """The searched keys with their ranges, and the file's own searcher and trial count.

    `fixed`: settings that constraints name and that a point may lack (see `on`).
    """

    source: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    searcher: str = "tpe"
    num_trials: int = 16
    constraints: tuple[Constraint, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conditional(self) -> bool:
        return any(parameter.when for parameter in self.parameters.values())

    def on(self, config: Config) -> "SearchSpace":
        """The space around `config`, which constraints ask for what is not searched."""
        settings = settings_by_key(config)
        named = {key for constraint in self.constraints for key in constraint.keys}
        return replace(self, fixed={key: settings[key] for key in named})

    def allows(self, point: Point) -> bool:
        """Whether no constraint forbids a point."""
        return all(c.holds({**self.fixed, **point}) for c in self.constraints)

    def holds(self, point: Point) -> bool:
        """Whether every value of a point is one of its key's, whatever constraints say."""
        return all(self.parameters[k].takes(v) for k, v in point.items() if k in self.parameters)

    def without(self, keys: Sequence[str]) -> "SearchSpace":
        """The space with `keys` taken out (fixed elsewhere); UserError if nothing remains.

        What was searched only when such a key had a certain value is taken out, too, so it has to
        be fixed with it.
        """
        left: dict[str, Parameter] = {}
        for key, parameter in self.parameters.items():  # parents come before what hangs on them
            if key not in keys and all(parent in left for parent in parameter.when):
                left[key] = parameter
        if not left:
            raise UserError(
                f"search space {self.source}: every searched key is fixed on the command line; "
                "leave one out, or run `sesttune train`"
            )
        return replace(self, parameters=left)

    def grid(self) -> Iterator[Point] | None:
        """All points, the last key varying fastest; None where there is no end of them in sight.

        The largest max_steps comes first: the shorter trials are the beginning of its training.
        """
        axes = [(key, parameter.grid()) for key, parameter in self.parameters.items()]
        if math.prod(math.inf if axis is None else len(axis) for _, axis in axes) > _LARGEST_GRID:
            return None
        ordered = [
            (key, sorted(axis, reverse=True) if key == "training.max_steps" else axis)
            for key, axis in axes
            if axis is not None
        ]
        return filter(self.allows, self._points({}, ordered))

    def _points(self, point: Point, axes: list[tuple[str, Sequence[Any]]]) -> Iterator[Point]:
        if not axes:
            yield point
            return
        (key, values), *rest = axes
        if not self.parameters[key].active(point):
            yield from self._points(point, rest)
            return
        for value in values:
            yield from self._points({**point, key: value}, rest)

    def size(self) -> float:
        """How many points there are (`math.inf` without end)."""
        axes = [parameter.grid() for parameter in self.parameters.values()]
        sizes = [math.inf if axis is None else len(axis) for axis in axes]
        points = self.grid()
        if points is None or not (self.constraints or self.conditional):
            return math.prod(sizes)
        return sum(1 for _ in points)

    def random_point(self, rng: random.Random) -> Point:
        """A point, whether constraints allow it or not."""
        point: Point = {}
        for key, parameter in self.parameters.items():
            if parameter.active(point):
                point[key] = parameter.draw(rng)
        return point

    def require_finite(self) -> None:
        """Raise UserError unless a grid of this space ends."""
        for key, parameter in self.parameters.items():
            if parameter.grid() is None:
                raise UserError(
                    f"search space {self.source}: {key} is a {parameter.kind} range, and a grid "
                    "needs a finite list: use type: choice, or another searcher"
                )
        if self.grid() is None:
            raise UserError(
                f"search space {self.source}: a grid of {self.size():,} points is more than a "
                f"sweep can try ({_LARGEST_GRID:,}): use type: choice, or another searcher"
            )

    def check(self, config: Config) -> None:
        """Raise UserError unless `config` accepts every extreme value of every key.

        Also where a width does not go with a number of heads, where the constraints leave no point,
        and where a head that is there already is to have several sizes.
        """
        around = self.on(config)
        for key in (*SIZES, HEADS):
            if key in self.parameters and config.model.checkpoint is not None:
                raise UserError(
                    f"search space {self.source}: {key} cannot be searched with model.checkpoint, "
                    "which has one: set it on the command line"
                )
        varied = (
            self._point_with({key: value})
            for key, parameter in self.parameters.items()
            for value in parameter.extremes()
        )
        allowed = (point for point in varied if point is not None and around.allows(point))
        way_out = "; leave such points out: constraints: [hidden_dim % n_heads == 0]"
        uneven = ((point, way_out) for point in around._uneven_heads(config))
        for point, said in itertools.chain(uneven, ((point, "") for point in allowed)):
            try:
                with_point(config, point)
            except UserError as error:
                raise UserError(f"search space {self.source}: {error}{said}") from None
        if (config.sweep.searcher or self.searcher) == "grid":
            self.require_finite()
        if self.constraints and not any(map(around.allows, around._some_points())):
            listed = ", ".join(f"'{constraint}'" for constraint in self.constraints)
            raise UserError(f"search space {self.source}: no point satisfies {listed}")

    def ends_in_warm_up(self, config: Config) -> tuple[int, int] | None:
        """`warmup_steps` and `max_steps` of a trial that would never leave its warm-up, if any.

        Sought at the ends of both ranges, and among all points or many random ones.
        """
        own = {WARM_UP: config.training.warmup_steps, STEPS: config.training.max_steps}
        ends = {
            key: end(self.parameters[key].extremes())
            for key, end in ((WARM_UP, max), (STEPS, min))
            if key in self.parameters
        }
        corner = self._point_with(ends)
        around = self.on(config)
        for point in itertools.chain([] if corner is None else [corner], around._some_points()):
            found = {key: point.get(key, value) for key, value in own.items()}
            if found[WARM_UP] >= found[STEPS] and around.allows(point):
                return found[WARM_UP], found[STEPS]
        return None

    def widest(self, config: Config) -> Point:
        """The widest and deepest head that a trial may have, as far as the space says.

        The largest of each key where they go together, else the largest of many points.
        """
        heads = self.parameters.get(HEADS)
        largest = {k: max(p.extremes()) for k, p in self.parameters.items() if k in SIZES}
        counts = (heads.grid() or heads.extremes()) if heads else ()
        around = self.on(config)
        together = [{**largest, HEADS: count} for count in counts] if heads else [largest]
        for point in itertools.chain(filter(around.allows, together), around._heads()):
            with suppress(UserError):
                with_point(config, point)
                return point
        return {}

    def _uneven_heads(self, config: Config) -> Iterator[Point]:
        """Widths that are no multiple of the number of heads they are searched with."""
        own = {WIDTH: config.model.kwargs.hidden_dim, HEADS: config.model.kwargs.n_heads}
        for head in self._heads():
            width, count = (int(head.get(key, value)) for key, value in own.items())
            if width % count:
                yield head

    def _heads(self) -> Iterator[Point]:
        """What allowed points, all or many random ones, say of the head; the largest first."""
        keys = [key for key in (*SIZES, HEADS) if key in self.parameters]
        points = filter(self.allows, self._some_points()) if keys else ()
        heads = dict.fromkeys(tuple((k, p[k]) for k in keys if k in p) for p in points)
        sizes = [dict(head) for head in heads]
        yield from sorted(sizes, key=lambda p: [p.get(key, 0) for key in SIZES], reverse=True)

    def _point_with(self, values: Point) -> Point | None:
        """A point with these values, and the first of any other key; None where there is none."""
        wanted: dict[str, Sequence[Any]] = {key: (value,) for key, value in values.items()}
        for name in reversed(list(self.parameters)):
            for parent, allowed in self.parameters[name].when.items() if name in wanted else ():
                wanted[parent] = [v for v in wanted.get(parent, allowed) if v in allowed]
        point: Point = {}
        for name, parameter in self.parameters.items():
            if parameter.active(point):
                possible = wanted.get(name, parameter.extremes())
                if possible:
                    point[name] = possible[0]
        return point if values.keys() <= point.keys() else None

    def _some_points(self) -> Iterator[Point]:
        points = self.grid()
        if points is not None:
            return points
        rng = random.Random(0)
        return (self.random_point(rng) for _ in itertools.repeat(None, _PROBES))

    def longest(self, config: Config) -> int:
        """The largest max_steps a trial can have."""
        return max(self._budgets(config))

    def shortest(self, config: Config) -> int:
        """The smallest max_steps a trial can have."""
        return min(self._budgets(config))

    def _budgets(self, config: Config) -> list[int]:
        parameter = self.parameters.get("training.max_steps")
        own = [config.training.max_steps] if parameter is None or parameter.when else []
        return own + [int(steps) for steps in (parameter.extremes() if parameter else ())]

    def to_dict(self) -> dict[str, Any]:
        """The content of the YAML file, for the record; `space_file.parse_space` reads it back."""
        return {
            "searcher": self.searcher,
            "num_trials": self.num_trials,
            "parameters": {key: p.to_dict() for key, p in self.parameters.items()},
            "constraints": [str(constraint) for constraint in self.constraints],
        }
