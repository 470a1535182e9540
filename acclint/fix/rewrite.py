"""From the intent of a rule to a new text: every action is a change of nodes of the syntax tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import libcst as cst
from libcst.codemod import CodemodContext
from libcst.codemod.visitors import AddImportsVisitor, ImportItem

from acclint.fix.tree import Refused, Tree, reads, tree_of
from acclint.program import Span
from acclint.rules import base

# What a node becomes: it is given the node with the changes below it already made.
Change = Callable[[Any], cst.CSTNode]
Line = cst.SimpleStatementLine | cst.BaseCompoundStatement
# Expressions that may stand beside `/` or before a dot without brackets.
_CLOSED = (cst.Name, cst.Attribute, cst.Call, cst.Subscript, cst.Integer, cst.Float)


def rewrite(text: str, actions: Sequence[base.Action]) -> str:
    """The text after all actions. Raises Refused, with a reason, where one of them cannot be done."""
    rewriter = _Rewriter(tree_of(text))
    for action in actions:
        rewriter.do(action)
    return rewriter.result()


class _Rewriter:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.changer = _Changer()
        self.taken: list[cst.BaseSmallStatement] = []
        self.imports: list[str] = []

    def do(self, action: base.Action) -> None:
        doing: dict[type, Callable[..., None]] = {
            base.Divide: self.divide,
            base.Move: self.move,
            base.Remove: self.remove,
            base.Zero: self.zero,
            base.Detach: self.detach,
            base.Shift: self.shift,
            base.Negate: self.negate,
            base.Gate: self.gate,
            base.Flush: self.flush,
            base.Resize: self.resize,
        }
        doing[type(action)](action)

    def result(self) -> str:
        for block in {id(self._home(small)): self._home(small) for small in self.taken}.values():
            self._clear(block)
        module = self.tree.module.visit(self.changer)
        imports = [ImportItem(name) for name in self.imports]
        return AddImportsVisitor(CodemodContext(), imports).transform_module(module).code if imports else module.code

    def change(self, node: cst.CSTNode, change: Change) -> None:
        self.changer.changes.setdefault(node, []).append(change)

    def drop(self, node: cst.CSTNode) -> None:
        self.changer.removed.add(node)

    # --- expressions ---

    def divide(self, action: base.Divide) -> None:
        call = self.tree.expression(action.call)
        if not isinstance(call, cst.Call):
            raise Refused("the backward pass is not written as a call")
        divisor = self.written(action.by, call)
        if action.argument or self.tree.code(call.func).endswith("Tensor.backward"):
            loss = _argument(call)
        elif isinstance(call.func, cst.Attribute):
            loss = call.func.value
            if isinstance(loss, cst.Call) and isinstance(loss.func, cst.Attribute) and loss.func.attr.value == "scale":
                # `scaler.scale(loss).backward()`: what the scaler is given, so that the line reads as people write it.
                loss = _argument(loss)
        else:
            loss = self._bound(call).value
        if isinstance(loss, (cst.List, cst.Tuple)):
            raise Refused("backward is given several losses at once")
        argument = isinstance(self.tree.parent(loss), cst.Arg)
        self.change(loss, lambda new: _quotient(new, divisor, brackets=not argument))

    def _bound(self, call: cst.Call) -> cst.Attribute:
        """`loss.backward` where a name stands for it: `run = loss.backward`, then `run()`."""
        values = self._assigned(call.func, self.tree.function(call))
        if len(values) == 1 and isinstance(values[0], cst.Attribute):
            return values[0]
        raise Refused("what backward is called on is not written here")

    def _assigned(self, target: cst.BaseExpression, within: cst.CSTNode) -> list[cst.BaseExpression]:
        """What is assigned to a target, in a function, or in the code of the module."""
        return [
            statement.value
            for statement in self.tree.inside(within, cst.Assign)
            if any(one.target.deep_equals(target) for one in statement.targets)
        ]

    def written(self, said: Span | str, at: cst.CSTNode) -> cst.BaseExpression:
        """An expression in the user's own words, checked to be known at a node."""
        if isinstance(said, Span):
            expression = self.tree.expression(said).deep_clone()
        else:
            try:
                expression = cst.parse_expression(said)
            except cst.ParserSyntaxError as error:
                raise Refused(f"`{said}` cannot be written as an expression") from error
        self.tree.check_names(expression, at)
        return expression

    def resize(self, action: base.Resize) -> None:
        call = self.tree.expression(action.call)
        if not isinstance(call, cst.Call):
            raise Refused("the schedule is not made by a call here")
        divisor = self.written(action.by, call)
        named = [arg for arg in call.args if arg.keyword is not None and arg.keyword.value == action.argument]
        placed = [arg for at, arg in enumerate(call.args) if at == action.position and not (arg.keyword or arg.star)]
        if not named and not placed:
            raise Refused("the length of the schedule is not written in this call")
        self.change((named or placed)[0].value, lambda new: _ceiling(_quotient(new, divisor, brackets=False)))
        self.imports.append("math")

    def detach(self, action: base.Detach) -> None:
        kept = self._kept(action.target)
        if action.part >= len(kept):
            raise Refused("what is kept is not written as a value of its own here")
        self.change(kept[action.part], lambda new: _method(new, "detach"))

    def _kept(self, span: Span) -> Sequence[cst.BaseExpression]:
        """The values that a statement may add to what it keeps."""
        statement = self.tree.statement(span)
        if isinstance(statement, cst.AugAssign):
            return _items(statement.value)
        if isinstance(statement, cst.Assign):
            targets = [target.target for target in statement.targets]
            if isinstance(statement.value, cst.BinaryOperation):
                sides = (statement.value.left, statement.value.right)
                others = [side for side in sides if not any(side.deep_equals(target) for target in targets)]
                if len(others) == 1:
                    return _items(others[0])
            return _items(statement.value)
        if isinstance(statement, cst.Expr) and isinstance(statement.value, cst.Call):
            return [item for arg in statement.value.args for item in _items(arg.value)]
        return ()

    # --- window tests ---

    def shift(self, action: base.Shift) -> None:
        test = self.tree.expression(action.test)
        moduli = [one for one in self.tree.inside(test, cst.BinaryOperation) if isinstance(one.operator, cst.Modulo)]
        if len(moduli) != 1:
            self._shift_comparison(test, action)
            return
        found = moduli
        if action.everywhere:
            around = self.tree.loop(test)
            same = self.tree.inside(around, cst.BinaryOperation) if around is not None else iter(moduli)
            found = [one for one in same if one.deep_equals(moduli[0])]
        for one in found:
            self.change(one.left, lambda new: _plus(new, action.by))

    def _shift_comparison(self, test: cst.BaseExpression, action: base.Shift) -> None:
        """`count > k`, true one micro-batch late, becomes `count >= k`."""
        if isinstance(test, cst.Comparison) and len(test.comparisons) == 1 and action.by == -1:
            (target,) = test.comparisons
            if isinstance(target.operator, cst.GreaterThan):
                operator = target.operator
                self.change(
                    operator,
                    lambda _: cst.GreaterThanEqual(operator.whitespace_before, operator.whitespace_after),
                )
                return
        self._shift_start(test, action)

    def _shift_start(self, test: cst.BaseExpression, action: base.Shift) -> None:
        """`count == k`, true too early in the first window only: the counter begins at another number."""
        around = set(self.tree.loops(test))
        counter = test.left if isinstance(test, cst.Comparison) else None
        starts = [
            value
            for value in (self._assigned(counter, self.tree.function(test)) if counter is not None else ())
            if isinstance(value, cst.Integer) and not around.intersection(self.tree.loops(value))
        ]
        if len(starts) != 1 or starts[0].evaluated_value + action.by < 0:
            raise Refused("the window test is not written as a remainder here")
        self.change(starts[0], lambda old: cst.Integer(str(old.evaluated_value + action.by)))

    def negate(self, action: base.Negate) -> None:
        test = self.tree.expression(action.test)
        self.change(test, lambda new: _negated(new))

    # --- statements ---

    def move(self, action: base.Move) -> None:
        anchor = action.behind if action.behind is not None else action.before
        assert anchor is not None
        guarded = self.tree.conditional(action.target)
        if guarded is not None:
            self._move_level(guarded, self.tree.statement(anchor), behind=action.behind is not None)
            return
        small = self.tree.statement(action.target)
        if action.level:
            whole = self.tree.line(small)
            if not isinstance(whole, cst.SimpleStatementLine) or len(whole.body) != 1:
                raise Refused("the statement shares its line with others")
            self._move_level(whole, self.tree.statement(anchor), behind=action.behind is not None)
            return
        loop = self.tree.loop_at(anchor)
        if loop is not None:
            self._move_behind_loop(small, loop)
            return
        place = self.tree.statement(anchor)
        if small is place:
            raise Refused("the statement is already there")
        if self.tree.function(small) is not self.tree.function(place):
            if _targets(small):
                raise Refused("the statement would have to move into another function")
            self.tree.check_names(small, place)
        left = [loop for loop in self.tree.loops(small) if loop not in set(self.tree.loops(place))]
        if any(set(reads(loop.target)) & set(reads(small)) for loop in left if isinstance(loop, cst.For)):
            raise Refused("the statement would have to move out of its loop")
        if action.before is not None:
            self._check_earlier(small, place)
        comments = self._take(small)
        self.insert(place, _plain(small), behind=action.behind is not None, comments=comments)

    def _move_behind_loop(self, small: cst.BaseSmallStatement, loop: cst.For | cst.While) -> None:
        if self.tree.function(small) is not self.tree.function(loop):
            self.tree.check_names(small, loop)
        if isinstance(loop, cst.For) and set(reads(loop.target)) & set(reads(small)):
            raise Refused("the statement would have to move out of its loop")
        self.tree.block(loop)
        leading, _ = self._take(small)
        new = small.deep_clone().with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
        self.changer.behind.setdefault(loop, []).append(cst.SimpleStatementLine([new], leading_lines=leading))

    def _loop_over_parameters(self, small: cst.BaseSmallStatement) -> cst.For | None:
        """The outermost loop over parameters that a statement stands in: such a loop counts as one statement."""
        found = [
            one for one in self.tree.loops(small) if isinstance(one, cst.For) and "param" in self.tree.code(one.iter)
        ]
        return found[-1] if found else None

    def _move_level(self, moved: Line, place: cst.BaseSmallStatement, *, behind: bool) -> None:
        """Move a whole statement within its block, beside the statement there that holds `place`."""
        block = self.tree.block(moved)
        around = [self.tree.line(place), *self.tree.above(self.tree.line(place))]
        beside = next((one for one in around if self.tree.parent(one) is block), None) if block in around else None
        if beside is None or beside is moved:
            raise Refused("the statement would have to move into another block")
        if behind:
            # What reads the gradients still has to find them.
            following = list(block.body)[list(block.body).index(cast("Line", beside)) + 1 :]
            reading = [one for one in following if one is not moved and self._reads_gradients(one)]
            beside = reading[-1] if reading else beside
        self.drop(moved)
        (self.changer.behind if behind else self.changer.before).setdefault(beside, []).append(moved.deep_clone())

    def _reads_gradients(self, node: cst.CSTNode) -> bool:
        return any(one.attr.value == "grad" for one in self.tree.inside(node, cst.Attribute))

    def _check_earlier(self, small: cst.BaseSmallStatement, place: cst.BaseSmallStatement) -> None:
        """Raise Refused if something between `place` and `small` reads what `small` assigns."""
        assigned = {name for target in _targets(small) for name in reads(target)}
        if not assigned:
            return
        lines = self.tree.line(place), self.tree.line(small)
        block = self.tree.block(lines[0])
        body = list(block.body)
        if self.tree.parent(lines[1]) is not block:
            raise Refused("the statement stands under another condition")
        between = body[body.index(cast("Line", lines[0])) + 1 : body.index(cast("Line", lines[1]))]
        if any(assigned & set(reads(line)) for line in between):
            raise Refused("what stands between reads the value")

    def remove(self, action: base.Remove) -> None:
        self._take(self.tree.statement(action.target))

    def zero(self, action: base.Zero) -> None:
        call = self.tree.expression(action.update)
        if not (isinstance(call, cst.Call) and isinstance(call.func, cst.Attribute)):
            raise Refused("the update is not written as a call of the optimizer")
        last = action.optimizer.rpartition(".")[2]
        given = [arg.value for arg in call.args if self.tree.code(arg.value).rpartition(".")[2] == last]
        receiver = given[0] if given else call.func.value
        statement = cst.Expr(_method(receiver.deep_clone(), "zero_grad"))
        self.insert(self.tree.statement(action.update), statement, behind=True)

    def gate(self, action: base.Gate) -> None:
        update = self.tree.statement(action.update)
        first = [self.tree.statement(span) for span in action.first]
        then = [self.tree.statement(span) for span in action.then]
        self._with_scaler(update, first, then)
        line = self.tree.line(update)
        if not isinstance(line, cst.SimpleStatementLine) or len(line.body) != 1:
            raise Refused("the update shares its line with other statements")
        together = [*first, update, *then]
        if any(self.tree.function(small) is not self.tree.function(update) for small in together):
            raise Refused("the statements of the update stand in several functions")
        counter, start = self._counter(action.loop, update)
        divisor = self.written(action.by, update)
        count = _plus(counter, 1 - start) if start != 1 else counter
        test = cst.Comparison(
            cst.BinaryOperation(_bracketed(count), cst.Modulo(), _bracketed(divisor)),
            [cst.ComparisonTarget(cst.Equal(), cst.Integer("0"))],
        )
        for small in (*first, *then):
            self._take(small)
        clean = [small.deep_clone().with_changes(semicolon=cst.MaybeSentinel.DEFAULT) for small in together]
        block = cst.IndentedBlock([cst.SimpleStatementLine([small]) for small in clean])
        self.change(line, lambda old: cst.If(test, block, leading_lines=old.leading_lines))

    def _with_scaler(
        self, update: cst.BaseSmallStatement, first: list[cst.BaseSmallStatement], then: list[cst.BaseSmallStatement]
    ) -> None:
        """Add what a gradient scaler does around `scaler.step(optimizer)`: unscale before it, update behind it."""
        call = update.value if isinstance(update, cst.Expr) else None
        if not (isinstance(call, cst.Call) and call.args and isinstance(call.func, cst.Attribute)):
            return
        scaler = call.func.value
        for line in self.tree.block(self.tree.line(update)).body:
            for small in line.body if isinstance(line, cst.SimpleStatementLine) else ():
                other = small.value if isinstance(small, cst.Expr) else None
                if not (isinstance(other, cst.Call) and isinstance(other.func, cst.Attribute)):
                    continue
                if other.func.value.deep_equals(scaler) and other.func.attr.value in ("unscale_", "update"):
                    first.insert(0, small) if other.func.attr.value == "unscale_" else then.insert(0, small)

    def _counter(self, span: Span, at: cst.CSTNode) -> tuple[cst.BaseExpression, int]:
        """The counter of a loop, made if it has none, and the number it starts from."""
        loop = self.tree.loop_at(span)
        if not isinstance(loop, cst.For):
            raise Refused("the loop over micro-batches does not count them")
        if self.tree.function(loop) is not self.tree.function(at):
            raise Refused("the loop over micro-batches stands in another function")
        call, target = loop.iter, loop.target
        if isinstance(call, cst.Call) and self.tree.code(call.func) == "enumerate" and isinstance(target, cst.Tuple):
            start = call.args[1].value if len(call.args) > 1 else cst.Integer("0")
            if isinstance(start, cst.Integer) and isinstance(target.elements[0].value, cst.Name):
                return target.elements[0].value.deep_clone(), start.evaluated_value
        elif not isinstance(call, cst.Call) or self.tree.code(call.func) not in ("enumerate", "range"):
            name = self.tree.free_name("micro_step", at)
            self.change(loop.iter, lambda new: cst.Call(cst.Name("enumerate"), [cst.Arg(new)]))
            self.change(target, lambda new: _pair(cst.Name(name), new))
            return cst.Name(name), 0
        raise Refused("the loop over micro-batches does not count them")

    def flush(self, action: base.Flush) -> None:
        loop = self.tree.loop_at(action.loop)
        if not (isinstance(loop, cst.For) and isinstance(loop.iter, cst.Call) and loop.iter.args):
            raise Refused("the length of the loop is not written here")
        place = self.tree.expression(action.test) if action.test is not None else loop
        counter, start = self._counter(action.loop, place)
        data = loop.iter.args[0].value
        if start != 0 or not isinstance(data, (cst.Name, cst.Attribute)):
            raise Refused("the length of the loop is not written here")
        # In a function that cannot see the loop the names would be unknown.
        k = self.tree.code(_bracketed(self.written(action.by, loop)))
        i, length = self.tree.code(counter), f"len({self.tree.code(data)})"
        if action.test is not None:
            test = self.tree.expression(action.test)
            last = self.written(f"{i} + 1 == {length}", test)
            wrong_way = self.tree.conditional(action.test)
            if wrong_way is not None and _jumps(wrong_way):
                last = self.written(f"{i} + 1 != {length}", test)
                self.change(test, lambda new: cst.BooleanOperation(_operand(new), cst.And(), last))
            else:
                self.change(test, lambda new: cst.BooleanOperation(_operand(new), cst.Or(), last))
        for span in action.divisions:
            self._divide_by(span, self.written(f"min({k}, {length} - {i} // {k} * {k})", self.tree.expression(span)))

    def _divide_by(self, span: Span, size: cst.BaseExpression) -> None:
        division = self.tree.expression(span)
        if not isinstance(division, cst.BinaryOperation) or not isinstance(division.operator, cst.Divide):
            raise Refused("the division is not written as one")
        self.change(division.right, lambda _: size)

    def insert(
        self,
        place: cst.BaseSmallStatement,
        small: cst.BaseSmallStatement,
        *,
        behind: bool,
        comments: tuple[Sequence[cst.EmptyLine], cst.TrailingWhitespace | None] = ((), None),
    ) -> None:
        """Put a statement beside another one: on a line of its own, or on the same one where that has no other."""
        line = self.tree.line(place)
        beside = self.changer.behind if behind else self.changer.before
        new = small.deep_clone().with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
        over_parameters = self._loop_over_parameters(place)
        if over_parameters is not None:
            self.tree.block(over_parameters)
            beside.setdefault(over_parameters, []).append(cst.SimpleStatementLine([new], leading_lines=comments[0]))
            return
        at_the_end = line.body[-1 if behind else 0] is place
        if isinstance(line, cst.SimpleStatementSuite) or not at_the_end:
            beside.setdefault(place, []).append(new)
            self.change(line, _separated)
            return
        leading, trailing = comments
        whole = cst.SimpleStatementLine([new], leading_lines=leading)
        if trailing is not None:
            whole = whole.with_changes(trailing_whitespace=trailing)
        beside.setdefault(line, []).append(whole)

    def _take(self, small: cst.BaseSmallStatement) -> tuple[Sequence[cst.EmptyLine], cst.TrailingWhitespace | None]:
        """Remove a statement; what comes back are the comments that speak of it."""
        self.taken.append(small)
        line = self.tree.line(small)
        if not isinstance(line, cst.SimpleStatementLine) or len(line.body) != 1:
            return (), None
        words = _words(self.tree.code(small))
        leading = [one for one in line.leading_lines if one.comment is not None]
        own = leading if leading and all(_words(_said(one)) & words for one in leading) else []
        return own, line.trailing_whitespace

    def _home(self, small: cst.BaseSmallStatement) -> cst.CSTNode:
        line = self.tree.line(small)
        return line if isinstance(line, cst.SimpleStatementSuite) else self.tree.block(line)

    def _clear(self, home: cst.CSTNode) -> None:
        """Carry the removals of one block out; a block that would be empty holds `pass`."""
        if isinstance(home, cst.SimpleStatementSuite):
            self._clear_line(home, keep=True)
            return
        assert isinstance(home, (cst.IndentedBlock, cst.Module))
        body = list(home.body)
        lines = [line for line in body if isinstance(line, cst.SimpleStatementLine)]
        empty = [line for line in lines if all(small in self.taken for small in line.body)]
        filled = any(line in self.changer.behind or line in self.changer.before for line in empty)
        if len(empty) == len(body) and not filled and self._drop_around(home):
            return
        keep = empty[-1] if len(empty) == len(body) and not filled else None
        for line in lines:
            if line in empty and line is not keep:
                self._drop(line, home)
            else:
                self._clear_line(line, keep=line is keep)

    def _drop_around(self, home: cst.IndentedBlock | cst.Module) -> bool:
        """Remove the loops over parameters, or the plain condition, that have nothing left to do."""
        owner: cst.CSTNode | None = None
        block: cst.CSTNode = home
        while isinstance(block, cst.IndentedBlock) and len(block.body) == (1 if owner else len(home.body)):
            around = self.tree.parent(block)
            if not self._is_needless(around):
                break
            owner, block = around, self.tree.parent(around)
        if owner is None or not isinstance(block, (cst.IndentedBlock, cst.Module)) or len(block.body) == 1:
            return False
        self._drop(cast("Line", owner), block)
        return True

    def _is_needless(self, statement: cst.CSTNode) -> bool:
        """Whether a statement does nothing but run its block."""
        if isinstance(statement, cst.For) and statement.orelse is None:
            return "param" in self.tree.code(statement.iter)
        plain = isinstance(statement, cst.If) and statement.orelse is None
        return plain and not any(True for _ in self.tree.inside(cast("cst.If", statement).test, cst.Call))

    def _clear_line(self, line: cst.SimpleStatementLine | cst.SimpleStatementSuite, *, keep: bool) -> None:
        gone = [small for small in line.body if small in self.taken]
        if keep and len(gone) == len(line.body):
            self.change(gone.pop(), lambda _: cst.Pass())
        for small in gone:
            self.drop(small)
        if gone:
            self.change(line, _separated)

    def _drop(self, line: Line, home: cst.IndentedBlock | cst.Module) -> None:
        """Remove a statement; comments in it that are not about it stay above what follows."""
        self.drop(line)
        stays = self._remarks(line)
        following = list(home.body)[list(home.body).index(line) + 1 :]
        if not stays:
            return
        if following:
            self.change(following[0], lambda new: _led(new, stays))
        elif any(one.comment is not None for one in stays):
            self.change(home, lambda new: new.with_changes(footer=(*stays, *cast("cst.IndentedBlock", new).footer)))

    def _remarks(self, line: Line) -> list[cst.EmptyLine]:
        """The lines above a statement, and the comments within its block, that are not about what they stand above."""
        words = _words(re.sub("#.*", "", self.tree.code(line.with_changes(leading_lines=()))))
        comments = [one for one in line.leading_lines if one.comment is not None]
        stays = [] if comments and all(_words(_said(one)) & words for one in comments) else list(line.leading_lines)
        block = getattr(line, "body", None)
        if isinstance(block, cst.IndentedBlock):
            within = [one for inner in block.body for one in self._remarks(cast("Line", inner))]
            stays += [one for one in (*within, *block.footer) if one.comment is not None]
        return stays


