"""The abstract machine: runs the small program, statement by statement, with abstract values, and writes a `Run`.

This is its top layer, which knows calls (see core.py for the layers). What torch, the frameworks and the standard
library do when they are called comes from `acclint.knowledge` and functions.py.
"""

from __future__ import annotations

import math
from contextlib import suppress

from acclint import program as p
from acclint.knowledge import losses, names, norms, optimizers, schedulers
from acclint.knowledge.norms import is_batchnorm_layer
from acclint.program import Span, file_of
from acclint.simulate import values as v
from acclint.simulate.core import Frame
from acclint.simulate.expressions import Enough
from acclint.simulate.functions import BUILTINS, FUNCTIONS, TORCHLIKE
from acclint.simulate.linking import Linking
from acclint.simulate.modules import modules_in
from acclint.simulate.schedules import scheduler_base
from acclint.simulate.values import (
    NOBODY,
    ClassValue,
    Closure,
    Imported,
    Instance,
    Module,
    Num,
    Opaque,
    Owner,
    Param,
    PyRaise,
    Stream,
    Tensor,
    Value,
    numeric,
    resolution_order,
)
from acclint.simulate.vocabulary import NO_GRADIENT, PROGRESS, WITH_INDICES, word_set

_PASS_THROUGH = word_set(
    "DistributedDataParallel DataParallel FullyShardedDataParallel FSDP compile convert_sync_batchnorm "
    "convert_syncbn_model DDP prepare_model ScaleModel fully_shard parallelize_module prepare_qat"
)
_NUMBERS = word_set("float16 float32 float64 int8 int16 int32 int64")
_CURVES = word_set("cos sin tan tanh exp log log2 log10 pow sqrt")
# What is called for its result: a method of that name that does nothing is there for others to say what it does.
_RESULTS = word_set("forward process predict encode embed")
_DRIVERS = ("Accelerator", "Fabric", "GradScaler")
_MODELS = ("torchvision.models", "timm.create_model", "timm.models.", "timm.layers.", "segmentation_models_pytorch")
_NO_MODULES = (
    "torch.autograd.", "torch.cuda.", "torch.distributed.", "torch.distributions.", "torch.profiler.", "torch.utils.",
)  # fmt: skip
_TORCH_TOPS = word_set(
    "torch torchvision accelerate lightning pytorch_lightning lightning_fabric deepspeed apex itertools math "
    "contextlib copy functools collections transformers"
)
DEPTH = 14


