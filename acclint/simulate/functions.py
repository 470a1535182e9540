"""Builtins and library functions that the machine knows by name: name -> handler(machine, args, keywords, span)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from acclint.knowledge import names
from acclint.program import NOWHERE, Span, file_of
from acclint.simulate import values as v
from acclint.simulate.values import (
    NO_ROOTS,
    NOBODY,
    VECTOR,
    ClassValue,
    Closure,
    Imported,
    Instance,
    Loader,
    Maybe,
    Module,
    Num,
    Opaque,
    Owner,
    Param,
    ParamSet,
    PyRaise,
    Range,
    Stream,
    Tensor,
    Value,
    numeric,
    roots_of,
)

if TYPE_CHECKING:
    from acclint.simulate.machine import Machine

_SOME = 8  # pairs of a list's items

Handler = Callable[["Machine", list[Value], dict[str, Value], Span], Value]


# --- builtins ---------------------------------------------------------------------------------------------------------


def _range(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) == 1:
        return Range(0, args[0], 1)
    if len(args) == 2:
        return Range(args[0], args[1], 1)
    return Range(args[0], args[1], args[2]) if len(args) == 3 else Range(0, 1, 1)


def _len(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    value: Value = args[0] if args else None
    kind = type(value)
    grown = m.grown.get(id(value))
    if grown is not None and value:
        return m.number(f"len({grown[1]})", "length")
    if isinstance(value, (list, tuple, dict, set, str)):
        return len(value)
    if kind is Loader:
        length = value.length
        number = numeric(length)
        if number is not None and not roots_of(length) and number > 64:
            k = max([m.assignment.k, *m.world.literal_ks])
            return 2 * k + int(number) % k
        return length if length is not None else m.number(f"len({value.key})", "length", "length")
    if kind is Stream:
        return value.length if value.length is not None else m.number("len(stream)", "length", "length")
    if kind is v.Dataset:
        return value.size if value.size is not None else m.number("len(dataset)", "dataset")
    if kind is Tensor:
        return value.size if value.size is not None else m.opaque("len(tensor)", "size", batch=value.batch)
    if kind is Instance:
        method = m.member(value.cls, "__len__")
        if type(method) is Closure and not value.cls.dataset:
            return m.invoke(method.bind(value), [], {}, span)
        return m.number(f"len({value.key})", "length", "" if value.cls.dataset else "length")
    if kind is Opaque:
        if value.batch:
            if isinstance(value.attrs.get("<size>", (None,))[0], (int, Num)):
                return m.data_size(value.attrs["<size>"][0])
            return m.opaque(f"len({value.key})", "size", batch=value.batch)
        role = "length" if names.is_loader_name(value.name) or value.hint == "loader" else ""
        return m.number(f"len({value.key})", "length", role)
    if kind is Range:
        return len(m.listed(value))
    return m.number(f"len({span.row}:{span.column})", "length")


def _enumerate(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if not args:
        return []
    start = args[1] if len(args) > 1 else keywords.get("start", 0)
    first = numeric(m.as_number(start))
    first = int(first) if first is not None else 0
    if isinstance(args[0], (list, tuple)):
        numbered: list[Value] = [(first + i, item) for i, item in enumerate(args[0])]
        if id(args[0]) in m.grown:
            m.grown[id(numbered)] = (numbered, m.grown[id(args[0])][1])
        return numbered
    if type(args[0]) is Opaque and not args[0].batch:
        _loop_opaque(m, args[0])
    inner = m.stream(args[0], span)
    made = Stream(((first + i, item) for i, item in enumerate(inner.pull)), inner.length, inner.feeds, inner.loader)
    made.endless = inner.endless
    return made


def _loop_opaque(m: Machine, value: Opaque) -> None:
    """An unknown iterable handed to enumerate or zip: the length it is given makes it a loader in a training loop."""
    if not value.hint and names.is_loader_name(value.name):
        value.hint = "loader"


def _zip(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if args and all(isinstance(one, (list, tuple)) for one in args):
        return [tuple(items) for items in zip(*args, strict=False)]
    streams = [m.stream(one, span) for one in args]
    lengths = [one.length for one in streams if one.length is not None and not one.endless]
    shortest = min(lengths, key=lambda one: numeric(one) if numeric(one) is not None else 10**9, default=None)
    made = Stream(zip(*(one.pull for one in streams), strict=False), shortest, any(one.feeds for one in streams))
    made.endless = all(one.endless for one in streams) if streams else False
    return made


def _min_max(pick: Callable[..., Any]) -> Handler:
    def handler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        values = m.listed(args[0]) if len(args) == 1 else args
        numbers = [m.as_number(one) for one in values]
        known = [one for one in numbers if numeric(one) is not None]
        if not known:
            return m.opaque(f"extreme:{span.row}", "<value>", batch=m.batch_of(values))
        best = pick(known, key=numeric)
        return m.derived(numeric(best), span, *known)

    return handler


def _sum(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if not args:
        return 0
    if type(args[0]) is Opaque and args[0].graph:
        return args[0]
    if type(args[0]) is Tensor:
        return m.tensor_method(args[0], "sum", [], {}, span)
    total: Value = args[1] if len(args) > 1 else 0
    for one in m.listed(args[0]):
        total = m.binary("+", total, one, span)
    return total


def _number(convert: Callable[[Any], Any]) -> Handler:
    def handler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        if not args:
            return 0
        value = args[0]
        if type(value) is Tensor or (type(value) is Opaque and (value.graph or value.batch)):
            return m.measured("item()", m.batch_of(value))
        if isinstance(value, str):
            return m.opaque(f"number:{span.row}", "<number>")
        number = m.as_number(value)
        if number is None:
            return m.opaque(f"number:{span.row}:{span.column}", "<number>")
        try:
            result = convert(numeric(number))
        except (ValueError, OverflowError, TypeError):
            return number
        if type(number) is Num and number.modulus is not None:
            return Num(result, number.roots, span, number.modulus)
        if type(number) is Num and result == number.v and number.born == NOWHERE:
            return number
        return m.derived(result, span, number)

    return handler


def _round(value: Any) -> Any:
    return round(value)


def _bool(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    value = args[0] if args else False
    if type(value) is Opaque:
        return Maybe(value.key, False, span)
    if type(value) is Tensor:
        return Maybe(f"tensor at {span.row}:{span.column}", False, span)
    if type(value) is Num:
        return Num(bool(value.v), value.roots, span, value.modulus)
    return (
        value
        if type(value) is Maybe
        else (bool(value) if isinstance(value, (int, float, str, list, dict, tuple)) else True)
    )


def _list(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if not args:
        return []
    if type(args[0]) is Opaque and not args[0].batch:
        return args[0]
    if type(args[0]) in (Loader, ParamSet):
        return args[0]
    return list(m.listed(args[0]))


def _dict(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    made = dict(args[0]) if args and isinstance(args[0], dict) else {}
    if args and type(args[0]) is Opaque:
        return args[0]
    if args and (type(args[0]) is Stream or isinstance(args[0], list)):
        pairs = m.listed(args[0])
        if not all(isinstance(one, (list, tuple)) and len(one) == 2 and isinstance(one[0], str) for one in pairs):
            return m.opaque(f"dict:{span.row}", "batch", batch=m.batch_of(pairs))
        made.update({one[0]: one[1] for one in pairs})
    for name, value in keywords.items():
        made[name] = m.tunable(value, f"dict:{span.row}.{name}", name)
    return made


def _isinstance(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) != 2:
        return Maybe(f"isinstance:{span.row}", False, span)
    value, kinds = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
    if type(value) is Instance:
        classes = [kind for kind in kinds if type(kind) is ClassValue]
        todo, seen = [value.cls], []
        while todo:
            cls = todo.pop()
            seen.append(cls)
            todo += [base for base in cls.bases if type(base) is ClassValue]
        if any(kind is cls for kind in classes for cls in seen):
            return True
        if len(classes) == len(kinds):
            return False
    paths = [kind.path if type(kind) is Imported else "" for kind in kinds]
    if type(value) in (Tensor, Param) or (type(value) is Opaque and value.graph):
        if any(path.endswith("Tensor") for path in paths):
            return True
        # What a model gives may also be a list, tuple or dict.
        others = ("numpy.", "builtins.int", "builtins.float", "builtins.str", "builtins.bool")
        if all(path.startswith(others if type(value) is Opaque else ("numpy.", "builtins.")) for path in paths):
            return False
    simple = {"builtins.list": list, "builtins.tuple": tuple, "builtins.dict": dict, "builtins.str": str}
    if all(type(kind) is Imported and kind.path in simple for kind in kinds):
        if isinstance(value, (list, tuple, dict, str)):
            return isinstance(value, tuple(simple[kind.path] for kind in kinds))
        if type(value) in (Tensor, Module, Instance, Loader, v.Optimizer):
            return False
    wanted = ",".join(m.key(kind).rpartition(".")[2] for kind in kinds)
    if "Parallel" in wanted or "FSDP" in wanted:
        return Maybe(f"isinstance {wanted}", False, span)
    return Maybe(f"isinstance({m.key(value)}, {wanted})", False, span)


def _hasattr(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) == 2 and type(args[0]) is Instance and isinstance(args[1], str):
        if args[1] in args[0].attrs or m.member(args[0].cls, args[1]) is not None:
            return True
        if not args[0].cls.bases:
            return False
    return Maybe(f"hasattr({m.key(args[0]) if args else ''}, {args[1] if len(args) > 1 else ''})", False, span)


def _getattr(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) >= 2 and isinstance(args[1], str) and args[1] != "<text>":
        if type(args[0]) is Imported:
            return m.linked(file_of(span), f"{args[0].path}.{args[1]}")
        defaulted = len(args) > 2 and type(args[0]) is Instance
        if defaulted and args[1] not in args[0].attrs and m.member(args[0].cls, args[1]) is None:
            return args[2]
        return m.attribute(args[0], args[1], span)
    return m.opaque(f"getattr:{span.row}", "<attribute>")


def _setattr(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) == 3 and type(args[0]) in (Module, Instance) and type(args[2]) in (Module, Instance):
        target = args[0].attrs.get("<of>", args[0])
        if (not isinstance(args[1], str) or args[1].startswith("<")) and m.norm_inside(args[2]) is None:
            # Layers are replaced by name, in a walk over the module: which ones is not known.
            m.normless.add(target.owner)
            return None
    if len(args) == 3 and isinstance(args[1], str):
        m.store_attribute(args[0], args[1], args[2], span)
    return None


def _iter(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return m.stream(args[0], span) if args else m.opaque("iter", "<iterator>")


def _next(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if not args:
        return m.opaque("next", "<item>")
    value = args[0]
    if type(value) is Stream:
        if m.loops and value.feeds:
            m.loops[-1].fetched = True
        return m.pull(value, args[1:])
    if type(value) is Instance:
        method = m.member(value.cls, "__next__")
        if type(method) is Closure:
            return m.invoke(method.bind(value), [], {}, span)
    if m.loops:
        m.loops[-1].fetched = True
    m.batches += 1
    return m.opaque(f"next({m.key(value)})", "batch", batch=frozenset((m.batches,)))


def _map(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) < 2:
        return []
    if type(args[1]) in (Loader,):
        return args[1]
    return [m.call_value(args[0], [item], span) for item in m.listed(args[1])]


def _filter(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return args[1] if len(args) > 1 else []


def _same(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return args[0] if args else None


def _reversed(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if args and isinstance(args[0], (list, tuple)):
        return list(reversed(args[0]))
    if args and type(args[0]) is Range:
        return list(reversed(m.listed(args[0])))
    return args[0] if args else []


def _any_all(is_any: bool) -> Handler:
    def handler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        return Maybe(f"{'any' if is_any else 'all'}:{span.row}", False, span)

    return handler


def _none(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return None


def _divmod(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) != 2:
        return (0, 0)
    return (m.binary("//", args[0], args[1], span), m.binary("%", args[0], args[1], span))


def _abs(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    number = numeric(args[0]) if args else None
    if number is not None:
        return m.derived(abs(number), span, args[0])
    return args[0] if args else 0


def _super(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return m.opaque("super", "super")


def _exit(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    m.give_up(span)
    raise PyRaise("SystemExit")


def _remainder(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return m.binary("%", args[0], args[1], span) if len(args) > 1 else m.opaque(f"value:{span.row}", "<value>")


def _exec(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    """`exec(open("configurator.py").read())` beside the settings of a script: they are what it changes."""
    if not m.stack:
        for name, value in m.globals.vars.items():
            m.globals.vars[name] = m.tunable(value, f"@{name}", name, only_steps=True)
    return None


BUILTINS: dict[str, Handler] = {
    "exec": _exec,
    "range": _range,
    "slice": lambda m, args, keywords, span: ("slice", *([None, *args] if len(args) == 1 else args), None, None)[:4],
    "len": _len,
    "enumerate": _enumerate,
    "zip": _zip,
    "min": _min_max(min),
    "max": _min_max(max),
    "sum": _sum,
    "abs": _abs,
    "int": _number(int),
    "float": _number(lambda value: value),
    "round": _number(_round),
    "bool": _bool,
    "str": lambda m, args, keywords, span: args[0] if args and isinstance(args[0], str) else "<text>",
    "list": _list,
    "tuple": lambda m, args, keywords, span: tuple(m.listed(args[0])) if args else (),
    "dict": _dict,
    "set": lambda m, args, keywords, span: list(m.listed(args[0])) if args else set(),
    "print": _none,
    "isinstance": _isinstance,
    "hasattr": _hasattr,
    "getattr": _getattr,
    "setattr": _setattr,
    "iter": _iter,
    "next": _next,
    "map": _map,
    "filter": _filter,
    "sorted": _same,
    "reversed": _reversed,
    "any": _any_all(True),
    "all": _any_all(False),
    "divmod": _divmod,
    "super": _super,
    "exit": _exit,
    "quit": _exit,
}


# --- torch ------------------------------------------------------------------------------------------------------------


def _grad_context(on: bool) -> Handler:
    def handler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        if args and type(args[0]) is Closure:
            args[0].no_grad = not on
            return args[0]
        return ("grad", on)

    return handler


def _set_grad(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    value = args[0] if args else True
    on = bool(numeric(value)) if numeric(value) is not None else True
    if isinstance(value, Maybe):
        on = m.truth(value, _Test(span), None, lambda: True)  # type: ignore[arg-type]
    before, m.grad_enabled = m.grad_enabled, on
    return ("grad", on, before)


class _Test:
    """A stand-in for a test expression: only its place counts."""

    def __init__(self, span: Span) -> None:
        self.span = span


def _null(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return ("null",)


def _scalar(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    """torch.tensor: a number stays one."""
    if args and numeric(args[0]) is not None and keywords.get("requires_grad") is not True:
        return args[0]
    return _create(m, args, keywords, span)


def _create(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    first: Value = args[0] if args else keywords.get("size")
    axes = tuple(first) if isinstance(first, (list, tuple)) else tuple(args)
    if isinstance(first, (list, tuple)) and first:
        first = first[0] if numeric(first[0]) is not None else len(first)
    if keywords.get("requires_grad") is True:
        return Param(Owner("<parameter>"), True, first)
    made = Tensor(size=first if numeric(first) is not None else None, batch=m.made_up())
    if all(numeric(one) is not None for one in axes):
        made.rest = axes[1:]
    return made


def _master_params(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    """The parameters of an optimizer, in all its groups."""
    if not args or not m.could_be_optimizer(args[0]):
        return m.opaque("master_params()", "params")
    optimizer = args[0] if type(args[0]) is v.Optimizer else m.as_optimizer(args[0], span)
    groups = m.param_groups(optimizer)
    return ParamSet(NOBODY.union(*(group["params"].owners for group in groups)))


def _variable(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    """Variable(x) of old code is x; one that is not data may be made to take gradients."""
    value: Value = args[0] if args else keywords.get("data")
    wants = args[1] if len(args) > 1 else keywords.get("requires_grad")
    if wants is True and not m.batch_of(value) and not m.graph_owners([value]):
        return Param(Owner("<parameter>"), True, getattr(value, "size", None))
    return value


def _like(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if args and type(args[0]) in (Param, v.Grad):
        return v.Grad(args[0].owner, {})
    return Tensor(size=getattr(args[0], "size", None) if args else None, batch=m.made_up())


def _randint(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    size = next((one for one in args if isinstance(one, (tuple, list))), keywords.get("size"))
    return _create(m, [size], {}, span)


def _arange(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return Tensor(size=args[0] if len(args) == 1 and numeric(args[0]) is not None else None, batch=m.made_up())


def _parameter(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    copied = args[0].owners if args and type(args[0]) is Tensor and args[0].name == VECTOR else NOBODY
    # A copy of a model's parameters in one piece is updated in their place.
    owner = next(iter(copied)) if len(copied) == 1 else Owner("<parameter>")
    for one in copied - {owner}:
        one.join(owner)
    return Param(owner, True, getattr(args[0], "size", None) if args else None)


def _stack(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    items = m.listed(args[0]) if args else []
    if any(type(one) is v.Grad for one in items):
        return items[0]
    lossy = [one for one in items if type(one) in (Tensor, Opaque) and one.graph and m.has_terms(one)]
    owners = m.graph_owners(items)
    batch = m.batch_of(items)
    if lossy and len(lossy) == len(items):
        terms: dict[v.Term, Any] = {}
        for one in lossy:
            for term, weight in (m.as_loss(one, span).terms or {}).items():
                terms[term] = terms.get(term, 0) + weight
        return Tensor(owners, True, terms, size=len(items), reduction="stack", batch=batch)
    graph = bool(owners) and m.grad_enabled
    return Tensor(owners if graph else NOBODY, graph, batch=batch)


def _cat(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    made = _stack(m, args, keywords, span)
    m.watch_joined(span, m.listed(args[0]) if args else [], made)
    return made


def _reduce(name: str) -> Handler:
    def handler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        if not args:
            return Tensor()
        value = args[0]
        if type(value) is Opaque and value.graph:
            value = (
                Tensor(value.owners, True, batch=value.batch) if "<loss>" not in value.attrs else m.as_loss(value, span)
            )
        if type(value) is Param:
            return m.param_method(value, name, args[1:], keywords, span)
        if type(value) is Tensor:
            return m.reduced(value, name, args[1:], keywords, span)
        return m.opaque(f"{name}:{span.row}", "<value>", batch=m.batch_of(value))

    return handler


def _to_vector(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    items = m.listed(args[0]) if args else []
    grads = [one for one in items if type(one) is v.Grad]
    if grads and len(grads) == len(items):
        return v.Grad(grads[0].owner, dict(grads[0].row), read=grads[0].read, added=grads[0].added)
    copied = (one.owners for one in items if type(one) is Tensor)
    owners = m.graph_owners(items)
    return Tensor(owners.union(*copied), bool(owners) and m.grad_enabled, name=VECTOR)


def _from_vector(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    targets = m.listed(args[1]) if len(args) > 1 else []
    for one in targets:
        if type(one) is v.Grad and one.shared and type(args[0]) is v.Grad:
            m.grad_method(one, "copy_", [args[0]], {}, span)
    return None


def _autograd_backward(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    values = m.listed(args[0]) if args and isinstance(args[0], (list, tuple)) else args[:1]
    for value in values:
        if type(value) in (Tensor, Opaque):
            m.backward(value, span, via="autograd")
    return None


def _autograd_grad(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    inputs = args[1] if len(args) > 1 else keywords.get("inputs")
    loss = args[0] if args else keywords.get("outputs")
    graphs = loss is not None and type(loss) in (Tensor, Opaque) and loss.graph
    terms = tuple(m.as_loss(loss, span).terms or ()) if graphs else ()
    m.event("autograd.grad", span, terms=terms)
    for term in terms:
        term.sent += 1
    owners = m.owners_of(inputs) if inputs is not None else NOBODY
    graph = keywords.get("create_graph") is True
    return [Tensor(owners if graph else NOBODY, graph, batch=v.SOME_DATA)]


def _clip(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    m.event("clip", span)
    return m.opaque(f"norm:{span.row}", "grad_norm")


def _foreach(op: str) -> Handler:
    def handler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        items = m.listed(args[0]) if args else []
        owners = frozenset(one.owner for one in items if type(one) is v.Grad)
        if op == "zero":
            m.zero(owners, span, "_foreach_zero_")
        elif len(args) > 1:
            m.scale_gradient(owners, args[1], op, span)
        return None

    return handler


def _foreach_add(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) > 1:
        left, right = m.listed(args[0]), m.listed(args[1])
        for one, other in zip(left, right, strict=False):
            if type(one) is v.Grad and type(other) is v.Grad and not one.shared:
                m.grad_method(one, "add_", [other], {}, span)
    return None


def _chunk(name: str) -> Handler:
    def handler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        named = [value for key, value in keywords.items() if key not in ("input", "tensor", "dim")]
        amount = args[1:] or [*named, m.assignment.k][:1]
        if args and type(args[0]) in (Tensor, Opaque):
            return m.chunks(args[0], name, amount, span, keywords.get("dim"))
        return m.opaque(f"{name}:{span.row}", "<chunks>")

    return handler


def _loader(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    dataset = args[0] if args else keywords.get("dataset")
    size = args[1] if len(args) > 1 else keywords.get("batch_size", 1 if "batch_sampler" not in keywords else None)
    if type(size) is Opaque:
        size = m.number(size.key, size.name, "" if m.world.role_of(size.key, size.name) else "batch")
    sampler = keywords.get("batch_sampler")
    drop = keywords.get("drop_last")
    if type(sampler) is Opaque and "<count>" in sampler.attrs:
        size, (dataset, drop) = sampler.attrs["<size>"][0], sampler.attrs["<count>"]
        keywords = {}
    key = f"loader@{span.row}:{span.column}"
    length: Value = None
    count = (
        numeric(_len(m, [dataset], {}, span))
        if type(dataset) in (v.Dataset, Tensor) or (isinstance(dataset, list) and id(dataset) not in m.grown)
        else None
    )
    known = type(dataset) is not v.Dataset or dataset.size is not None
    whole = getattr(dataset, "size", None)
    same = bool(roots_of(size)) and roots_of(size) == roots_of(whole)
    multiple = same and bool(numeric(size)) and numeric(whole) % numeric(size) == 0
    sized = multiple or all(root in m.world.hints for root in roots_of(size))
    if count is not None and known and numeric(size) and sized:
        exact = Fraction(int(count), int(numeric(size)))
        length = math.floor(exact) if drop is True else math.ceil(exact)
        if "sampler" in keywords or "batch_sampler" in keywords:
            length = None
    if length is None:
        length = m.number(f"len({key})", "length", "length")
    samples = numeric(size if type(size) is not Imported else m.as_number(size))
    if samples:
        m.run.batch_sizes.add(samples)
    made = Loader(key, length, size, span)
    made.name = "<loader>"
    return made


def _sampler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    source = args[0] if args else keywords.get("data_source")
    return v.Dataset(source.size if type(source) is v.Dataset and "num_samples" not in keywords else None)


def _batch_sampler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    sampler = args[0] if args else keywords.get("sampler")
    made = m.opaque(f"batch_sampler@{span.row}:{span.column}", "<batch_sampler>")
    size = args[1] if len(args) > 1 else keywords.get("batch_size")
    made.attrs["<size>"] = (m.as_number(size), span)
    made.attrs["<count>"] = (sampler, args[2] if len(args) > 2 else keywords.get("drop_last"))
    return made


def _tensor_dataset(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    size = getattr(args[0], "size", None) if args else None
    return v.Dataset(size if numeric(size) is not None else None)


def _subset(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) > 1 and type(args[1]) is Range:
        return v.Dataset(
            len(m.listed(args[1]))
            if numeric(args[1].stop) is not None and numeric(args[1].stop) <= 64
            else args[1].stop
        )
    return v.Dataset(None)


def _random_split(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    parts = args[1] if len(args) > 1 else keywords.get("lengths")
    if isinstance(parts, (list, tuple)):
        return [v.Dataset(one if isinstance(one, int) else None) for one in parts]
    return m.opaque("split", "<dataset>")


def _scaler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return v.Scaler("<scaler>")


def _accelerator(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    steps: Value = keywords.get("gradient_accumulation_steps")
    plugin = keywords.get("gradient_accumulation_plugin")
    if plugin is not None:
        steps = plugin.attrs.get("num_steps") if type(plugin) is Opaque else None
        if steps is None:
            steps = m.number(f"accelerator@{span.row}.steps", "gradient_accumulation_steps")
    if type(steps) is Opaque:
        steps = m.number(steps.key, steps.name, "" if m.world.role_of(steps.key, steps.name) else "k")
    made = v.Accelerator("<accelerator>", steps, "**" not in keywords)
    plugin = keywords.get("deepspeed_plugin")
    made.engine = type(plugin) is Opaque and "DeepSpeedPlugin" in plugin.key
    made.schedules = keywords.get("step_scheduler_with_optimizer") is not False
    return made


def _plugin(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    made = m.opaque(f"plugin@{span.row}", "plugin")
    made.attrs["num_steps"] = keywords.get("num_steps", args[0] if args else None)
    return made


def _fabric(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return v.Fabric("fabric")


def _deepspeed(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    model = keywords.get("model", args[1] if len(args) > 1 else None)
    owners = m.owners_of(model) if model is not None else NOBODY
    owner = next(iter(owners), None) or Owner("engine")
    engine = v.Engine("engine", owner)
    return (engine, v.Engine("engine's optimizer", owner), keywords.get("training_data"), v.Engine("scheduler", owner))


def _apex_initialize(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    values = [*args, *(value for name, value in keywords.items() if name in ("models", "optimizers"))]
    return tuple(values[:2]) if len(values) > 1 else (values[0] if values else None)


def _scale_loss(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return ("scaled", args[0] if args else None)


def _deepcopy(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    value: Value = args[0] if args else None
    kind = type(value)
    if kind is Module:
        return Module(value.path, Owner(f"copy of {value.name}"), value.batchnorm, value.items)
    if kind is Instance:
        made = Instance(value.cls, Owner(f"copy of {value.name}") if value.owner is not None else None, value.key + "'")
        made.attrs = dict(value.attrs)
        made.batchnorm = value.batchnorm
        return made
    if kind is Opaque:
        return m.opaque(f"copy({value.key})", value.name, batch=value.batch)
    if isinstance(value, list):
        return list(value)
    if isinstance(value, dict):
        return dict(value)
    return value


# --- the standard library ---------------------------------------------------------------------------------------------


def _round_up(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return _number(math.ceil)(m, args, keywords, span)


def _round_down(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return _number(math.floor)(m, args, keywords, span)


def _islice(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) < 2:
        return []
    limit = m.as_number(args[1] if len(args) == 2 else args[2])
    count = numeric(limit)
    inner = m.stream(args[0], span)
    if count is None:
        return inner
    count = int(count)
    if roots_of(limit) and not m.is_k(limit) and not 2 <= count <= 12:
        count = m.world.turns(m.assignment)

    def pull() -> Any:
        for _ in range(count):
            try:
                yield next(inner.pull)
            except StopIteration:
                return

    made = Stream(pull(), None, inner.feeds, inner.loader)
    made.length = limit if inner.endless or inner.length is None else None
    if inner.length is not None and not roots_of(limit) and not roots_of(inner.length):
        made.length = min(count, numeric(inner.length))
    return made


def _cycle(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    source = args[0] if args else []
    stop = source.stop if type(source) is Range and numeric(source.start) == 0 and numeric(source.step) == 1 else None
    period = numeric(stop)

    def counted(item: Value) -> Value:
        """0 to k - 1 again and again is a counter's remainder."""
        return item if period is None else Num(numeric(item), NO_ROOTS, span, (period, roots_of(stop), item, NOWHERE))

    def flagged(at: int, item: Value) -> Value:
        """One flag of several is up: the same test as that of a counter's remainder."""
        return Num(int(item), NO_ROOTS, span, (len(source), NO_ROOTS, at, NOWHERE)) if flags else item

    flags = isinstance(source, list) and len(source) > 1 and all(isinstance(one, bool) for one in source)
    flags = flags and sum(source) in (1, len(source) - 1)

    def pull() -> Any:
        for _ in range(64):
            empty = True
            items = m.stream(source, span).pull if not isinstance(source, list) else list(source)
            for at, item in enumerate(items):
                empty = False
                yield flagged(at, counted(item))
            if empty:
                return

    made = Stream(pull(), None, type(source) in (Loader, Opaque) or bool(m.batch_of(source)))
    made.endless = True
    return made


