"""Operators that damage or harmlessly rewrite a training script, in the syntax tree.

An operator gets a `Script` and yields one `Change` per place where it fits. What it means (harmful or harmless) is only
an intention: the label of the result comes from torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import libcst as cst

from tests.mutations.script import Edit, Loop, Script, Statement, statement


@dataclass(frozen=True)
class Change:
    """One way an operator fits: the line it changed (in the text it was given) and the new text."""

    line: int
    text: str


Operator = Callable[[Script], Iterator[Change]]
HARMFUL: dict[str, Operator] = {}
HARMLESS: dict[str, Operator] = {}


def harmful(name: str) -> Callable[[Operator], Operator]:
    def register(operator: Operator) -> Operator:
        HARMFUL[name] = operator
        return operator

    return register


def harmless(name: str) -> Callable[[Operator], Operator]:
    def register(operator: Operator) -> Operator:
        HARMLESS[name] = operator
        return operator

    return register


def changed(script: Script, at: cst.CSTNode, edit: Edit) -> Change:
    return Change(script.line(at), script.apply(edit))


def expr(text: str) -> cst.BaseExpression:
    return cst.parse_expression(text)


def fresh(script: Script, wish: str) -> str:
    taken = {node.value for node in script.find(cst.Name)}
    while wish in taken:
        wish += "_"
    return wish


def copy(node: cst.CSTNode) -> Statement:
    """A statement to be used at another place."""
    clone = node.deep_clone()
    assert isinstance(clone, (cst.SimpleStatementLine, cst.BaseCompoundStatement))
    return clone.with_changes(leading_lines=[])


def move(line: Statement, **where: dict[cst.CSTNode, list[Statement]]) -> Edit:
    return Edit(replace={line: None}, **where)


def inside(script: Script, node: cst.CSTNode, outer: cst.CSTNode) -> bool:
    return any(up is outer for up in script.above(node))


def body_of(loop: Loop) -> cst.IndentedBlock:
    assert isinstance(loop.body, cst.IndentedBlock)
    return loop.body


def micro_loop_of(script: Script, node: cst.CSTNode) -> Loop | None:
    """The micro loop around a statement."""
    return next((loop for loop in script.micro_loops if inside(script, node, loop)), None)


def backward_near(script: Script, node: cst.CSTNode) -> cst.SimpleStatementLine | None:
    """The last backward statement in the innermost loop around a statement."""
    for loop in script.loops_around(node):
        lines = [line for line, _ in script.backwards if inside(script, line, loop)]
        if lines:
            return lines[-1]
    return None


# --- divisions -------------------------------------------------------------------------------------------------------


def divisions(script: Script) -> Iterator[tuple[cst.CSTNode, cst.BaseExpression | None, str]]:
    """Places that divide by k: the node, what stays without the division (None: nothing), and the divisor."""
    ks, losses = script.ks, script.losses
    for binary in script.find(cst.BinaryOperation):
        if isinstance(binary.operator, cst.Divide):
            divisor = script.code(binary.right)
            used = script.loops_around(binary) or losses & script.names(binary)
            if used and re.sub(r"^float\((.*)\)$", r"\1", divisor) in ks:
                yield binary, binary.left, divisor
        elif isinstance(binary.operator, cst.Multiply):
            match = re.fullmatch(r"1(?:\.0?)? / (.+)", script.code(binary.right))
            if match and match[1] in ks:
                yield binary, binary.left, match[1]
    for line in script.lines:
        augmented, call = script.small(line, cst.AugAssign), script.called(line)
        if augmented is not None and isinstance(augmented.operator, cst.DivideAssign):
            factor = augmented.value
        elif call is not None and re.search(r"\.(div|mul)_$", script.code(call.func)) and call.args:
            factor = call.args[0].value
        else:
            continue
        if ks & {script.code(node) for node in script.find(cst.BaseExpression, factor)}:
            yield line, None, script.code(factor)


def loss_divisions(script: Script) -> Iterator[tuple[cst.SimpleStatementLine, cst.BaseExpression | None, str]]:
    """Statements `loss = loss / k` and `loss /= k`, with the loss."""
    for node, rest, k in divisions(script):
        line = script.statement_of(node)
        if not isinstance(line, cst.SimpleStatementLine):
            continue
        assign = script.small(line, cst.Assign)
        whole = assign is not None and assign.value is node and rest is not None
        if whole and script.code(assign.targets[0].target) == script.code(rest):  # type: ignore[union-attr,arg-type]
            yield line, rest, k
        augmented = script.small(line, cst.AugAssign)
        if augmented is not None and script.code(augmented.target) in script.losses:
            yield line, augmented.target, k


@harmful("drop-division")
def drop_division(script: Script) -> Iterator[Change]:
    whole = {line for line, _, _ in loss_divisions(script)}
    for node, rest, _ in divisions(script):
        line = script.statement_of(node)
        if rest is None or line in whole:
            yield changed(script, node, Edit(replace={line: None}))
        else:
            yield changed(script, node, Edit(replace={node: rest}))


@harmful("double-division")
def double_division(script: Script) -> Iterator[Change]:
    for node, rest, k in divisions(script):
        if rest is None:
            line = script.statement_of(node)
            yield changed(script, node, Edit(after={line: [copy(line)]}))
        else:
            assert isinstance(node, cst.BinaryOperation)
            yield changed(script, node, Edit(replace={node: expr(f"({script.code(node)} / {k})")}))


@harmful("divide-after-backward")
def divide_after_backward(script: Script) -> Iterator[Change]:
    for line, _, _ in loss_divisions(script):
        backward = backward_near(script, line)
        if backward is not None:
            yield changed(script, line, move(line, after={backward: [copy(line)]}))
    for backward, _ in script.backwards:
        for node, rest, k in divisions(script):
            if rest is not None and isinstance(rest, cst.Name) and inside(script, node, backward):
                late = statement(f"{rest.value} = {rest.value} / {k}")
                yield changed(script, node, Edit(replace={node: rest}, after={backward: [late]}))


@harmful("divide-by-batch-size")
def divide_by_batch_size(script: Script) -> Iterator[Change]:
    sizes = dict.fromkeys(
        script.code(arg.value)
        for arg in script.find(cst.Arg)
        if arg.keyword is not None and arg.keyword.value == "batch_size"
    )
    for size in list(sizes)[:1]:
        for node, rest, k in divisions(script):
            if k == size:
                continue
            if rest is None:
                line = script.statement_of(node)
                target = next((n for n in script.find(cst.BaseExpression, line) if script.code(n) == k), None)
                if target is not None:
                    yield changed(script, node, Edit(replace={target: expr(size)}))
            else:
                assert isinstance(node, cst.BinaryOperation)
                yield changed(script, node, Edit(replace={node: expr(f"({script.code(rest)} / {size})")}))


@harmful("divisor-not-k")
def divisor_not_k(script: Script) -> Iterator[Change]:
    """Another k in the window test than in the division."""
    for test in script.tests:
        for node in script.find(cst.BinaryOperation, test):
            if isinstance(node.operator, cst.Modulo):
                k = script.code(node.right)
                yield changed(script, node, Edit(replace={node.right: expr(f"({k} + 1)")}))


# --- zeroing ---------------------------------------------------------------------------------------------------------


@harmful("zero-dropped")
def zero_dropped(script: Script) -> Iterator[Change]:
    for zero in script.zeros:
        yield changed(script, zero, Edit(replace={zero: None}))


@harmful("zero-per-micro-batch")
def zero_per_micro_batch(script: Script) -> Iterator[Change]:
    """At the head or the end of the micro-iteration, moved there or in addition, and right behind backward."""
    for zero in script.zeros:
        loop = micro_loop_of(script, zero) or next(iter(script.micro_loops), None)
        if loop is None:
            continue
        body = body_of(loop)
        yield changed(script, zero, move(zero, top={body: [copy(zero)]}))
        yield changed(script, zero, Edit(top={body: [copy(zero)]}))
        yield changed(script, zero, move(zero, bottom={body: [copy(zero)]}))
        for backward, _ in script.backwards:
            if inside(script, backward, loop):
                yield changed(script, zero, move(zero, before={backward: [copy(zero)]}))


@harmful("zero-before-step")
def zero_before_step(script: Script) -> Iterator[Change]:
    for zero in script.zeros:
        for step in script.steps:
            if script.function_of(step) is script.function_of(zero) and micro_loop_of(script, step):
                yield changed(script, zero, move(zero, before={step: [copy(zero)]}))
                break
        backward = backward_near(script, zero)
        if backward is not None:
            yield changed(script, zero, move(zero, after={backward: [copy(zero)]}))


@harmful("zero-out-of-loop")
def zero_out_of_loop(script: Script) -> Iterator[Change]:
    """Before the micro loop (once an epoch or window) and before the outermost loop (once)."""
    for zero in script.zeros:
        loops = script.loops_around(zero)
        for loop in dict.fromkeys([*loops[:1], *loops[-1:]]):
            yield changed(script, zero, move(zero, before={loop: [copy(zero)]}))


# --- the update ------------------------------------------------------------------------------------------------------


@harmful("step-out-of-guard")
def step_out_of_guard(script: Script) -> Iterator[Change]:
    """step() behind its guard, in every micro-iteration; then all of the guard's body."""
    for step in script.steps:
        guard = script.guard_of(step)
        if guard is not None:
            yield changed(script, step, move(step, after={guard: [copy(step)]}))
    for guard in script.guards:
        if guard.orelse is None:
            yield changed(script, guard, Edit(replace={guard: None}, after={guard: [*map(copy, guard.body.body)]}))
    for step in script.steps:
        for loop in script.micro_loops:
            if script.loops_around(step) == script.loops_around(loop) and script.guard_of(step) is None:
                yield changed(script, step, move(step, bottom={loop.body: [copy(step)]}))