class Machine(Linking):
    """Runs one program under one assignment and one set of choices."""

    def call(self, callee: Value, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame) -> Value:
        kind = type(callee)
        if kind is Closure:
            return self.invoke(callee, args, keywords, expr.span)
        if kind is ClassValue:
            return self.instantiate(callee, args, keywords, expr.span)
        if kind is v.Partial:
            return self.call(callee.func, [*callee.args, *args], {**dict(callee.keywords), **keywords}, expr, frame)
        result = self.library_call(callee, args, keywords, expr, frame)
        if type(result) is Opaque and result.graph:
            if keywords.get("num_items_in_batch") is not None:
                # transformers' models divide the sum of their loss by it: perhaps by the items of the whole window.
                result.attrs["<unsure>"] = True
            elif keywords.get("return_loss") is True:
                result.hint = "output"
        return result

    def call_value(self, callee: Value, args: list[Value], span: Span) -> Value:
        """Call a value that is at hand (a callback, a closure)."""
        return self.call(callee, args, {}, _call_at(span), self.globals)

    def library_call(
        self, callee: Value, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        kind = type(callee)
        span = expr.span
        if kind is Imported:
            return self.imported(callee.path, args, keywords, expr, frame)
        if kind is v.Bound:
            return self.method(callee.owner, callee.name, args, keywords, expr, frame)
        if kind is Opaque:
            return self.unknown_call(callee, args, keywords, expr, frame)
        if kind is Module:
            return self.forward(callee, args, keywords, span)
        if kind is Instance:
            return self.call_instance(callee, args, keywords, expr, frame)
        if kind is v.LossFunction:
            return self.loss(callee.reduction, [*args, *keywords.values()], span, callee.why)
        if kind is v.Scaler:
            return self.combined_scaler(args, keywords, span)
        if kind is v.Engine:
            owners = frozenset((callee.owner,)) | self.graph_owners(args)
            return self.opaque(
                f"{callee.name}()", "outputs", owners=owners, graph=self.grad_enabled, batch=self.batch_of(args)
            )
        if kind is Tensor or kind is v.Grad:
            return callee
        return self.opaque(f"call:{span.row}:{span.column}", "<value>", batch=self.batch_of(args))

    def imported(self, path: str, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame) -> Value:
        span = expr.span
        if keywords.get("requires_grad", False) is not False:
            self.run.freezes = True  # A tensor that asks for a gradient: a loss may be of it alone.
        if path.startswith("builtins."):
            handler = BUILTINS.get(path[9:])
            if handler is not None:
                return handler(self, args, keywords, span)
            return self.opaque(f"{path[9:]}:{span.row}:{span.column}", path[9:], batch=self.batch_of(args))
        last = path.rpartition(".")[2]
        top = path.partition(".")[0]
        if last == "__init__" and args and type(args[0]) is Instance:
            args[0].attrs["<base>"] = (args[1:], keywords)  # `LambdaLR.__init__(self, optimizer, factor)`
            return None
        if path.startswith("torch.Tensor.") and args:
            return self.method(args[0], last, args[1:], keywords, expr, frame)
        handler = FUNCTIONS.get(path) or (TORCHLIKE.get(last) if top in _TORCH_TOPS else None)
        if handler is not None:
            return handler(self, args, keywords, span)
        kind = optimizers.optimizer_kind(path)
        if kind is not None:
            return self.make_optimizer(path, kind, args, keywords, span)
        wrapped = next((one for one in (*args, *keywords.values()) if type(one) is v.Optimizer), None)
        if wrapped is not None and optimizers.is_wrapper(path):
            return wrapped
        scheduler = schedulers.scheduler_kind(path)
        if scheduler is not None:
            return self.make_scheduler(path, scheduler, args, keywords, span)
        default = losses.reduction_of(path)
        if default is not None:
            return self.known_loss(path, default, args, keywords, span)
        if last == "trange" and args:
            return BUILTINS["range"](self, args, {}, span)
        if last in PROGRESS or path.startswith("tqdm"):
            return args[0] if args else (keywords.get("iterable") or self.opaque("tqdm", "progress"))
        if last in _PASS_THROUGH and (args or "model" in keywords or "module" in keywords):
            return args[0] if args else keywords.get("model", keywords.get("module"))
        if top == "torch" or path.startswith(_MODELS):
            return self.torch_call(path, last, args, keywords, span)
        if top in ("math", "numpy") and (value := self.computed(last, args, span)) is not None:
            return value
        return self.foreign_call(path, last, args, keywords, expr, frame)

    def computed(self, name: str, args: list[Value], span: Span) -> Value:
        """The value of a function of `math` or numpy of known numbers; None where there is none.

        A cosine counts only where the end of a schedule is sought: as the weight of a loss it is one like any other.
        """
        if name in _NUMBERS and len(args) == 1:
            value = args[0]
            role = self.world.role_of(value.key, value.name) if type(value) is Opaque and not value.batch else ""
            return self.as_number(value) if role or numeric(value) is not None else None
        if self.deciding or name not in _CURVES:
            return None
        try:
            return self.derived(getattr(math, name)(*(float(numeric(one)) for one in args)), span, *args)
        except (TypeError, ValueError, OverflowError):
            return None

    def known_loss(self, path: str, default: str, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        literal: dict[str, object] = {
            name: keywords[name]
            for name in ("reduction", "size_average", "reduce")
            if name in keywords and isinstance(keywords[name], (str, bool))
        }
        unknown = any(name in keywords and name not in literal for name in ("reduction", "size_average", "reduce"))
        reduction = losses.reduction_from_arguments(default, literal) or "unknown"
        if unknown:
            reduction = "unknown"
        last = path.rpartition(".")[2]
        if last[:1].isupper():
            return v.LossFunction(last, reduction, last)
        return self.loss(reduction, [*args, *keywords.values()], span, last)

    def torch_call(self, path: str, last: str, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        """A torch function or class with no special meaning: a module, a context, or an operation on tensors."""
        values = [*args, *keywords.values()]
        if path.startswith(("torch.nn.functional.",)) or (
            path.startswith("torch.") and last.lstrip("_")[:1].islower() and "models" not in path
        ):
            owners = self.graph_owners(values)
            batch = self.batch_of(values)
            for one in values:
                if type(one) is Closure and self.scanner.has_backward(one.function.body):
                    self.engine_driven.append((one, path))
            if (
                last in WITH_INDICES
                and len(values) > 1
                and type(values[1]) in (int, Num)
                and self.grad_enabled
                and owners
            ):
                return (Tensor(owners, True, batch=batch), Tensor(batch=batch))
            if self.grad_enabled and owners and last not in NO_GRADIENT:
                none = any(type(one) is Tensor and one.reduction == "none" for one in values)
                size = self.size_of(args)
                return Tensor(owners, True, None, size, "none" if none else "", "exp" if last == "exp" else "", batch)
            if batch or any(type(one) in (Tensor, Param, v.Grad) for one in values):
                return Tensor(batch=batch, size=self.size_of(args))
            return self.opaque(f"{path}({','.join(self.key(one) for one in args[:2])})", "<" + last)
        if path.startswith("torch.") and last.endswith("Tensor"):
            return Tensor(size=self.size_of(args), batch=self.batch_of(values) or self.made_up())
        if path.startswith(_NO_MODULES) or (path.startswith("torch.") and path.count(".") == 1):
            owners = self.graph_owners(values)  # A distribution is as a tensor made of its parameters.
            graph = self.grad_enabled and bool(owners)
            return self.opaque(
                f"{path}@{span.row}", "<" + last, owners=owners, graph=graph, batch=self.batch_of(values)
            )
        values = [self.drain(one, 64) if type(one) is Stream else one for one in values]
        literal: dict[str | int, object] = {
            name: value for name, value in keywords.items() if isinstance(value, (str, int, float, bool, type(None)))
        }
        for name, value in keywords.items():
            if name not in literal and value is not None:
                literal[name] = _text_of(value)
        if args and isinstance(args[0], str):
            literal.setdefault("name", args[0])
            literal.setdefault("model_name", args[0])
            literal.setdefault("encoder_name", args[0])
        norm = norms.has_batchnorm(path, literal)
        where = span if norm else None
        items = modules_in(values)
        for item in items:
            if where is None and getattr(item, "batchnorm", None) is not None:
                where = item.batchnorm
        owner = Owner(last)
        for item in items:
            if getattr(item, "owner", None) is not None:
                item.owner.join(owner)
        if norm:
            self.note_layer(span, owner)
            if literal.get("track_running_stats") is False:
                self.always.add(span)
        made = Module(path, owner, where, tuple(items))
        if args and isinstance(args[0], dict):
            made.attrs.update({name: one for name, one in args[0].items() if isinstance(name, str)})
        return made

    def note_layer(self, span: Span, owner: Owner) -> None:
        self.layers.setdefault(span, []).append(owner)
        self.note_site(span)

    def invoke(self, closure: Closure, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        function = closure.function
        self.called.add(id(function))
        if len(self.stack) >= DEPTH or self.stack.count(function) > 1:
            bound = self.owners_of(closure.bound) if type(closure.bound) is Instance else NOBODY
            owners = self.graph_owners([*args, *keywords.values()]) | bound
            graph = self.grad_enabled and bool(owners)
            return self.opaque(f"{function.name}()", function.name, owners=owners, graph=graph)
        if is_abstract(function):
            # Other classes say what it does.
            made = self.opaque(f"{function.name}@{function.span.row}", function.name)
            callee = self.undefined.setdefault(id(function), made)  # one, with the same parameters at each call
            return self.unknown_call(callee, args, keywords, _call_at(span), self.globals)
        if names.is_attack_name(function.name):
            self.event("attack", span)
        if function.name == "load_state_dict" and type(closure.bound) is Instance:
            return None  # A run that is resumed goes on as one that was not interrupted.
        frame = Frame(closure.scope, function)
        frame.cls = closure.owner_class
        if closure.bound is not None and closure.kind != "static":
            args = [closure.bound, *args]
            frame.self_value = closure.bound
        elif closure.scope is not None:
            frame.self_value = closure.scope.self_value
            frame.cls = frame.cls or closure.scope.cls
        self.bind(function, closure, args, keywords, frame)
        if function.generator:
            return self.generate(closure, frame)
        if file_of(function.span) and not file_of(span):
            return self.visit(closure, args, keywords, frame, span)
        return self.run_body(closure, frame, span)

    def visit(self, closure: Closure, args: list[Value], keywords: dict[str, Value], frame: Frame, span: Span) -> Value:
        """Run a function of another file, which may do more than is understood of it."""
        name, before, asked = closure.function.name, len(self.run.events), self.asked
        try:
            result = self.run_body(closure, frame, span)
        except PyRaise:  # what abstract values led to
            result = self.foreign_call(name, name, args, keywords, _call_at(span), frame)
        if not any(event.kind in ("edit", "zero") for event in self.run.events[before:]):
            values = [*args, *keywords.values()]
            if names.is_zeroing_name(name):
                if not self.scanner.zeroes(closure.function):
                    self.zeroed_by_name(name, values, span)
            else:
                self.note_edit(name, values, span)
        return self._undecided(result, name, span, self.asked > asked)

    def _undecided(self, result: Value, name: str, span: Span, guessed: bool) -> Value:
        """A flag that comes out of unknown conditions (`guessed`) or sizes: that it is up says nothing."""
        if isinstance(result, tuple) and not (result and isinstance(result[0], str)):
            return tuple(self._undecided(one, f"{name}[{at}]", span, guessed) for at, one in enumerate(result))
        sized = type(result) is Num and isinstance(result.v, bool) and result.modulus is None and not self.is_k(result)
        if sized or (guessed and isinstance(result, bool)):
            return self.opaque(f"{name}()@{span.row}", "<flag>")
        return result

    def run_body(self, closure: Closure, frame: Frame, span: Span) -> Value:
        function = closure.function
        self.stack.append(function)
        self.selves.append(frame.self_value)
        self.path.append(span)
        grad = self.grad_enabled
        if closure.no_grad:
            self.grad_enabled = False
        try:
            self.block(function.body, frame)
        finally:
            self.stack.pop()
            self.selves.pop()
            self.path.pop()
            if closure.no_grad:
                self.grad_enabled = grad
        return frame.result

    def generate(self, closure: Closure, frame: Frame) -> Value:
        frame.yields = []
        if closure.kind == "context":
            return ("context", closure, frame)
        ended = True
        try:
            self.run_body(closure, frame, closure.function.span)
        except Enough:
            ended = False
        own = [self.run.loops.get(loop.span) for loop in self.scanner.scan(closure.function.body).loops]
        ended = ended and not any(loop is not None and loop.cut for loop in own)
        items = frame.yields
        feeds = bool(items) and (self.batch_of(items[0]) or isinstance(items[0], (list, tuple)))
        stream = Stream(iter(items), len(items) if ended else None, bool(feeds))
        stream.endless = not ended
        return stream

    def bind(
        self, function: p.Function, closure: Closure, args: list[Value], keywords: dict[str, Value], frame: Frame
    ) -> None:
        left = list(args)
        rest = dict(keywords)
        for parameter in function.parameters:
            name = parameter.name
            if parameter.kind == "args":
                frame.vars[name] = tuple(left)
                left = []
            elif parameter.kind == "kwargs":
                frame.vars[name] = rest
                rest = {}
            elif parameter.kind == "plain" and left:
                frame.vars[name] = left.pop(0)
            elif name in rest:
                frame.vars[name] = rest.pop(name)
            elif name in closure.defaults:
                frame.vars[name] = self.tunable(closure.defaults[name], f"{function.name}.{name}", name)
            else:
                frame.vars[name] = self.opaque(f"{function.name}.{name}", name)

    def instantiate(self, cls: ClassValue, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        for base in cls.bases:
            kind = optimizers.optimizer_kind(base.path) if isinstance(base, Imported) else None
            if kind is not None:
                # The file's own optimizer class: what its step does besides is not looked at.
                optimizer = self.make_optimizer(base.path, kind, args, keywords, span)
                optimizer.replays |= "zero_grad" in cls.members or not self.steps_as_base(cls)
                return optimizer
        if self.updates_only(cls):
            return self.own_optimizer(cls, args, keywords, span)
        for one in resolution_order(cls):
            for base in one.bases:
                if isinstance(base, Imported) and base.path.startswith(("accelerate.", "lightning.fabric", "torch.")):
                    handler = FUNCTIONS.get(base.path) if base.path.endswith(_DRIVERS) else None
                    if handler is not None:
                        return handler(self, args, keywords, span)  # What the project adds to it is not looked at.
        key = f"{cls.name}@{span.row}"
        owner = Owner(cls.name) if self.is_module_class(cls) else None
        made = Instance(cls, owner, key)
        if owner is not None:
            owner.empty = True
        if owner is not None and any(is_batchnorm_layer(base.path) for base in cls.bases if isinstance(base, Imported)):
            made.batchnorm = span
            self.note_layer(span, owner)
        init = self.member(cls, "__init__")
        if type(init) is Closure:
            bound = init.bind(made)
            with suppress(PyRaise):
                self.invoke(bound, args, keywords, span)
        else:
            fields = [name for name, value in cls.members.items() if type(value) is not Closure]
            for name, value in zip(fields, args, strict=False):
                made.attrs[name] = value
            made.attrs.update(keywords)
        path = scheduler_base(cls)
        if path:
            return self.derived_scheduler(made, path, args, keywords, span)
        return made


def _call_at(span: Span) -> p.Call:
    return p.Call(span, p.Unknown(span), (), ())


def is_abstract(function: p.Function) -> bool:
    """Whether a function does nothing but raise an error, or nothing though it is called for a model's output."""
    said = [one for one in function.body if not (isinstance(one, p.Do) and isinstance(one.value, p.Const))]
    if not said:
        return not _RESULTS.isdisjoint(names.words(function.name))
    return len(said) == 1 and isinstance(said[0], p.Raise) and said[0] is function.body[-1]


def _text_of(value: Value) -> str:
    if isinstance(value, Imported):
        return value.path
    return getattr(value, "name", "?")