class _Changer(cst.CSTTransformer):
    """Carries the changes of single nodes out, each on the original node that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: dict[cst.CSTNode, list[Change]] = {}
        self.before: dict[cst.CSTNode, list[cst.CSTNode]] = {}
        self.behind: dict[cst.CSTNode, list[cst.CSTNode]] = {}
        self.removed: set[cst.CSTNode] = set()

    def on_leave(  # type: ignore[override]
        self, original_node: cst.CSTNode, updated_node: cst.CSTNode
    ) -> cst.CSTNode | cst.RemovalSentinel | cst.FlattenSentinel[cst.CSTNode]:
        for change in self.changes.get(original_node, ()):
            updated_node = change(updated_node)
        stays = [] if original_node in self.removed else [updated_node]
        nodes = [*self.before.get(original_node, ()), *stays, *self.behind.get(original_node, ())]
        if nodes == [updated_node]:
            return updated_node
        return cst.FlattenSentinel(nodes) if nodes else cst.RemoveFromParent()


def _targets(small: cst.BaseSmallStatement) -> Sequence[cst.BaseExpression]:
    if isinstance(small, cst.AugAssign):
        return (small.target,)
    return [target.target for target in small.targets] if isinstance(small, cst.Assign) else ()


def _plain(small: cst.BaseSmallStatement) -> cst.BaseSmallStatement:
    """`loss /= k` as `loss = loss / k`: autograd refuses to change in place what an operation has saved."""
    if isinstance(small, cst.AugAssign) and isinstance(small.operator, cst.DivideAssign):
        target = small.target
        value = cst.BinaryOperation(target.deep_clone(), cst.Divide(), _bracketed(small.value))
        return cst.Assign([cst.AssignTarget(target)], value)
    return small


# --- pieces of code --------------------------------------------------------------------------------------------------


def _argument(call: cst.Call) -> cst.BaseExpression:
    for arg in call.args:
        if arg.keyword is None and not arg.star:
            return arg.value
    for arg in call.args:
        if arg.keyword is not None and arg.keyword.value in ("loss", "tensor", "tensors"):
            return arg.value
    raise Refused("the loss is not written in this call")


def _bracketed(expression: cst.BaseExpression) -> cst.BaseExpression:
    """The expression so that it may stand beside `/` or before a dot."""
    if isinstance(expression, _CLOSED) or expression.lpar:
        return expression
    return expression.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _quotient(loss: cst.BaseExpression, divisor: cst.BaseExpression, *, brackets: bool) -> cst.BaseExpression:
    quotient = cst.BinaryOperation(_bracketed(loss), cst.Divide(), _bracketed(divisor))
    return _bracketed(quotient) if brackets else quotient


def _method(value: cst.BaseExpression, name: str) -> cst.Call:
    return cst.Call(cst.Attribute(_bracketed(value), cst.Name(name)))


def _pair(counter: cst.Name, target: cst.BaseExpression) -> cst.Tuple:
    """`counter, target` as the target of a loop; a tuple in it needs brackets."""
    if isinstance(target, cst.Tuple) and not target.lpar:
        target = target.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    return cst.Tuple([cst.Element(counter), cst.Element(target)], lpar=[], rpar=[])


def _operand(test: cst.BaseExpression) -> cst.BaseExpression:
    """A test so that it may stand beside `and` and `or`."""
    weak = isinstance(test, (cst.BooleanOperation, cst.IfExp, cst.Lambda, cst.NamedExpr))
    return _bracketed(test) if weak else test


def _jumps(statement: cst.If) -> bool:
    """Whether an `if` leaves the turn of the loop, so that its test is true where there is no update."""
    last = statement.body.body[-1]
    inner = last.body[-1] if isinstance(last, cst.SimpleStatementLine) else last
    return isinstance(inner, (cst.Continue, cst.Return))


def _ceiling(number: cst.BaseExpression) -> cst.BaseExpression:
    return cst.Call(cst.Attribute(cst.Name("math"), cst.Name("ceil")), [cst.Arg(number)])


def _plus(counter: cst.BaseExpression, by: int) -> cst.BaseExpression:
    """`counter + by`; a number that is already added to it is made use of."""
    plain, before = counter, 0
    if isinstance(counter, cst.BinaryOperation) and isinstance(counter.right, cst.Integer):
        if isinstance(counter.operator, cst.Add):
            plain, before = counter.left, counter.right.evaluated_value
        elif isinstance(counter.operator, cst.Subtract):
            plain, before = counter.left, -counter.right.evaluated_value
    total = before + by
    if total == 0:
        return _bracketed(plain)
    operator = cst.Add() if total > 0 else cst.Subtract()
    return _bracketed(cst.BinaryOperation(_bracketed(plain), operator, cst.Integer(str(abs(total)))))


def _negated(test: cst.BaseExpression) -> cst.BaseExpression:
    if isinstance(test, cst.Comparison) and len(test.comparisons) == 1:
        (target,) = test.comparisons
        operator = target.operator
        turned: cst.BaseCompOp
        if isinstance(operator, cst.NotEqual):
            turned = cst.Equal(operator.whitespace_before, operator.whitespace_after)
        elif isinstance(operator, cst.Equal):
            turned = cst.NotEqual(
                whitespace_before=operator.whitespace_before, whitespace_after=operator.whitespace_after
            )
        else:
            raise Refused("the window test cannot be turned round")
        return test.with_changes(comparisons=[target.with_changes(operator=turned)])
    if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
        return test.expression
    if isinstance(test, cst.BinaryOperation) and isinstance(test.operator, cst.Modulo):
        return cst.Comparison(test, [cst.ComparisonTarget(cst.Equal(), cst.Integer("0"))])
    return cst.UnaryOperation(cst.Not(), _bracketed(test))


def _items(value: cst.BaseExpression) -> Sequence[cst.BaseExpression]:
    """A value, or those of a list, tuple or dictionary that is written out."""
    if isinstance(value, (cst.List, cst.Tuple)):
        return [item for element in value.elements for item in _items(element.value)]
    if isinstance(value, cst.Dict):
        return [item for element in value.elements for item in _items(element.value)]
    if isinstance(value, (cst.BaseNumber, cst.BaseString, cst.BaseComp)):
        return ()
    return (value,)


def _separated(line: cst.CSTNode) -> cst.CSTNode:
    """A line of statements, each but the last with a semicolon behind it."""
    body = list(cast("cst.SimpleStatementLine", line).body)
    semicolon = cst.Semicolon(whitespace_after=cst.SimpleWhitespace(" "))
    for at, small in enumerate(body):
        if at == len(body) - 1:
            body[at] = small.with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
        elif not isinstance(small.semicolon, cst.Semicolon):
            body[at] = small.with_changes(semicolon=semicolon)
    return line.with_changes(body=body)


def _led(node: cst.CSTNode, lines: Sequence[cst.EmptyLine]) -> cst.CSTNode:
    return node.with_changes(leading_lines=(*lines, *getattr(node, "leading_lines", ())))


def _said(line: cst.EmptyLine) -> str:
    return line.comment.value if line.comment is not None else ""


def _words(text: str) -> set[str]:
    """The beginnings of the longer words of a text, to see whether a comment speaks of a statement."""
    return {word[:4] for word in re.findall(r"[a-z]{4,}", text.lower())}