@harmful("step-before-backward")
def step_before_backward(script: Script) -> Iterator[Change]:
    """The guard with the update at the head of the micro-iteration."""
    for guard in script.guards:
        loop = micro_loop_of(script, guard)
        if loop is not None and script.block_of(guard) is loop.body:
            yield changed(script, guard, move(guard, top={loop.body: [copy(guard)]}))


@harmful("backward-in-guard")
def backward_in_guard(script: Script) -> Iterator[Change]:
    for backward, _ in script.backwards:
        for guard in script.guards:
            if script.block_of(guard) is script.block_of(backward):
                yield changed(script, backward, move(backward, top={guard.body: [copy(backward)]}))


@harmful("update-at-epoch-end")
def update_at_epoch_end(script: Script) -> Iterator[Change]:
    """step() moved behind the micro loop: one update an epoch, divided as for a window."""
    for step in script.steps:
        loop = micro_loop_of(script, step)
        if loop is not None and script.guard_of(step) is not None:
            yield changed(script, step, move(step, after={loop: [copy(step)]}))


@harmful("step-gated-by-other-test")
def step_gated_by_other_test(script: Script) -> Iterator[Change]:
    """step() one indent too deep, under a logging test, with and without the rest of the update."""
    for step in script.steps:
        guard = script.guard_of(step)
        if guard is None:
            continue
        for modulus in script.find(cst.BinaryOperation, guard.test):
            if isinstance(modulus.operator, cst.Modulo):
                counter = script.code(modulus.left)
                gated = cst.If(expr(f"({counter}) % 5 == 0"), cst.IndentedBlock([copy(step)]))
                yield changed(script, step, Edit(replace={step: gated}))
                yield changed(script, step, Edit(replace={guard.test: expr(f"({counter}) % 5 == 0")}))


# --- the window test -------------------------------------------------------------------------------------------------


def moduli(script: Script) -> Iterator[cst.BinaryOperation]:
    for test in script.tests:
        for node in script.find(cst.BinaryOperation, test):
            if isinstance(node.operator, cst.Modulo):
                yield node


@harmful("shift-test")
def shift_test(script: Script) -> Iterator[Change]:
    for node in moduli(script):
        left = script.code(node.left)
        match = re.fullmatch(r"(.+) \+ 1|1 \+ (.+)", left)
        other = (match[1] or match[2]) if match else f"({left} + 1)"
        yield changed(script, node, Edit(replace={node.left: expr(other)}))


@harmful("shift-start")
def shift_start(script: Script) -> Iterator[Change]:
    """enumerate() that starts at 1 instead of 0 or the reverse, and counters likewise."""
    for loop in script.find(cst.For):
        call = loop.iter
        if isinstance(call, cst.Call) and script.code(call.func) == "enumerate" and loop in script.micro_loops:
            args = call.args[:1] if len(call.args) > 1 else [*call.args, cst.Arg(expr("1"))]
            args = [arg.with_changes(comma=cst.MaybeSentinel.DEFAULT) for arg in args]
            yield changed(script, loop, Edit(replace={call: call.with_changes(args=args)}))
    counters = {name for _, name in script.counters}
    for line in script.lines:
        assign = script.small(line, cst.Assign)
        if assign is not None and script.code(assign.targets[0].target) in counters:
            value = script.code(assign.value)
            if value in ("0", "1"):
                yield changed(script, line, Edit(replace={assign.value: expr("1" if value == "0" else "0")}))


