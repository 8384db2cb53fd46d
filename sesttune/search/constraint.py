"""Constraints between settings, e.g. `batch_size * accumulate_grad_batches <= 64`.

Python's syntax for comparisons and arithmetic over numbers and settings, read into a tree and
evaluated node by node: nothing else can be written, and nothing is executed.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sesttune.errors import UserError

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Constraint:
    """One comparison (or a chain of them); `keys` are the settings that it names, in full."""

    text: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return self.text

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether `settings`, a value for each of `keys`, satisfy it.

        One about a setting that is null (off) holds: there is nothing to limit. One that divides by
        zero does not.
        """
        named = {key.rpartition(".")[2]: settings[key] for key in self.keys}
        if any(value is None for value in named.values()):
            return True
        try:
            return bool(_value(ast.parse(self.text, mode="eval").body, named))
        except ZeroDivisionError:
            return False


def parse_constraint(text: object, known: Sequence[str], where: str) -> Constraint:
    """Read a constraint over the settings `known`, each written in full or by its last part.

    Raises UserError for anything but a comparison of arithmetic over them.
    """
    if not isinstance(text, str):
        raise UserError(f"{where}: write text such as 'batch_size * n_layers <= 64', not {text!r}")
    leaves = {key.rpartition(".")[2]: key for key in known}
    plain = text
    for leaf, key in leaves.items():
        plain = plain.replace(key, leaf)
    try:
        body = ast.parse(plain, mode="eval").body
    except SyntaxError:
        raise UserError(f"{where}: '{text}' is not an expression") from None
    if not isinstance(body, ast.Compare):
        raise UserError(f"{where}: '{text}' compares nothing: write e.g. batch_size <= 32")
    names = []
    for node in ast.walk(body):
        if isinstance(node, ast.Name):
            if node.id not in leaves:
                raise UserError(
                    f"{where}: '{text}' names '{node.id}'; it may name {', '.join(leaves)}"
                )
            names.append(leaves[node.id])
        elif not _readable(node):
            raise UserError(
                f"{where}: '{text}' may hold settings, numbers, + - * / // % and comparisons only"
            )
    if not names:
        raise UserError(f"{where}: '{text}' names no setting")
    return Constraint(plain, tuple(names))


def _readable(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and not isinstance(node.value, bool)
    kinds = (ast.Compare, ast.BinOp, ast.UnaryOp, ast.USub, ast.Load)
    return isinstance(node, (*kinds, *_ARITHMETIC, *_COMPARISONS))


def _value(node: ast.expr, named: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return named[node.id]
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, named)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, named), _value(node.right, named)
        return _ARITHMETIC[type(node.op)](left, right)
    assert isinstance(node, ast.Compare), "parse_constraint lets nothing else through"
    try:
        sides = [_value(side, named) for side in (node.left, *node.comparators)]
        return all(
            _COMPARISONS[type(op)](left, right)
            for op, left, right in zip(node.ops, sides, sides[1:], strict=False)
        )
    except TypeError:
        raise UserError(f"constraint '{ast.unparse(node)}' takes a word for a number") from None
