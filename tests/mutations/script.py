"""A training script as a syntax tree, with the roles that the operators need, and edits on it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider

Node = TypeVar("Node", bound=cst.CSTNode)
Statement = cst.SimpleStatementLine | cst.BaseCompoundStatement
Block = cst.IndentedBlock | cst.Module
Loop = cst.For | cst.While

OPTIMIZERS = frozenset(
    ["SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop", "LBFGS"]
)
SCHEDULERS = frozenset(["ReduceLROnPlateau", "CosineAnnealingWarmRestarts"])


def statement(text: str) -> Statement:
    parsed = cst.parse_statement(text)
    assert isinstance(parsed, (cst.SimpleStatementLine, cst.BaseCompoundStatement))
    return parsed


class _Normalize(cst.CSTTransformer):
    """One statement a line, every suite an indented block, no markers of expected findings."""

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.FlattenSentinel[cst.SimpleStatementLine]:
        if len(updated_node.body) == 1:
            return updated_node
        return cst.FlattenSentinel(
            [
                cst.SimpleStatementLine([small.with_changes(semicolon=cst.MaybeSentinel.DEFAULT)])
                for small in updated_node.body
            ]
        )

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.IndentedBlock:
        return cst.IndentedBlock(
            [
                cst.SimpleStatementLine([small.with_changes(semicolon=cst.MaybeSentinel.DEFAULT)])
                for small in updated_node.body
            ]
        )


@dataclass
class Edit:
    """Changes keyed by the nodes of one tree; `replace` with None removes."""

    replace: dict[cst.CSTNode, cst.CSTNode | None] = field(default_factory=dict)
    before: dict[cst.CSTNode, list[Statement]] = field(default_factory=dict)
    after: dict[cst.CSTNode, list[Statement]] = field(default_factory=dict)
    top: dict[cst.CSTNode, list[Statement]] = field(default_factory=dict)
    bottom: dict[cst.CSTNode, list[Statement]] = field(default_factory=dict)


class _Apply(cst.CSTTransformer):
    def __init__(self, edit: Edit) -> None:
        super().__init__()
        self.edit = edit

    def on_leave(self, original_node: cst.CSTNode, updated_node: cst.CSTNode) -> object:  # type: ignore[override]
        edit = self.edit
        result: cst.CSTNode | None = updated_node
        if original_node in edit.replace:
            result = edit.replace[original_node]
        if isinstance(result, (cst.IndentedBlock, cst.Module)):
            body = [*edit.top.get(original_node, ()), *result.body, *edit.bottom.get(original_node, ())]
            result = result.with_changes(body=body or [statement("pass")])
        before, after = edit.before.get(original_node, ()), edit.after.get(original_node, ())
        if before or after:
            return cst.FlattenSentinel([*before, *([] if result is None else [result]), *after])
        return cst.RemoveFromParent() if result is None else result


class Script:
    """A parsed script. Node identity is the key to everything, so an edit belongs to one Script."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"[ \t]*# expect(-info)?:.*", "", text)
        module = cst.parse_module(text).visit(_Normalize())
        # Normalizing may have joined lines of one tree in two places; parse again for clean positions.
        self._wrapper = MetadataWrapper(cst.parse_module(module.code), unsafe_skip_copy=True)
        self.module = self._wrapper.module
        self.parents = self._wrapper.resolve(ParentNodeProvider)
        self._positions = self._wrapper.resolve(PositionProvider)
        self._nodes: list[cst.CSTNode] = []
        pending: list[cst.CSTNode] = [self.module]
        while pending:
            node = pending.pop()
            self._nodes.append(node)
            pending.extend(reversed(node.children))

    # --- the tree ----------------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        return self.module.code

    def code(self, node: cst.CSTNode) -> str:
        if isinstance(node, cst.BaseExpression):
            node = node.with_changes(lpar=[], rpar=[]) if hasattr(node, "lpar") else node
        return self.module.code_for_node(node).strip()

    def line(self, node: cst.CSTNode) -> int:
        return int(self._positions[node].start.line)

    def find(self, kind: type[Node] | tuple[type[Node], ...], inside: cst.CSTNode | None = None) -> Iterator[Node]:
        """All nodes of a kind in source order."""
        for node in self._nodes if inside is None else self.walk(inside):
            if isinstance(node, kind):
                yield node

    def walk(self, root: cst.CSTNode) -> Iterator[cst.CSTNode]:
        pending = [root]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(reversed(node.children))

    def above(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        while (parent := self.parents.get(node)) is not None:
            yield parent
            node = parent

    def statement_of(self, node: cst.CSTNode) -> Statement:
        for candidate in (node, *self.above(node)):
            if isinstance(candidate, (cst.SimpleStatementLine, cst.BaseCompoundStatement)):
                return candidate
        raise ValueError("not inside a statement")

    def block_of(self, node: cst.CSTNode) -> Block:
        for candidate in self.above(self.statement_of(node)):
            if isinstance(candidate, (cst.IndentedBlock, cst.Module)):
                return candidate
        raise ValueError("not inside a block")

    def function_of(self, node: cst.CSTNode) -> cst.FunctionDef | None:
        return next((up for up in self.above(node) if isinstance(up, cst.FunctionDef)), None)

    def arena(self, node: cst.CSTNode) -> Block:
        """The body of the function around a node, or the module."""
        function = self.function_of(node)
        return self.module if function is None else function.body  # type: ignore[return-value]

    def loops_around(self, node: cst.CSTNode) -> list[Loop]:
        """The loops around a node within its function, the innermost first."""
        loops: list[Loop] = []
        for up in self.above(node):
            if isinstance(up, (cst.FunctionDef, cst.Lambda)):
                break
            if isinstance(up, (cst.For, cst.While)):
                loops.append(up)
        return loops

    def apply(self, edit: Edit) -> str:
        changed = self.module.visit(_Apply(edit))
        assert isinstance(changed, cst.Module)
        return changed.code

    def names(self, node: cst.CSTNode) -> set[str]:
        """The plain names in a node; attribute and keyword names do not count."""
        return {name.value for name in self.walk(node) if isinstance(name, cst.Name) and self.is_variable(name)}

    def is_variable(self, name: cst.Name) -> bool:
        parent = self.parents.get(name)
        if isinstance(parent, cst.Attribute) and parent.attr is name:
            return False
        if isinstance(parent, cst.Arg) and parent.keyword is name:
            return False
        return not any(isinstance(up, (cst.Import, cst.ImportFrom)) for up in self.above(name))

    def targets(self, expression: cst.CSTNode) -> set[str]:
        """The plain names in an assignment target."""
        if isinstance(expression, cst.Name):
            return {expression.value}
        if isinstance(expression, (cst.Tuple, cst.List)):
            return set().union(*(self.targets(element.value) for element in expression.elements))
        return set()

    def stored(self, node: cst.CSTNode) -> set[str]:
        """Names that a node binds (not inside nested functions)."""
        found: set[str] = set()
        pending = [node]
        while pending:
            current = pending.pop()
            if isinstance(current, (cst.AssignTarget, cst.AugAssign, cst.AnnAssign, cst.For, cst.NamedExpr)):
                found |= self.targets(current.target)
            elif isinstance(current, cst.AsName):
                found |= self.targets(current.name)
            if isinstance(current, (cst.FunctionDef, cst.ClassDef)):
                found.add(current.name.value)
                if current is not node:
                    continue
            if not isinstance(current, (cst.Lambda, cst.CompFor)):
                pending.extend(current.children)
        return found

    def bindings(self, inside: cst.CSTNode | None = None) -> Iterator[cst.CSTNode]:
        """Every target of an assignment, loop, comprehension, `with` or `:=`."""
        for node in self._nodes if inside is None else self.walk(inside):
            if isinstance(node, (cst.AssignTarget, cst.AugAssign, cst.AnnAssign, cst.For, cst.NamedExpr, cst.CompFor)):
                yield node.target
            elif isinstance(node, cst.AsName) and not isinstance(self.parents[node], cst.ImportAlias):
                yield node.name

    # --- roles -------------------------------------------------------------------------------------------------------

    @staticmethod
    def small(node: cst.CSTNode, kind: type[Node]) -> Node | None:
        """The only small statement of a line, if it is of that kind."""
        if isinstance(node, cst.SimpleStatementLine) and isinstance(node.body[0], kind):
            return node.body[0]
        return None

    def called(self, line: cst.CSTNode) -> cst.Call | None:
        """The call of a statement that is nothing but a call."""
        expression = self.small(line, cst.Expr)
        if expression is not None and isinstance(expression.value, cst.Call):
            return expression.value
        return None

    @cached_property
    def lines(self) -> list[cst.SimpleStatementLine]:
        return list(self.find(cst.SimpleStatementLine))

    def method_lines(self, method: str) -> Iterator[tuple[cst.SimpleStatementLine, cst.Call, cst.BaseExpression]]:
        for line in self.lines:
            call = self.called(line)
            if call is not None and isinstance(call.func, cst.Attribute) and call.func.attr.value == method:
                yield line, call, call.func.value

    def _built_by(self, known: frozenset[str], suffix: str) -> set[str]:
        found: set[str] = set()
        for assign in self.find(cst.Assign):
            for call in self.find(cst.Call, assign.value):
                last = self.code(call.func).rsplit(".", 1)[-1]
                if last in known or (suffix and last.endswith(suffix)):
                    found.update(self.code(target.target) for target in assign.targets)
        return found

    @cached_property
    def imported(self) -> set[str]:
        """Every name in an import statement."""
        return {name.value for line in self.find((cst.Import, cst.ImportFrom)) for name in self.find(cst.Name, line)}

    @cached_property
    def schedulers(self) -> set[str]:
        return self._built_by(SCHEDULERS, "LR")

    @cached_property
    def optimizers(self) -> set[str]:
        return self._built_by(OPTIMIZERS, "") - self.schedulers

    @cached_property
    def models(self) -> list[str]:
        """What `X.parameters()` is asked of."""
        found = dict.fromkeys(
            self.code(call.func.value)
            for call in self.find(cst.Call)
            if isinstance(call.func, cst.Attribute) and call.func.attr.value == "parameters"
        )
        return list(found)

    def _is_scheduler(self, receiver: str) -> bool:
        if receiver in self.optimizers:
            return False
        return receiver in self.schedulers or re.search(r"sched|plateau|warm|_lr\b|\blr_", receiver) is not None

    @cached_property
    def steps(self) -> list[cst.SimpleStatementLine]:
        return [line for line, _, owner in self.method_lines("step") if not self._is_scheduler(self.code(owner))]

    @cached_property
    def scheduler_steps(self) -> list[cst.SimpleStatementLine]:
        return [line for line, _, owner in self.method_lines("step") if self._is_scheduler(self.code(owner))]

    @cached_property
    def zeros(self) -> list[cst.SimpleStatementLine]:
        return [line for line, _, _ in self.method_lines("zero_grad")]

    @cached_property
    def backwards(self) -> list[tuple[cst.SimpleStatementLine, cst.BaseExpression]]:
        """Each backward statement with the receiver of the call."""
        return [(line, receiver) for line, _, receiver in self.method_lines("backward")]

    @cached_property
    def losses(self) -> set[str]:
        """Names of what backward is called on: no divisor and no scaler."""
        found: set[str] = set()
        pending: list[cst.CSTNode] = []
        for line, receiver in self.backwards:
            call = self.called(line)
            assert call is not None
            pending += [receiver, *(arg.value for arg in call.args if arg.keyword is None)]
        while pending:
            node = pending.pop()
            if isinstance(node, cst.Name):
                found.add(node.value)
            elif isinstance(node, cst.Attribute):
                pending.append(node.value)
            elif isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
                scaled = node.func.attr.value == "scale" or self.code(node.func.value) == "torch"
                pending.append(node.args[0].value if scaled and node.args else node.func.value)
            elif isinstance(node, cst.BinaryOperation):
                pending.append(node.left)
                if not isinstance(node.operator, (cst.Divide, cst.Multiply)):
                    pending.append(node.right)
        return found - self.imported

    def guard_of(self, line: cst.CSTNode) -> cst.If | None:
        """The innermost `if` that a statement stands under, within its loop."""
        inner: cst.CSTNode = line
        for up in self.above(line):
            if isinstance(up, cst.If) and inner is up.body:
                return up
            if isinstance(up, (cst.For, cst.While, cst.FunctionDef)):
                return None
            inner = up
        return None

    @cached_property
    def guards(self) -> list[cst.If]:
        return list(dict.fromkeys(guard for step in self.steps if (guard := self.guard_of(step)) is not None))

    @cached_property
    def tests(self) -> list[cst.BaseExpression]:
        """The conditions that may decide about the update: of guards, of `continue`, and flags with a modulus."""
        found: dict[cst.BaseExpression, None] = {guard.test: None for guard in self.guards}
        for branch in self.find(cst.If):
            jumps = any(isinstance(node, cst.Continue) for node in self.walk(branch.body))
            calls = {self.code(call.func).rsplit(".", 1)[-1] for call in self.find(cst.Call, branch.body)}
            own = {function.name.value for function in self.find(cst.FunctionDef)}
            if self.loops_around(branch) and (jumps or calls & own):
                found[branch.test] = None
        for assign in self.find(cst.Assign):
            if isinstance(assign.value, (cst.Comparison, cst.BooleanOperation)) and self.loops_around(assign):
                found[assign.value] = None
        return list(found)

    @cached_property
    def micro_loops(self) -> list[Loop]:
        """The innermost loop of each backward; through a function, the innermost loop that calls it."""
        found: dict[Loop, None] = {}
        for line, _ in self.backwards:
            loops = self.loops_around(line)
            if loops:
                found[loops[0]] = None
                continue
            function = self.function_of(line)
            for call in self.find(cst.Call):
                if function is not None and self.code(call.func).rsplit(".", 1)[-1] == function.name.value:
                    for loop in self.loops_around(call)[:1]:
                        found[loop] = None
        return list(found)

    @cached_property
    def ks(self) -> set[str]:
        """How k is written: the moduli and thresholds of the tests, the trip counts of micro loops, loss divisors."""
        found: set[str] = set()
        for test in self.tests:
            for modulus in self.find(cst.BinaryOperation, test):
                if isinstance(modulus.operator, cst.Modulo):
                    found.add(self.code(modulus.right))
            if isinstance(test, cst.Comparison) and isinstance(test.left, (cst.Name, cst.Attribute)):
                found.add(self.code(test.comparisons[0].comparator))
        for line in self.lines:
            if self.losses & self.names(line):
                for division in self.find(cst.BinaryOperation, line):
                    if isinstance(division.operator, cst.Divide) and self.losses & self.names(division.left):
                        found.add(self.code(division.right))
                augmented = self.small(line, cst.AugAssign)
                if augmented is not None and isinstance(augmented.operator, cst.DivideAssign):
                    found.add(self.code(augmented.value))
        for loop in self.micro_loops:
            if isinstance(loop, cst.For) and isinstance(loop.iter, cst.Call) and self.code(loop.iter.func) == "range":
                found.add(self.code(loop.iter.args[-1].value))
        return found - {"0", "1", "True", "False", "None"}

    @cached_property
    def counters(self) -> list[tuple[cst.SimpleStatementLine, str]]:
        """`x += 1` inside a loop (or a function) where some test reads x."""
        read = {name for test in self.tests for name in self._places(test)}
        found = []
        for line in self.lines:
            augmented = self.small(line, cst.AugAssign)
            if augmented is None or not isinstance(augmented.operator, cst.AddAssign):
                continue
            if self.code(augmented.value) == "1" and self.code(augmented.target) in read:
                found.append((line, self.code(augmented.target)))
        return found

    def _places(self, expression: cst.CSTNode) -> set[str]:
        return {self.code(node) for node in self.walk(expression) if isinstance(node, (cst.Name, cst.Attribute))}

    @cached_property
    def imports_end(self) -> int:
        """Index of the first module statement behind the docstring and the imports."""
        for index, line in enumerate(self.module.body):
            if isinstance(line, cst.SimpleStatementLine):
                small = line.body[0]
                if isinstance(small, (cst.Import, cst.ImportFrom)):
                    continue
                if index == 0 and isinstance(small, cst.Expr) and isinstance(small.value, cst.SimpleString):
                    continue
            return index
        return len(self.module.body)

    def with_import(self, text: str, module: str) -> str:
        """The text with one more import line behind the others."""
        if re.search(rf"^{re.escape(text)}$", module, re.MULTILINE):
            return module
        parsed = cst.parse_module(module)
        body: Sequence[cst.SimpleStatementLine | cst.BaseCompoundStatement] = parsed.body
        at = Script(module).imports_end
        return parsed.with_changes(body=[*body[:at], statement(text), *body[at:]]).code