@harmful("invert-test")
def invert_test(script: Script) -> Iterator[Change]:
    for test in script.tests:
        yield changed(script, test, Edit(replace={test: negation(script, test)}))


def negation(script: Script, test: cst.BaseExpression) -> cst.BaseExpression:
    if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
        return test.expression
    return expr(f"not ({script.code(test)})")


def with_counter(script: Script) -> Script:
    """The script, with enumerate() made a manual counter where it has no counter of its own."""
    if not script.counters:
        for change in manual_counter(script):
            return Script(change.text)
    return script


@harmful("freeze-counter")
def freeze_counter(script: Script) -> Iterator[Change]:
    """The counter is raised only inside the guard that it decides about."""
    script = with_counter(script)
    for line, name in script.counters:
        for guard in script.guards:
            read = {script.code(node) for node in script.find(cst.BaseExpression, guard.test)}
            if name in read and script.block_of(line) is script.block_of(guard):
                yield changed(script, line, move(line, bottom={guard.body: [copy(line)]}))


@harmful("reset-counter")
def reset_counter(script: Script) -> Iterator[Change]:
    """The counter starts anew behind an update, from another number; an own reset is dropped."""
    script = with_counter(script)
    for _, name in script.counters:
        for guard in script.guards:
            resets = [
                line
                for line in script.lines
                if inside(script, line, guard)
                and (assign := script.small(line, cst.Assign)) is not None
                and script.code(assign.targets[0].target) == name
            ]
            for line in resets:
                yield changed(script, line, Edit(replace={line: None}))
                yield changed(script, line, Edit(replace={line: statement(f"{name} = 1")}))
            if not resets and micro_loop_of(script, guard):
                yield changed(script, guard, Edit(bottom={guard.body: [statement(f"{name} = 1")]}))


@harmful("raise-counter-twice")
def raise_counter_twice(script: Script) -> Iterator[Change]:
    script = with_counter(script)
    for line, name in script.counters:
        yield changed(script, line, Edit(after={line: [copy(line)]}))
        for guard in script.guards:
            if micro_loop_of(script, guard):
                yield changed(script, guard, Edit(bottom={guard.body: [statement(f"{name} += 1")]}))


@harmful("skip-boundary")
def skip_boundary(script: Script) -> Iterator[Change]:
    """`continue` between backward and the guard at every second boundary."""
    for node in moduli(script):
        guard = next((up for up in script.above(node) if isinstance(up, cst.If)), None)
        if guard is not None and guard in script.guards and script.loops_around(guard):
            skip = statement(f"if ({script.code(node.left)}) % (2 * {script.code(node.right)}) == 0:\n    continue\n")
            yield changed(script, guard, Edit(before={guard: [skip]}))


# --- schedule and memory ---------------------------------------------------------------------------------------------


@harmful("scheduler-per-micro-batch")
def scheduler_per_micro_batch(script: Script) -> Iterator[Change]:
    for line in script.scheduler_steps:
        loop = micro_loop_of(script, line) or next(iter(script.micro_loops), None)
        if loop is not None:
            yield changed(script, line, move(line, bottom={body_of(loop): [copy(line)]}))
            guard = script.guard_of(line)
            if guard is not None and script.block_of(guard) is loop.body:
                yield changed(script, line, move(line, after={guard: [copy(line)]}))


@harmful("scheduler-in-guard")
def scheduler_in_guard(script: Script) -> Iterator[Change]:
    for line in script.scheduler_steps:
        for guard in script.guards:
            if not inside(script, line, guard):
                yield changed(script, line, move(line, bottom={guard.body: [copy(line)]}))


@harmful("schedule-in-other-unit")
def schedule_in_other_unit(script: Script) -> Iterator[Change]:
    """A floor division by k outside the loops dropped: sizes in micro-batches instead of updates."""
    for node in script.find(cst.BinaryOperation):
        sizes = isinstance(node.operator, cst.FloorDivide) and script.code(node.right) in script.ks
        if sizes and not script.loops_around(node):
            yield changed(script, node, Edit(replace={node: node.left}))


@harmful("keep-tensor")
def keep_tensor(script: Script) -> Iterator[Change]:
    for call in script.find(cst.Call):
        name = call.func.attr.value if isinstance(call.func, cst.Attribute) else script.code(call.func)
        plain = script.losses & script.names(call)
        if not plain or not script.loops_around(call):
            continue
        if isinstance(call.func, cst.Attribute) and name in ("item", "detach") and not call.args:
            yield changed(script, call, Edit(replace={call: call.func.value}))
        elif name == "float" and len(call.args) == 1:
            yield changed(script, call, Edit(replace={call: call.args[0].value}))


@harmful("sum-losses")
def sum_losses(script: Script) -> Iterator[Change]:
    """A running sum of live losses that nobody needs, before and behind backward."""
    for backward, _ in script.backwards:
        loops = script.loops_around(backward)
        if not loops or not script.losses:
            continue
        loss = sorted(script.losses & script.names(backward) or script.losses)[0]
        kept = fresh(script, "history")
        start = statement(f"{kept} = []")
        outer = loops[-1]
        yield changed(
            script, backward, Edit(before={outer: [start]}, after={backward: [statement(f"{kept}.append({loss})")]})
        )
        total = fresh(script, "running")
        start = statement(f"{total} = 0.0")
        yield changed(
            script, backward, Edit(before={outer: [start]}, after={backward: [statement(f"{total} += {loss}")]})
        )


@harmful("hand-added-gradients")
def hand_added(script: Script) -> Iterator[Change]:
    """Gradients summed by hand although .grad already sums, and stepped."""
    for step in script.steps:
        guard, backward = script.guard_of(step), backward_near(script, step)
        if (
            guard is None
            or backward is None
            or not script.models
            or script.function_of(step) is not script.function_of(backward)
        ):
            continue
        model = script.models[0]
        store = fresh(script, "summed")
        outer = script.loops_around(step)[-1]
        add = statement(
            f"for p in {model}.parameters():\n    if p.grad is not None:\n"
            f"        {store}[p] = {store}.get(p, 0) + p.grad.clone()\n"
        )
        use = statement(f"for p in {model}.parameters():\n    if p in {store}:\n        p.grad = {store}[p]\n")
        edit = Edit(before={outer: [statement(f"{store} = {{}}")], step: [use]}, after={backward: [add]})
        edit.bottom = {script.block_of(step): [statement(f"{store}.clear()")]}
        yield changed(script, step, edit)


# --- harmless: names -------------------------------------------------------------------------------------------------


