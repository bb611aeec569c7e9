"""Small changes of Python source: mutmut's operators, and three of our own, at any place of a module.

mutmut itself mutates functions without decorators only, so its operators are applied here: in constants, defaults,
properties and kernels too.
"""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators


def _negated(node: cst.If) -> Iterator[cst.If]:
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    negation = cst.UnaryOperation(operator=cst.Not(), expression=test)
    yield node.with_changes(
        test=negation, whitespace_before_test=cst.SimpleWhitespace(" ")
    )


def _one_side(node: cst.BooleanOperation) -> Iterator[cst.BaseExpression]:
    yield node.left.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.right.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _other_extreme(node: cst.Name) -> Iterator[cst.Name]:
    if node.value in ("min", "max"):
        yield node.with_changes(value="max" if node.value == "min" else "min")


Operator = Callable[..., object]
_OPERATORS: list[tuple[type, Operator]] = [
    *mutation_operators,
    (cst.If, _negated),
    (cst.BooleanOperation, _one_side),
    (cst.Name, _other_extreme),
]


@dataclass(frozen=True)
class Mutation:
    """One change of one module, written out only when it is asked for."""

    name: str
    path: str
    line: int
    _module: cst.Module
    _node: cst.CSTNode
    _changed: cst.CSTNode

    def texts(self) -> dict[str, str]:
        """Write the whole changed module, by its path."""
        changed = self._module.deep_replace(self._node, self._changed)
        assert isinstance(changed, cst.Module)
        return {self.path: changed.code}


class _Collector(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        self.found: list[tuple[int, cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        # Types and decorators say little that a user sees; words of messages are not what this looks for.
        if isinstance(node, cst.Annotation | cst.Decorator):
            return False
        if isinstance(node, cst.SimpleString) and " " in node.value:
            return False
        for kind, operator in _OPERATORS:
            if isinstance(node, kind):
                changes = list(operator(node))  # type: ignore[call-overload]
                changes = changes[:1] if isinstance(node, cst.SimpleString) else changes
                line = (
                    self.get_metadata(PositionProvider, node).start.line
                    if changes
                    else 0
                )
                self.found.extend((line, node, change) for change in changes)
        return True


def mutations(path: str, text: str, lines: Set[int] | None = None) -> list[Mutation]:
    """List the changes of a module that begin on the given lines, or all, in an order that the text alone decides."""
    wrapper = MetadataWrapper(cst.parse_module(text))
    collector = _Collector()
    wrapper.visit(collector)
    return [
        Mutation(f"{path}#{index}", path, line, wrapper.module, node, change)
        for index, (line, node, change) in enumerate(collector.found)
        if lines is None or line in lines
    ]
