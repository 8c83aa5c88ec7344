"""Runs mutmut with additional mutations for tensor maths: ``python benchmarks/mutation.py run``.

mutmut changes operators, numbers, names and arguments. The additional mutations remove a method (``detach``,
``clamp``), an operand or an index, use the opposite function (``minimum`` for ``maximum``), swap adjacent arguments, or
negate an ``if``.
"""

import os
from collections.abc import Iterable

os.environ["OMP_NUM_THREADS"] = "1"  # mutmut forks; a child has no threads of torch and would hang

import libcst as cst
from mutmut.__main__ import cli
from mutmut.mutation.mutators import mutation_operators

DROPPED = {"detach", "clamp", "square", "sqrt", "abs", "float", "strip", "flatten"}
OPPOSITES = {
    "minimum": "maximum",
    "min": "max",
    "sum": "mean",
    "any": "all",
    "expm1": "exp",
    "rsqrt": "sqrt",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "new_zeros": "new_ones",
    "softmax": "log_softmax",
    "sorted": "list",
}
SYMMETRIC = {"minimum", "maximum", "min", "max"}
SWAPS = OPPOSITES | {new: old for old, new in OPPOSITES.items()}


def name_of(call: cst.Call) -> cst.Name | None:
    """Return the last part of the called name."""
    name = call.func.attr if isinstance(call.func, cst.Attribute) else call.func
    return name if isinstance(name, cst.Name) else None


def drop_method(call: cst.Call) -> Iterable[cst.BaseExpression]:
    """Turn ``x.detach()`` into ``x``, and ``relu(x)`` into ``x``."""
    if isinstance(call.func, cst.Attribute):
        if call.func.attr.value in DROPPED:
            yield call.func.value
        if call.func.attr.value == "relu":
            yield call.args[0].value


def opposite(call: cst.Call) -> Iterable[cst.Call]:
    """Turn ``minimum`` into ``maximum``, and so on, as functions and methods."""
    name = name_of(call)
    if name is not None and name.value in SWAPS:
        yield call.with_deep_changes(name, value=SWAPS[name.value])


def swap_arguments(call: cst.Call) -> Iterable[cst.Call]:
    """Turn ``f(a, b, c)`` into ``f(b, a, c)`` and ``f(a, c, b)``; keyword names keep their place."""
    args, name = call.args, name_of(call)
    if name is not None and name.value in SYMMETRIC:
        return
    for i in range(len(args) - 1):
        like = args[i].star == args[i + 1].star and (args[i].keyword is None) == (args[i + 1].keyword is None)
        if like and not args[i].value.deep_equals(args[i + 1].value):
            left, right = (args[j].with_changes(value=args[k].value) for j, k in ((i, i + 1), (i + 1, i)))
            yield call.with_changes(args=[*args[:i], left, right, *args[i + 2 :]])


def drop_operand(operation: cst.BinaryOperation) -> Iterable[cst.BaseExpression]:
    """Turn ``(a + b)`` into ``(a)`` and into ``(b)``."""
    for side in (operation.left, operation.right):
        yield side.with_changes(lpar=[*operation.lpar, *side.lpar], rpar=[*side.rpar, *operation.rpar])


def drop_index(subscript: cst.Subscript) -> Iterable[cst.BaseExpression]:
    """Turn ``x[mask]`` into ``x``."""
    yield subscript.value


def negate(branch: cst.If) -> Iterable[cst.If]:
    """Turn ``if x`` into ``if not x``."""
    inner = branch.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield branch.with_changes(test=cst.UnaryOperation(cst.Not(), inner))


mutation_operators += [  # type: ignore[operator]
    (cst.Call, drop_method),
    (cst.Call, opposite),
    (cst.Call, swap_arguments),
    (cst.BinaryOperation, drop_operand),
    (cst.Subscript, drop_index),
    (cst.If, negate),
]

if __name__ == "__main__":
    cli()