def renamable(script: Script) -> list[str]:
    """Names that the script binds and that nothing reaches by text."""
    names: dict[str, None] = {}
    pinned = {arg.keyword.value for arg in script.find(cst.Arg) if arg.keyword is not None}
    for imported in script.find((cst.Import, cst.ImportFrom)):
        pinned |= {name.value for name in script.find(cst.Name, imported)}
    for owner in script.find(cst.ClassDef):
        for line in owner.body.body:
            pinned |= script.stored(line)
            if isinstance(line, cst.FunctionDef):
                pinned |= {"self", "cls"}
    for target in script.bindings():
        names.update((n.value, None) for n in script.walk(target) if isinstance(n, cst.Name) and script.is_variable(n))
    for function in script.find(cst.FunctionDef):
        names[function.name.value] = None
        names.update((parameter.name.value, None) for parameter in script.find(cst.Param, function.params))
    for owner in script.find(cst.ClassDef):
        names[owner.name.value] = None
    own = {name for name in names if name not in pinned and not name.startswith("__")}
    read = {name.value for name in script.find(cst.Name) if script.is_variable(name)}
    return [name for name in names if name in own and name in read]


def rename(script: Script, table: dict[str, str]) -> str:
    edit = Edit()
    for name in script.find(cst.Name):
        if name.value in table and script.is_variable(name):
            edit.replace[name] = name.with_changes(value=table[name.value])
    return script.apply(edit)


@harmless("rename-all")
def rename_all(script: Script) -> Iterator[Change]:
    names = renamable(script)
    taken = {node.value for node in script.find(cst.Name)}
    new = (name for index in range(1000) if (name := f"v{index}") not in taken)
    yield Change(1, rename(script, dict(zip(names, new, strict=False))))


@harmless("rename-misleading")
def rename_misleading(script: Script) -> Iterator[Change]:
    """Names that suggest something else: the loss is called total, k is called batch_size, ..."""
    names = set(renamable(script))
    wishes = {**dict.fromkeys(script.losses, "total"), **dict.fromkeys(script.ks, "width")}
    wishes |= dict.fromkeys(script.optimizers, "engine") | dict.fromkeys(script.models, "loss_fn")
    wishes |= dict.fromkeys(script.schedulers, "meter")
    table: dict[str, str] = {}
    taken = {node.value for node in script.find(cst.Name)}
    for name, wish in sorted(wishes.items()):
        if name in names:
            while wish in taken:
                wish += "_"
            taken.add(wish)
            table[name] = wish
    if table:
        yield Change(1, rename(script, table))


@harmless("rename-k")
def rename_k(script: Script) -> Iterator[Change]:
    names = set(renamable(script))
    for k in sorted(script.ks & names):
        yield Change(1, rename(script, {k: fresh(script, "every")}))


@harmless("alias")
def alias(script: Script) -> Iterator[Change]:
    """`other = optimizer` before the outermost loop, and the loop uses the other name."""
    for what in [*sorted(script.optimizers), *script.models[:1]]:
        if not what.isidentifier():
            continue
        for loop in dict.fromkeys(loops[-1] for step in script.steps if (loops := script.loops_around(step))):
            used = [n for n in script.find(cst.Name, loop) if n.value == what and script.is_variable(n)]
            if used and what not in script.stored(loop):
                other = fresh(script, "other")
                edit = Edit(replace={name: name.with_changes(value=other) for name in used})
                edit.before = {loop: [statement(f"{other} = {what}")]}
                yield changed(script, loop, edit)


def pairs(script: Script) -> Iterator[tuple[cst.SimpleStatementLine, cst.SimpleStatementLine]]:
    """Neighbouring simple statements, outside of class bodies."""
    for first in script.lines:
        block = script.block_of(first)
        index = list(block.body).index(first) + 1
        second = block.body[index] if index < len(block.body) else None
        if isinstance(second, cst.SimpleStatementLine) and not isinstance(script.parents.get(block), cst.ClassDef):
            yield first, second


@harmless("tuple-unpacking")
def tuple_unpacking(script: Script) -> Iterator[Change]:
    """Two neighbouring assignments made one, and a batch unpacked in the body instead of the head of the loop."""
    for first, second in pairs(script):
        a, b = script.small(first, cst.Assign), script.small(second, cst.Assign)
        if a is None or b is None or len(a.targets) != 1 or len(b.targets) != 1:
            continue
        left, right = a.targets[0].target, b.targets[0].target
        if not (isinstance(left, cst.Name) and isinstance(right, cst.Name)):
            continue
        if left.value not in script.names(b.value) and left.value != right.value:
            joined = statement(f"{left.value}, {right.value} = {script.code(a.value)}, {script.code(b.value)}")
            if not isinstance(a.value, cst.Tuple) and not isinstance(b.value, cst.Tuple):
                yield changed(script, first, Edit(replace={first: joined, second: None}))
    for loop in script.micro_loops:
        if isinstance(loop, cst.For):
            for target in script.find(cst.Tuple, loop.target):
                if all(isinstance(element.value, cst.Name) for element in target.elements):
                    item = fresh(script, "item")
                    unpack = statement(f"{', '.join(script.code(e.value) for e in target.elements)} = {item}")
                    edit = Edit(replace={target: cst.Name(item)}, top={loop.body: [unpack]})
                    yield changed(script, loop, edit)


# --- harmless: functions and classes ---------------------------------------------------------------------------------


def extract(script: Script, lines: list[Statement], name: str, *, closure: bool = False) -> Edit | None:
    """Neighbouring statements moved into a function that gets what it reads and returns what it binds.

    None where that is not possible: jumps, globals, or names that are bound only on some paths.
    """
    for line in lines:
        for node in script.walk(line):
            if isinstance(node, (cst.Break, cst.Continue, cst.Return, cst.Global, cst.Nonlocal, cst.Yield, cst.Del)):
                return None
    function = script.function_of(lines[0])
    if function is None and any(isinstance(up, cst.ClassDef) for up in script.above(lines[0])):
        return None
    elsewhere, earlier = _bound_elsewhere(script, lines), _bound_elsewhere(script, lines, before=True)
    bound: set[str] = set()
    reads: dict[str, None] = {}
    for line in lines:
        simple = isinstance(line, cst.SimpleStatementLine)
        assign = script.small(line, cst.Assign)
        read = script.names(line)
        if assign is not None:
            read = script.names(assign.value)
            for target in assign.targets:
                if not isinstance(target.target, (cst.Name, cst.Tuple, cst.List)):
                    read |= script.names(target.target)
        stored = script.stored(line)
        if not simple and any(n not in earlier | bound and _read_outside(script, lines, n) for n in stored):
            return None
        reads.update((n, None) for n in sorted(read - bound) if n in (elsewhere if simple else earlier))
        bound |= stored
    results = sorted(n for n in bound if _read_outside(script, lines, n))
    place: cst.CSTNode = lines[0]
    if closure:
        # The function stands before the outermost loop and binds the names of the function around it.
        loops = script.loops_around(lines[0])
        place = loops[-1] if loops else lines[0]
        scope = "global" if function is None else "nonlocal"
        head = [statement(f"{scope} {', '.join(sorted(bound))}")] if bound else []
        if function is not None and not bound <= elsewhere:
            return None
        definition = statement(f"def {name}():\n    pass\n")
        call = statement(f"{name}()")
        tail: list[Statement] = []
    else:
        while (up := script.function_of(place)) is not None:
            place = up
        if any(isinstance(up, cst.ClassDef) for up in script.above(place)):
            place = next(up for up in reversed([*script.above(place)]) if isinstance(up, cst.ClassDef))
        if function is None and script.loops_around(place):
            place = script.loops_around(place)[-1]
        while script.parents[place] is not script.module:
            place = next(script.above(script.block_of(place)))  # an `if __name__` around it
        parameters = ", ".join(reads)
        head = []
        definition = statement(f"def {name}({parameters}):\n    pass\n")
        tail = [statement(f"return {', '.join(results)}")] if results else []
        call = statement(f"{', '.join(results)} = {name}({parameters})" if results else f"{name}({parameters})")
    assert isinstance(definition, cst.FunctionDef)
    definition = definition.with_changes(body=cst.IndentedBlock([*head, *map(copy, lines), *tail]))
    edit = Edit(replace=dict.fromkeys(lines), before={place: [definition]})
    edit.before.setdefault(lines[0], []).append(call)
    return edit