def _count(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    start = numeric(args[0]) if args else 0
    made = Stream(iter(range(int(start or 0), int(start or 0) + 4000)))
    made.endless = True
    return made


def _repeat(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    times = args[1] if len(args) > 1 else keywords.get("times")
    if times is None:
        return _count(m, [], {}, span)
    count = numeric(times)
    if count is not None and args and isinstance(args[0], (bool, int)):
        return [args[0]] * min(max(int(count), 0), 64)
    return Range(0, times, 1)


def _chain(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if args and all(type(one) in (ParamSet, Opaque, Param, list) for one in args):
        owners = NOBODY.union(*(m.owners_of(one) for one in args))
        if owners:
            return ParamSet(owners)
    made: list[Value] = []
    for one in args:
        made += m.listed(one)
    return made


def _pairs(choose: Callable[..., Iterable[tuple[Value, ...]]]) -> Handler:
    """combinations() and permutations(): a few of them stand for all."""

    def handler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        size = numeric(args[1]) if len(args) > 1 else None
        items = m.listed(args[0]) if args else []
        return list(itertools.islice(choose(items, int(size) if size else 2), _SOME))

    return handler


def _partial(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return v.Partial(args[0], tuple(args[1:]), tuple(keywords.items())) if args else None


def _deque(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if keywords.get("maxlen") is not None or len(args) > 1:
        made = m.opaque(f"deque:{span.row}", "deque")
        made.attrs["<bounded>"] = True
        return made
    return list(m.listed(args[0])) if args else []


def _defaultdict(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return _Default(args[0] if args else None, m, span)


class _Default(dict[Any, Value]):
    """collections.defaultdict."""

    def __init__(self, factory: Value, machine: Machine, span: Span) -> None:
        super().__init__()
        self.factory, self.machine, self.span = factory, machine, span

    def __contains__(self, key: object) -> bool:
        return self.factory is not None or super().__contains__(key)

    def __missing__(self, key: Any) -> Value:
        for other, value in self.items():
            data = isinstance(value, (list, dict)) or type(value) in (v.Loader, v.Instance, v.Module, v.Dataset)
            if data and type(other) is v.AnyKey and type(key) is not v.AnyKey:
                return value  # It may well be that one; a number is counted up from nothing.
        made = self[key] = self.machine.call_value(self.factory, [], self.span)
        return made


def _namespace(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    made = m.opaque(f"namespace:{span.row}", "args")
    for name, value in keywords.items():
        made.attrs[name] = m.tunable(value, f"args.{name}", name)
    return made


def _parser(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return m.opaque(f"parser:{span.row}", "parser")


def _field(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if "default" in keywords:
        return keywords["default"]
    factory = keywords.get("default_factory")
    return m.call_value(factory, [], span) if factory is not None else None


def _replace(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    return (
        v.replaced(args[0], keywords)
        if args and type(args[0]) is Instance
        else m.opaque(f"value:{span.row}", "<value>")
    )


def _arithmetic(op: str) -> Handler:
    """torch.div and torch.mul of two values."""

    def handler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        if len(args) == 1 and "other" in keywords:
            args = [args[0], keywords["other"]]
        return m.binary(op, args[0], args[1], span) if len(args) == 2 else m.opaque(f"value:{span.row}", "<value>")

    return handler


def _reduce_function(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
    if len(args) < 2:
        return None
    items = m.listed(args[1])
    total = args[2] if len(args) > 2 else (items.pop(0) if items else None)
    for one in items:
        total = m.call_value(args[0], [total, one], span)
    return total


def _operator(op: str) -> Handler:
    def handler(m: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        return m.binary(op, args[0], args[1], span) if len(args) == 2 else None

    return handler


FUNCTIONS: dict[str, Handler] = {
    **dict.fromkeys(
        ("math.fmod", "numpy.mod", "numpy.remainder", "numpy.fmod", "operator.mod", "torch.remainder", "torch.fmod"),
        _remainder,
    ),
    "math.ceil": _round_up,
    "math.floor": _round_down,
    "numpy.ceil": _round_up,
    "numpy.floor": _round_down,
    "itertools.islice": _islice,
    "itertools.cycle": _cycle,
    "itertools.count": _count,
    "itertools.repeat": _repeat,
    "itertools.chain": _chain,
    "itertools.combinations": _pairs(itertools.combinations),
    "itertools.permutations": _pairs(itertools.permutations),
    "itertools.chain.from_iterable": lambda m, args, keywords, span: _chain(
        m, m.listed(args[0]) if args else [], {}, span
    ),
    "functools.partial": _partial,
    "functools.reduce": _reduce_function,
    "functools.wraps": lambda m, args, keywords, span: Imported("acclint.same"),
    "acclint.same": _same,
    "operator.add": _operator("+"),
    "operator.truediv": _operator("/"),
    "collections.deque": _deque,
    "collections.defaultdict": _defaultdict,
    "collections.OrderedDict": _dict,
    "contextlib.nullcontext": lambda m, args, keywords, span: ("null", args[0] if args else None),
    "contextlib.suppress": _null,
    "contextlib.ExitStack": lambda m, args, keywords, span: v.Exits(),
    "copy.deepcopy": _deepcopy,
    "copy.copy": _same,
    "argparse.ArgumentParser": _parser,
    "argparse.Namespace": _namespace,
    "types.SimpleNamespace": _namespace,
    "dataclasses.field": _field,
    "dataclasses.replace": _replace,
    "sys.exit": _exit,
    "os._exit": _exit,
    "apex.amp.initialize": _apex_initialize,
    "apex.amp.scale_loss": _scale_loss,
    "apex.amp.master_params": _master_params,
    "deepspeed.initialize": _deepspeed,
    "accelerate.Accelerator": _accelerator,
    "accelerate.accelerator.Accelerator": _accelerator,
    "accelerate.utils.GradientAccumulationPlugin": _plugin,
    "accelerate.GradientAccumulationPlugin": _plugin,
    "lightning.Fabric": _fabric,
    "lightning.fabric.Fabric": _fabric,
    "lightning_fabric.Fabric": _fabric,
    "torch.no_grad": _grad_context(False),
    "torch.inference_mode": _grad_context(False),
    "torch.enable_grad": _grad_context(True),
    "torch.set_grad_enabled": _set_grad,
    "torch.autograd.set_grad_enabled": _set_grad,
    "torch._utils._flatten_dense_tensors": _to_vector,
    "torch.nn.utils.parameters_to_vector": _to_vector,
    "torch.nn.utils.convert_parameters.parameters_to_vector": _to_vector,
    "torch.nn.utils.vector_to_parameters": _from_vector,
    "torch.nn.utils.convert_parameters.vector_to_parameters": _from_vector,
    "torch.autograd.backward": _autograd_backward,
    "torch.autograd.grad": _autograd_grad,
    "torch.autograd.Variable": _variable,
    "torch.autograd.variable.Variable": _variable,
    "torch.nn.Parameter": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.utils.clip_grad_norm_": _clip,
    "torch.nn.utils.clip_grad_value_": _clip,
    "torch.nn.utils.clip_grad_norm": _clip,
    "torch._foreach_div_": _foreach("/"),
    "torch._foreach_mul_": _foreach("*"),
    "torch._foreach_zero_": _foreach("zero"),
    "torch._foreach_add_": _foreach_add,
    "torch.stack": _stack,
    "torch.cat": _cat,
    "torch.div": _arithmetic("/"),
    "torch.true_divide": _arithmetic("/"),
    "torch.mul": _arithmetic("*"),
    "torch.mean": _reduce("mean"),
    "torch.sum": _reduce("sum"),
    "torch.chunk": _chunk("chunk"),
    "torch.split": _chunk("split"),
    "torch.tensor_split": _chunk("chunk"),
    "torch.utils.data.DataLoader": _loader,
    "torch.utils.data.dataloader.DataLoader": _loader,
    "torch.utils.data.TensorDataset": _tensor_dataset,
    "torch.utils.data.RandomSampler": _sampler,
    "torch.utils.data.SequentialSampler": _sampler,
    "torch.utils.data.BatchSampler": _batch_sampler,
    "torch.utils.data.Subset": _subset,
    "torch.utils.data.random_split": _random_split,
    "torch.arange": _arange,
    "torch.randperm": _arange,
    "torch.linspace": _create,
    "torch.randint": _randint,
    "torch.manual_seed": _none,
    "torch.save": _none,
    "torch.autocast": _null,
    "torch.amp.autocast": _null,
    "torch.cuda.amp.autocast": _null,
    "torch.cuda.amp.GradScaler": _scaler,
    "torch.amp.GradScaler": _scaler,
    "torch.amp.grad_scaler.GradScaler": _scaler,
    "torch.cuda.amp.grad_scaler.GradScaler": _scaler,
    "torch.GradScaler": _scaler,
    **{
        f"torch.{name}": _create
        for name in ("randn", "rand", "zeros", "ones", "empty", "full", "normal", "eye", "tensor")
    },
    **{f"torch.{name}_like": _like for name in ("zeros", "ones", "empty", "rand", "randn")},
}
FUNCTIONS["torch.tensor"] = FUNCTIONS["torch.as_tensor"] = _scalar
TORCHLIKE: dict[str, Handler] = {
    "autocast": _null,
    "nullcontext": _null,
    "no_grad": _grad_context(False),
    "inference_mode": _grad_context(False),
    "profile": _null,
    "record_function": _null,
    "fork_rng": _null,
    "detect_anomaly": _null,
    "set_detect_anomaly": _null,
    "clip_grad_norm_": _clip,
    "clip_grad_value_": _clip,
}