def _bound_elsewhere(script: Script, lines: list[Statement], *, before: bool = False) -> set[str]:
    """Names that the function around these statements (or the module) binds outside of them, or above them."""
    chosen = set(lines)
    function = script.function_of(lines[0])
    found: set[str] = set()
    if function is not None:
        found |= {parameter.name.value for parameter in script.find(cst.Param, function.params)}
        found |= {inner.name.value for inner in script.find(cst.FunctionDef, function.body)}
    for target in script.bindings(script.arena(lines[0])):
        if isinstance(script.parents[target], cst.CompFor) or script.function_of(target) is not function:
            continue
        if (before and script.line(target) >= script.line(lines[0])) or any(
            up in chosen for up in script.above(target)
        ):
            continue
        found |= script.targets(target)
    return found


def _read_outside(script: Script, lines: list[Statement], name: str) -> bool:
    chosen = set(lines)
    return any(
        node.value == name and script.is_variable(node) and not any(up in chosen for up in script.above(node))
        for node in script.find(cst.Name)
    )


def runs_with(script: Script, wanted: set[cst.SimpleStatementLine], *, simple: bool) -> Iterator[list[Statement]]:
    """Longest runs of neighbouring statements around each wanted one, inside loops."""
    seen: set[cst.CSTNode] = set()
    for line in script.lines:
        if line not in wanted or line in seen:
            continue
        block = script.block_of(line)
        body: list[Statement] = list(block.body)  # type: ignore[arg-type]
        first = last = body.index(line)

        def fits(node: Statement) -> bool:
            return isinstance(node, cst.SimpleStatementLine) or (not simple and not isinstance(node, cst.FunctionDef))

        while first > 0 and fits(body[first - 1]):
            first -= 1
        while last + 1 < len(body) and fits(body[last + 1]):
            last += 1
        seen.update(body[first : last + 1])
        yield body[first : last + 1]


@harmless("split-micro-iteration")
def split_micro_iteration(script: Script) -> Iterator[Change]:
    lines = {line for line, _ in script.backwards if script.loops_around(line)}
    for run in runs_with(script, lines, simple=True):
        for closure in (False, True):
            edit = extract(script, run, fresh(script, "one_batch"), closure=closure)
            if edit is not None:
                yield changed(script, run[0], edit)


@harmless("split-forward")
def split_forward(script: Script) -> Iterator[Change]:
    """Everything before the backward statement as a function that returns the loss."""
    for line, _ in script.backwards:
        for run in runs_with(script, {line}, simple=True):
            if script.loops_around(line) and run.index(line) > 0:
                edit = extract(script, run[: run.index(line)], fresh(script, "compute"))
                if edit is not None:
                    yield changed(script, line, edit)


@harmless("split-update")
def split_update(script: Script) -> Iterator[Change]:
    for run in runs_with(script, set(script.steps), simple=True):
        if script.loops_around(run[0]):
            for closure in (False, True):
                edit = extract(script, run, fresh(script, "update"), closure=closure)
                if edit is not None:
                    yield changed(script, run[0], edit)


@harmless("split-guard")
def split_guard(script: Script) -> Iterator[Change]:
    """The whole `if` with its test as a function."""
    for guard in script.guards:
        if script.loops_around(guard):
            edit = extract(script, [guard], fresh(script, "maybe_update"))
            if edit is not None:
                yield changed(script, guard, edit)


@harmless("split-epoch")
def split_epoch(script: Script) -> Iterator[Change]:
    """The micro loop as a function that an outer loop calls."""
    for loop in script.micro_loops:
        loops = script.loops_around(loop)
        if loops:
            edit = extract(script, [loop], fresh(script, "one_epoch"))
            if edit is not None:
                yield changed(script, loop, edit)


@harmless("wrap-main")
def wrap_main(script: Script) -> Iterator[Change]:
    if any(script.find((cst.Global, cst.Nonlocal))):
        return
    at = script.imports_end
    body = script.module.body[at:]
    if any(script.code(line).startswith("if __name__") for line in body):
        return
    function = cst.FunctionDef(cst.Name(fresh(script, "main")), cst.Parameters(), cst.IndentedBlock([*map(copy, body)]))
    guard = statement(f'if __name__ == "__main__":\n    {function.name.value}()\n')
    for tail in (statement(f"{function.name.value}()"), guard):
        module = script.module.with_changes(body=[*script.module.body[:at], function, tail])
        yield Change(script.line(body[0]), module.code)


@harmless("wrap-class")
def wrap_class(script: Script) -> Iterator[Change]:
    """Set-up in __init__ with self attributes, the loops in a method."""
    if any(script.find((cst.Global, cst.Nonlocal))):
        return
    body = list(script.module.body[script.imports_end :])
    definitions = [line for line in body if isinstance(line, (cst.FunctionDef, cst.ClassDef))]
    rest = [line for line in body if line not in definitions]
    loops = [index for index, line in enumerate(rest) if isinstance(line, (cst.For, cst.While))]
    if not loops or any(isinstance(line, cst.If) for line in rest[: loops[0]]):
        return
    setup, work = rest[: loops[0]], rest[loops[0] :]
    attributes = set().union(*(script.stored(line) for line in setup)) if setup else set()
    if not attributes or any(attributes & (script.names(line) - script.stored(line)) for line in definitions):
        return
    inner = set().union(*(script.targets(node.target) for node in script.find(cst.CompFor)))
    inner |= {p.name.value for node in script.find(cst.Lambda) for p in script.find(cst.Param, node)}
    if inner & attributes:
        return
    edit = Edit()
    for line in rest:
        for name in script.find(cst.Name, line):
            if name.value in attributes and script.is_variable(name):
                edit.replace[name] = cst.Attribute(cst.Name("self"), name)
    changed_module = cst.parse_module(script.apply(edit))
    new = list(changed_module.body[script.imports_end :])
    new_rest = [line for line in new if not isinstance(line, (cst.FunctionDef, cst.ClassDef))]
    owner = statement("class Job:\n    def __init__(self):\n        pass\n    def fit(self):\n        pass\n")
    assert isinstance(owner, cst.ClassDef)
    init, fit = owner.body.body
    assert isinstance(init, cst.FunctionDef) and isinstance(fit, cst.FunctionDef)
    init = init.with_changes(body=cst.IndentedBlock(new_rest[: len(setup)]))
    fit = fit.with_changes(body=cst.IndentedBlock(new_rest[len(setup) :]))
    owner = owner.with_changes(body=cst.IndentedBlock([init, fit]), name=cst.Name(fresh(script, "Job")))
    kept = [line for line in new if isinstance(line, (cst.FunctionDef, cst.ClassDef))]
    tail = statement(f"{owner.name.value}().fit()")
    module = script.module.with_changes(body=[*script.module.body[: script.imports_end], *kept, owner, tail])
    yield Change(script.line(work[0]), module.code)


def constants(script: Script) -> list[tuple[cst.SimpleStatementLine, str, str]]:
    """Module assignments of a number to a name that nothing else binds."""
    found = []
    for line in script.module.body:
        assign = script.small(line, cst.Assign)
        if assign is None or len(assign.targets) != 1 or not isinstance(assign.value, (cst.Integer, cst.Float)):
            continue
        target = assign.targets[0].target
        if isinstance(target, cst.Name) and isinstance(line, cst.SimpleStatementLine):
            bindings = sum(target.value in script.targets(node) for node in script.bindings())
            parameters = {parameter.name.value for parameter in script.find(cst.Param)}
            # A setting of 1 is one that a user may change: no longer the constant 1.
            if bindings == 1 and target.value not in parameters and script.code(assign.value) != "1":
                found.append((line, target.value, script.code(assign.value)))
    return found


def _hoist(script: Script, form: Callable[[str], cst.BaseExpression], head: list[Statement]) -> str:
    chosen = constants(script)
    edit = Edit(replace={line: None for line, _, _ in chosen})
    names = {name for _, name, _ in chosen}
    for name in script.find(cst.Name):
        if name.value in names and script.is_variable(name) and not isinstance(script.parents[name], cst.AssignTarget):
            edit.replace[name] = form(name.value)
    edit.before = {chosen[0][0]: head}
    return script.apply(edit)


@harmless("constants-in-dict")
def constants_in_dict(script: Script) -> Iterator[Change]:
    chosen = constants(script)
    if chosen:
        table = fresh(script, "settings")
        head = statement(f"{table} = {{{', '.join(f'{name.lower()!r}: {value}' for _, name, value in chosen)}}}")
        yield Change(script.line(chosen[0][0]), _hoist(script, lambda name: expr(f"{table}[{name.lower()!r}]"), [head]))


@harmless("constants-in-dataclass")
def constants_in_dataclass(script: Script) -> Iterator[Change]:
    chosen = constants(script)
    if chosen:
        settings = fresh(script, "settings")
        fields = "".join(
            f"    {name.lower()}: {'float' if '.' in value or 'e' in value else 'int'} = {value}\n"
            for _, name, value in chosen
        )
        head = [statement(f"@dataclasses.dataclass\nclass Settings:\n{fields}"), statement(f"{settings} = Settings()")]
        text = _hoist(script, lambda name: expr(f"{settings}.{name.lower()}"), head)
        yield Change(script.line(chosen[0][0]), script.with_import("import dataclasses", text))


@harmless("constants-in-argparse")
def constants_in_argparse(script: Script) -> Iterator[Change]:
    chosen = constants(script)
    if chosen:
        args, parser = fresh(script, "args"), fresh(script, "parser")
        head = [statement(f"{parser} = argparse.ArgumentParser()")]
        for _, name, value in chosen:
            kind = "float" if "." in value or "e" in value else "int"
            head.append(statement(f'{parser}.add_argument("--{name.lower()}", type={kind}, default={value})'))
        head.append(statement(f"{args} = {parser}.parse_args([])"))
        text = _hoist(script, lambda name: expr(f"{args}.{name.lower()}"), head)
        yield Change(script.line(chosen[0][0]), script.with_import("import argparse", text))


# --- harmless: loops -------------------------------------------------------------------------------------------------


@harmless("for-to-while")
def for_to_while(script: Script) -> Iterator[Change]:
    """An iterator and `next`, ended by StopIteration; and `next` with a sentinel."""
    for loop in script.find(cst.For):
        if loop.orelse is not None or not (
            loop in script.micro_loops or any(inside(script, m, loop) for m in script.micro_loops)
        ):
            continue
        iterator, item = fresh(script, "stream"), fresh(script, "item")
        target, source = script.code(loop.target), f"({script.code(loop.iter)})"
        start = statement(f"{iterator} = iter({source})")
        fetch = statement(f"try:\n    {target} = next({iterator})\nexcept StopIteration:\n    break\n")
        new = cst.While(expr("True"), cst.IndentedBlock([fetch, *map(copy, loop.body.body)]))
        yield changed(script, loop, Edit(replace={loop: new}, before={loop: [start]}))
        start = statement(f"{iterator} = iter({source})")
        test = expr(f"({item} := next({iterator}, None)) is not None")
        new = cst.While(test, cst.IndentedBlock([statement(f"{target} = {item}"), *map(copy, loop.body.body)]))
        yield changed(script, loop, Edit(replace={loop: new}, before={loop: [start]}))


@harmless("manual-counter")
def manual_counter(script: Script) -> Iterator[Change]:
    """enumerate() made a counter: raised at the head, or (where nothing jumps) at the end."""
    for loop in script.micro_loops:
        if (
            not isinstance(loop, cst.For)
            or not isinstance(loop.iter, cst.Call)
            or not isinstance(loop.target, cst.Tuple)
        ):
            continue
        if script.code(loop.iter.func) != "enumerate" or len(loop.target.elements) != 2:
            continue
        counter, target = (element.value for element in loop.target.elements)
        args = loop.iter.args
        start = script.code(args[1].value) if len(args) > 1 else "0"
        if not start.isdigit():
            continue
        name = script.code(counter)
        plain = loop.with_changes(target=target, iter=args[0].value)
        if not any(isinstance(node, cst.Continue) for node in script.walk(loop.body)):
            body = cst.IndentedBlock([*map(copy, loop.body.body), statement(f"{name} += 1")])
            head = statement(f"{name} = {start}")
            yield changed(script, loop, Edit(replace={loop: plain.with_changes(body=body)}, before={loop: [head]}))
        body = cst.IndentedBlock([statement(f"{name} += 1"), *map(copy, loop.body.body)])
        head = statement(f"{name} = {int(start) - 1}")
        yield changed(script, loop, Edit(replace={loop: plain.with_changes(body=body)}, before={loop: [head]}))


@harmless("try-finally")
def try_finally(script: Script) -> Iterator[Change]:
    for loop in script.micro_loops:
        body = [*map(copy, loop.body.body)]
        final = statement("try:\n    pass\nfinally:\n    pass\n")
        assert isinstance(final, cst.Try)
        new = final.with_changes(body=cst.IndentedBlock(body))
        yield changed(script, loop, Edit(replace={loop.body: cst.IndentedBlock([new])}))
        handled = statement("try:\n    pass\nexcept RuntimeError as error:\n    print(error)\n    raise\n")
        assert isinstance(handled, cst.Try)
        new = handled.with_changes(body=cst.IndentedBlock([*map(copy, loop.body.body)]))
        yield changed(script, loop, Edit(replace={loop.body: cst.IndentedBlock([new])}))


@harmless("with-around-forward")
def with_around_forward(script: Script) -> Iterator[Change]:
    """A context around what stands before the backward statement, and around the whole micro-iteration."""
    for backward, _ in script.backwards:
        if not script.loops_around(backward):
            continue
        for run in runs_with(script, {backward}, simple=True):
            head = run[: run.index(backward)]
            if head:
                with_ = statement("with torch.enable_grad():\n    pass\n").with_changes(
                    body=cst.IndentedBlock([*map(copy, head)])
                )
                yield changed(script, backward, Edit(replace=dict.fromkeys(head), before={backward: [with_]}))
    for loop in script.micro_loops:
        if not any(isinstance(node, (cst.Yield,)) for node in script.walk(loop)):
            with_ = statement('with torch.autograd.profiler.record_function("batch"):\n    pass\n')
            with_ = with_.with_changes(body=cst.IndentedBlock([*map(copy, loop.body.body)]))
            yield changed(script, loop, Edit(replace={loop.body: cst.IndentedBlock([with_])}))


# --- harmless: tests -------------------------------------------------------------------------------------------------


@harmless("test-form")
def test_form(script: Script) -> Iterator[Change]:
    """`E % k == 0` in its other spellings."""
    for comparison in script.find(cst.Comparison):
        if len(comparison.comparisons) != 1 or not any(
            comparison is t or inside(script, comparison, t) for t in script.tests
        ):
            continue
        operator = comparison.comparisons[0].operator
        left, right = script.code(comparison.left), script.code(comparison.comparisons[0].comparator)
        modulus = comparison.left
        if not isinstance(operator, (cst.Equal, cst.NotEqual)):
            continue
        equal = isinstance(operator, cst.Equal)
        sign = "==" if equal else "!="
        forms = [f"{right} {sign} {left}", f"not {left} {'!=' if equal else '=='} {right}"]
        if isinstance(modulus, cst.BinaryOperation) and isinstance(modulus.operator, cst.Modulo) and right == "0":
            count, k = script.code(modulus.left), script.code(modulus.right)
            paren = count if re.fullmatch(r"[\w.]+", count) else f"({count})"
            forms += [f"not {left}" if equal else left, f"{left} < 1" if equal else f"{left} > 0"]
            forms.append(f"divmod({count}, {k})[1] {sign} 0")
            forms.append(f"{paren} // {k} * {k} {sign} {paren}")
            match = re.fullmatch(r"([\w.]+) \+ 1", count)
            if match:
                forms.append(f"{match[1]} % {k} {sign} {k} - 1")
        for form in forms:
            yield changed(script, comparison, Edit(replace={comparison: expr(f"({form})")}))


@harmless("guard-form")
def guard_form(script: Script) -> Iterator[Change]:
    """A flag, `continue`, an empty branch with else, De Morgan, a conditional expression."""
    for guard in script.guards:
        if not script.loops_around(guard):
            continue
        test = script.code(guard.test)
        flag = fresh(script, "ready")
        head = statement(f"{flag} = {test}")
        yield changed(script, guard, Edit(replace={guard.test: cst.Name(flag)}, before={guard: [head]}))
        block = script.block_of(guard)
        loop = script.loops_around(guard)[0]
        if guard.orelse is None:
            if block is loop.body and block.body[-1] is guard:
                jump = statement(f"if not ({test}):\n    continue\n")
                yield changed(
                    script, guard, Edit(replace={guard: None}, after={guard: [jump, *map(copy, guard.body.body)]})
                )
            other = guard.with_changes(
                test=expr(f"not ({test})"),
                body=cst.IndentedBlock([statement("pass")]),
                orelse=cst.Else(guard.body),
                leading_lines=[],
            )
            yield changed(script, guard, Edit(replace={guard: other}))
        if isinstance(guard.test, cst.BooleanOperation):
            a, b = script.code(guard.test.left), script.code(guard.test.right)
            joiner = "or" if isinstance(guard.test.operator, cst.And) else "and"
            yield changed(script, guard, Edit(replace={guard.test: expr(f"not (not ({a}) {joiner} not ({b}))")}))
        yield changed(script, guard, Edit(replace={guard.test: expr(f"True if {test} else False")}))
        yield changed(script, guard, Edit(replace={guard.test: expr(f"bool({test})")}))


# --- harmless: division, backward, zeroing ---------------------------------------------------------------------------


@harmless("division-form")
def division_form(script: Script) -> Iterator[Change]:
    for line, rest, k in loss_divisions(script):
        assert rest is not None
        loss = script.code(rest)
        paren = k if re.fullmatch(r"[\w.\[\]'\"]+", k) else f"({k})"
        forms = [f"{loss} = {loss} / {paren}", f"{loss} = {loss} * (1 / {paren})", f"{loss} = {loss}.div({k})"]
        forms += [f"{loss} = torch.div({loss}, {k})", f"{loss} = (1.0 / {paren}) * {loss}", f"{loss} /= {paren}"]
        for form in forms:
            if form != script.code(line):
                yield changed(script, line, Edit(replace={line: statement(form)}))
        backward = backward_near(script, line)
        if backward is None or script.block_of(line) is not script.block_of(backward):
            continue
        if script.line(line) < script.line(backward) and script.code(backward) == f"{loss}.backward()":
            scaled = statement(f"({loss} / {paren}).backward()")
            yield changed(script, line, Edit(replace={line: None, backward: scaled}))
    for backward, receiver in script.backwards:
        if isinstance(receiver, cst.BinaryOperation) and isinstance(receiver.operator, cst.Divide):
            loss, k = script.code(receiver.left), script.code(receiver.right)
            scaled_name = fresh(script, "scaled")
            lines = [statement(f"{scaled_name} = {loss} / {k}"), statement(f"{scaled_name}.backward()")]
            yield changed(script, backward, Edit(replace={backward: None}, after={backward: lines}))
            for form in (f"({loss} * (1 / {k})).backward()", f"({loss}).div({k}).backward()"):
                yield changed(script, backward, Edit(replace={backward: statement(form)}))


@harmless("backward-form")
def backward_form(script: Script) -> Iterator[Change]:
    for backward, receiver in script.backwards:
        call = script.called(backward)
        if call is None or call.args:
            continue
        if not isinstance(receiver, cst.Name):
            value = fresh(script, "value")
            lines = [statement(f"{value} = {script.code(receiver)}"), statement(f"{value}.backward()")]
            yield changed(script, backward, Edit(replace={backward: None}, after={backward: lines}))
        loss = script.code(receiver)
        yield changed(script, backward, Edit(replace={backward: statement(f"torch.autograd.backward({loss})")}))
        method = fresh(script, "run_backward")
        lines = [statement(f"{method} = ({loss}).backward"), statement(f"{method}()")]
        yield changed(script, backward, Edit(replace={backward: None}, after={backward: lines}))
        yield changed(script, backward, Edit(replace={backward: statement(f"torch.Tensor.backward({loss})")}))


@harmless("zero-form")
def zero_form(script: Script) -> Iterator[Change]:
    """The gradients cleared through the model, where one model and one optimizer are all there is."""
    single = len(script.models) == 1 and len(script.optimizers) == 1
    for zero in script.zeros:
        owner = script.code(script.called(zero).func.value)  # type: ignore[union-attr]
        for text in (f"{owner}.zero_grad(set_to_none=True)", f"{owner}.zero_grad()"):
            if script.code(zero) != text:
                yield changed(script, zero, Edit(replace={zero: statement(text)}))
        if owner in script.optimizers:
            text = f"for group in {owner}.param_groups:\n    for p in group['params']:\n        p.grad = None\n"
            yield changed(script, zero, Edit(replace={zero: statement(text)}))
        if single and script.models[0].isidentifier() and owner in script.optimizers:
            model = script.models[0]
            visible = script.function_of(zero) is None or model in script.names(script.function_of(zero).body)  # type: ignore[union-attr]
            if visible or model in script.stored(script.module):
                for text in (
                    f"{model}.zero_grad(set_to_none=True)",
                    f"for p in {model}.parameters():\n    p.grad = None\n",
                    f"for p in {model}.parameters():\n    if p.grad is not None:\n        p.grad.zero_()\n",
                ):
                    yield changed(script, zero, Edit(replace={zero: statement(text)}))


# --- harmless: additions ---------------------------------------------------------------------------------------------


@harmless("add-logging")
def add_logging(script: Script) -> Iterator[Change]:
    for backward, receiver in script.backwards:
        names = sorted(script.losses & script.names(receiver))
        if names:
            yield changed(script, backward, Edit(after={backward: [statement(f'print("loss", {names[0]}.item())')]}))
    for guard in script.guards:
        for modulus in script.find(cst.BinaryOperation, guard.test):
            pure = not any(True for _ in script.find(cst.Call, modulus.left))  # `next(counter)` counts
            if isinstance(modulus.operator, cst.Modulo) and script.loops_around(guard) and pure:
                log = statement(f"if ({script.code(modulus.left)}) % 3 == 0:\n    print({script.code(modulus.left)})\n")
                yield changed(script, guard, Edit(before={guard: [log]}))
                yield changed(script, guard, Edit(top={guard.body: [copy(log)]}))


@harmless("add-dead-code")
def add_dead_code(script: Script) -> Iterator[Change]:
    name = fresh(script, "unused_helper")
    at = script.module.body[script.imports_end]
    helper = statement(f"def {name}(values, factor=3):\n    return [value / factor for value in values]\n")
    yield changed(script, at, Edit(before={at: [helper]}))
    for backward, _ in script.backwards:
        yield changed(script, backward, Edit(before={backward: [statement("if False:\n    raise SystemExit\n")]}))
        yield changed(script, backward, Edit(after={backward: [statement(f"{fresh(script, 'marker')} = 17 % 5 == 0")]}))


@harmless("add-unknown-flag")
def add_unknown_flag(script: Script) -> Iterator[Change]:
    """Branches that depend on the environment and are not taken: logging, clipping before the step."""
    for backward, _ in script.backwards:
        flag = statement('if os.environ.get("VERBOSE_TRAINING"):\n    print("backward done")\n')
        text = script.apply(Edit(after={backward: [flag]}))
        yield Change(script.line(backward), script.with_import("import os", text))
    for step in script.steps:
        if script.models and script.guard_of(step) is not None:
            clip = f"torch.nn.utils.clip_grad_norm_({script.models[0]}.parameters(), 1.0)"
            names = script.stored(script.module) | script.names(script.arena(step))
            if script.models[0] in names:
                flag = statement(f'if os.environ.get("CLIP_GRADIENTS"):\n    {clip}\n')
                text = script.apply(Edit(before={step: [flag]}))
                yield Change(script.line(step), script.with_import("import os", text))


@harmless("add-evaluation")
def add_evaluation(script: Script) -> Iterator[Change]:
    """A forward pass under no_grad behind the backward, and inside the guard."""
    for loop in script.micro_loops:
        for call in script.find(cst.Call, loop):
            name = script.code(call.func)
            arguments = script.names(cst.Tuple([cst.Element(arg.value) for arg in call.args])) if call.args else set()
            if name in script.models and arguments and arguments <= script.stored(loop):
                probe = statement(
                    f"with torch.no_grad():\n    {fresh(script, 'held')} = {script.code(call)}.mean().item()\n"
                )
                for backward, _ in script.backwards:
                    if inside(script, backward, loop):
                        yield changed(script, backward, Edit(after={backward: [probe]}))
                for guard in script.guards:
                    if inside(script, guard, loop):
                        yield changed(script, guard, Edit(bottom={guard.body: [probe]}))
                break
