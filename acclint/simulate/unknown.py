"""Calls of what acclint does not know: what something is said to be by its name and use."""

from __future__ import annotations

from acclint import program as p
from acclint.knowledge import names
from acclint.knowledge.frameworks import META_LEARNING
from acclint.program import Span
from acclint.simulate import values as v
from acclint.simulate.core import Frame
from acclint.simulate.items import EVERY
from acclint.simulate.modules import Modules
from acclint.simulate.scan import text
from acclint.simulate.tensors import IN_PLACE, QUOTIENTS
from acclint.simulate.values import (
    NOBODY,
    Closure,
    Instance,
    Loader,
    Module,
    Opaque,
    Owner,
    Param,
    ParamSet,
    Tensor,
    Value,
)
from acclint.simulate.vocabulary import (
    HANDLES_GRADIENTS,
    NO_GRADIENT,
    PROGRESS,
    RESHAPES,
    SAME,
    WITH_INDICES,
    ZEROING,
    word_set,
)

# Arguments by which what is called may weigh the loss that it returns.
_WEIGHING = word_set("reduction normalizer normaliser denominator total num_items num_tokens loss_scale loss_weight")
_DATA_SIZE = word_set("size shape numel __len__ nelement")
_GRADIENT_WORDS = word_set("grad grads gradient gradients scale average allreduce unscale normalize")


# Clips, reads or completes gradients: a constant scale of them stays as it is.
_LEAVES_GRADIENTS = word_set(
    "clip norm none missing check log print plot track stats has is get compute histogram nan inf penalty loss "
    "validate valid verify finite stat tensorboard writer summary hist"
)
_NO_PARAMETERS = word_set("num count n print log load save update set freeze unfreeze total show init reset sync hyper")


def _gives_parameters(name: str) -> bool:
    """Whether a method returns some of an object's parameters, by its name: `non_discriminator_parameters`."""
    said = names.words(name)
    return said[-1:] in (("parameters",), ("params",)) and not _NO_PARAMETERS & set(said)


# In the name of a method of a project's own optimizer that goes before or behind each step: `pre_step`, `next_batch`.
_AROUND_STEPS = word_set("pre before begin start prepare next post after finish end")


_NOT_HANDLED = object()  # what a method returns if its name says nothing


# What is made by them never has a graph: they refuse tensors that ask for gradients.
_ARRAYS = ("numpy.", "scipy.", "sklearn.", "pandas.", "cv2.", "PIL.")


class Unknown(Modules):
    """Calls of unknown values, of their methods and of foreign packages."""

    def unknown_call(
        self, callee: Opaque, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        """A call of something unknown, or a method of something unknown: what it is said to be by name and use."""
        if "<wraps>" in callee.attrs:
            return self.call(callee.attrs["<wraps>"], args, keywords, expr, frame)
        parent = callee.attrs.get("<parent>")
        if type(parent) is Opaque and isinstance(expr.func, p.Attr):
            result = self.opaque_method(parent, callee.name, args, keywords, expr, frame)
            if result is not _NOT_HANDLED:
                return result
        values = [*args, *keywords.values()]
        span = expr.span
        if names.is_scaler_name(callee.name) and len(args) >= 2 and self.could_be_optimizer(args[1]):
            made = self.combined_scaler(args, keywords, span)
            self.may_zero(callee.name, span, again=True)
            return made
        if args and (callee.name in PROGRESS or callee.name == "log_every"):
            return args[0]
        batch = self.batch_of(values)
        of_self = isinstance(expr.func, p.Attr) and text(expr.func.value) == "self" and not values
        if self.zeroed_by_name(callee.name, values, span):
            return None
        if of_self and names.may_zero(callee.name):
            self.may_zero(callee.name, span)  # A method of a base class of another file.
        self.note_opaque(callee.key, values, span)
        for one in values:
            if type(one) is Closure and self.scanner.has_backward(one.function.body):
                self.engine_driven.append((one, callee.key))
        loaders = [
            one for one in values if type(one) is Loader or (type(one) is Opaque and names.is_loader_name(one.name))
        ]
        owners = self.graph_owners(values)
        if callee.batch and not callee.graph:
            return self.opaque(f"{callee.key}()", callee.name, batch=callee.batch | batch)
        if callee.graph or callee.owners:
            owners |= callee.owners
        elif not (loaders and not batch) and self.is_forward_call(callee, values):
            owners |= self.live(frozenset((self.guessed_owner(callee),)))
        key = f"{callee.key}({','.join(self.key(one) for one in args[:3])})"
        graph = self.grad_enabled and bool(owners) and (callee.graph or self.is_forward_call(callee, values))
        if isinstance(expr.func, p.Name) and names.is_metric_name(callee.name):
            graph = graph and any(self.carries_graph(one) for one in values)
        made = self.opaque(
            key, callee.name if graph or batch else f"<{callee.name}", owners=owners, graph=graph, batch=batch
        )
        made.attrs["<given>"] = {text(one): value for one, value in zip(expr.args, args, strict=False)}
        if type(parent) is Opaque:
            made.attrs["<receiver>"] = parent
        weighs = "<k>" in callee.attrs or self.may_weigh(values, keywords)
        if weighs:
            made.attrs["<k>"] = True
        if self.given_k(values):
            made.attrs["<unsure>"] = True  # Whoever makes the loss is told k.
        self.note_helper(made, expr)
        if names.is_loss_name(callee.name):
            made.hint = "criterion"
            if any(self.carries_graph(one) for one in values):
                made.attrs["<scored>"] = True
        elif graph and not callee.graph and self.is_model(callee) and not weighs:
            made.hint = "forward"
        if loaders and not graph and not names.is_of_optimizer(callee.name):
            made.hint = "loader"
            made.key = f"{callee.key}({self.key(loaders[0])})"
            made.name = "loader"
        for one in values:
            if type(one) is Opaque and "<size>" in one.attrs:
                made.attrs["<size>"] = one.attrs["<size>"]
        return made

    def may_weigh(self, values: list[Value], keywords: dict[str, Value]) -> bool:
        """Whether what is given tells how to weigh a loss: the accumulation steps, a total, a kind of reduction."""
        return self.given_k(values) or not _WEIGHING.isdisjoint(keywords)

    def given_k(self, values: list[Value]) -> bool:
        """Whether the accumulation steps, or what is computed from them, are among some arguments."""
        unknown = [one for one in values if type(one) is Opaque]
        return any(map(self.is_k, values)) or any(self.world.role_of(one.key, one.name) == "k" for one in unknown)

    @staticmethod
    def note_helper(made: Opaque, expr: p.Call) -> None:
        """A helper of another file that is given the loss may divide it."""
        if made.graph and any(names.is_loss_name(text(one)) for one in expr.args):
            made.attrs["<unsure>"] = True

    def guessed_owner(self, callee: Opaque) -> Owner:
        """The owner of what is called with data: it, and what it belongs to, may well be no module."""
        parent = callee.attrs.get("<parent>")
        unsure = [one for one in (callee, parent) if type(one) is Opaque and not self.is_module_like(one)]
        owner = self.owner_of(callee)
        for one in unsure:
            self.owner_of(one).guessed = True
        return owner

    def is_forward_call(self, callee: Opaque, values: list[Value]) -> bool:
        """Whether calling something unknown runs a model: it is given data, or its parameters were asked for before."""
        if self.batch_of(values) or any(self.carries_graph(one) for one in values):
            return True
        return callee.owner is not None or (bool(callee.owners) and self.is_module_like(callee))

    def zeroed_by_name(self, name: str, values: list[Value], span: Span) -> bool:
        """Whether a function of another file zeroes gradients, by its name: `zero_grad(parameters)`, `clear(opt)`."""
        told = names.is_zeroing_name(name)
        if not told and not names.may_zero(name):
            return False
        given = [other for one in values for other in (one if isinstance(one, (list, tuple)) else [one])]
        optimizers = [one for one in given if type(one) is v.Optimizer]
        optimizers += [self.as_optimizer(one) for one in given if type(one) is Opaque and "<optimizer>" in one.attrs]
        for one in optimizers:
            self.zero(NOBODY, span, name, one)
        owners = self.owners_of(values)
        if told and owners:
            self.zero(owners, span, name)
        elif owners or (told and not optimizers):
            self.may_zero(name, span)
        return told or bool(optimizers)

    def note_opaque(self, what: str, values: list[Value], span: Span) -> None:
        """A call of something unknown that is handed the optimizer or the model could step or zero."""
        accelerators = [one for one in values if type(one) is v.Accelerator]
        accelerators += [
            self.as_accelerator(one) for one in values if type(one) is Opaque and _is_accelerator(one.name)
        ]
        if accelerators:
            # `setup(accelerator, model, optimizer)` prepares what it is given.
            self.accelerator_method(accelerators[0], "prepare", values, {}, span)
        for one in values:
            if type(one) is v.Optimizer or (type(one) is Opaque and "<optimizer>" in one.attrs):
                self.event("opaque", span, what=what, value=one)
                return
        self.note_edit(what, values, span)

    def within_a_pass(self, batch: frozenset[int]) -> frozenset[int]:
        """The data that a call is given, outside of a pass over it none: the number of labels, a model for so many."""
        return batch if any(loop.level != "outer" for loop in self.loops) else frozenset()

    def note_edit(self, what: str, values: list[Value], span: Span) -> None:
        """A call of something that scales gradients, by its name, with what has them."""
        words = set(names.words(what))
        if words & _LEAVES_GRADIENTS:
            return
        owners = frozenset(one.owner for one in _gradients_in(values)) if self.given_k(values) else NOBODY
        if words & _GRADIENT_WORDS:
            held = [one for one in values if type(one) in (Module, Instance, ParamSet)]
            held += [one for one in values if type(one) is Opaque and self.is_module_like(one)]
            held += [
                one for one in values if isinstance(one, list) and one and all(type(item) is Param for item in one)
            ]
            owners = owners.union(*(self.owners_of(one) for one in held))
        if owners:
            event = self.event("edit", span, how="unknown", what=what)
            self.ledger.edit(self.covers(owners), lambda a: a, event)
            self.unsure_edit(owners, event)

    def keep_gradients(self, what: str, model: Opaque, span: Span) -> None:
        """A method of an unknown model that keeps its gradients elsewhere, by its name: none of them is lost."""
        if names.keeps_gradients(what) and not _LEAVES_GRADIENTS & set(names.words(what)):
            self.note_edit(what, [model], span)
            self.run.kept |= self.ledger.held(self.covers(self.owners_of(model)))

    def opaque_method(
        self,
        base: Opaque,
        name: str,
        args: list[Value],
        keywords: dict[str, Value],
        expr: p.Call,
        frame: Frame,
    ) -> Value:
        span = expr.span
        if self.may_weigh([*args, *keywords.values()], keywords):
            base.attrs["<k>"] = True
        if name == "backward":
            return self.backward_method(base, args, keywords, span)
        if len(args) == 1 and (name in QUOTIENTS or name in IN_PLACE):
            arithmetic = self.arithmetic_method(base, name, args[0], span)
            if arithmetic is not _NOT_HANDLED:
                return arithmetic
        if names.is_attack_name(name):
            self.event("attack", span)
        if name == "manual_backward" and args:
            self.backward(args[0], span, via="manual_backward")
            return None
        around = base.attrs.get("<around>")
        stands_for = names.is_scheduler_name(base.name) and base.name in self.world.zeroed_names
        if around is not None and stands_for and (name == "step" or names.is_zeroing_name(name)):
            # `LRScheduler(optimizer, ...)`, which is stepped and zeroed in the place of its optimizer.
            return self.optimizer_method(around, "step" if name == "step" else "zero_grad", [], {}, span)
        zeroes = names.is_zeroing_name(name) and ("<optimizer>" in base.attrs or names.is_optimizer_name(base.name))
        zeroes = zeroes or (names.is_zeroing_name(name) and self.is_module_like(base))
        if name in ZEROING or (zeroes and not args):
            steps = names.is_optimizer_name(base.name) or "<optimizer>" in base.attrs
            if steps or not self.is_module_like(base):
                if not steps:
                    self.may_zero(name, span, again=True)  # `trainer.zero_grad()`: of what it holds.
                self.optimizer_method(self.as_optimizer(base, span), "zero_grad", args, keywords, span)
            else:
                # Whose parameters `parameters()` gives: its own, or those of the modules that it was made with.
                self.zero(base.owners or frozenset((self.owner_of(base),)), span, "module zero_grad")
            return None
        of_optimizer = "<optimizer>" in base.attrs or names.is_optimizer_name(base.name)
        if of_optimizer and _AROUND_STEPS & set(names.words(name)):
            self.may_zero(name, span)
        if "<optimizer>" in base.attrs and HANDLES_GRADIENTS & set(names.words(name)):
            self.event("opaque", span, what=name, value=base)
        if self.is_module_like(base) and not base.batch:
            self.keep_gradients(name, base, span)
        if names.may_zero(name) and not args and self.is_module_like(base) and not base.batch:
            self.may_zero(name, span)
        if name in ("step", "step_update", "step_and_update_lr", "update_lr"):
            return self.step_method(base, name, args, keywords, span)
        if name in ("parameters", "named_parameters", "trainable_parameters", "get_parameters"):
            return ParamSet(base.owners or frozenset((self.owner_of(base),)), name == "named_parameters")
        if _gives_parameters(name) and not base.batch and not base.graph:
            return ParamSet(frozenset((self.part_of(self.owner_of(base), name),)))
        if name in ("zero_", "zero") and base.name == "grad":
            return None
        if names.is_scaler_name(base.name) and name == "scale" and args:
            return args[0]
        if name == "scale_loss" and args:
            return ("scaled", args[0])  # apex, however it was imported
        if names.is_scaler_name(base.name) and name in ("update", "unscale_"):
            self.event(name, span)
            return None
        if _is_accelerator(base.name):
            return self.accelerator_method(self.as_accelerator(base), name, args, keywords, span)
        if name in ("prepare", "setup", "setup_dataloaders", "setup_optimizers") and args:
            return args[0] if len(args) == 1 else tuple(args)
        if name in ("detach", "item", "tolist", "numpy", "detach_", "cpu"):
            if name == "cpu":
                return base
            if name == "item":
                return self.measured(f"{base.key}.item()", base.batch)
            return self.opaque(f"{base.key}.{name}()", base.name, batch=base.batch)
        if name in NO_GRADIENT and base.graph:
            return Tensor(batch=base.batch)
        if name in WITH_INDICES and base.graph and (args or "dim" in keywords):
            return (Tensor(base.owners, True, batch=base.batch), Tensor(batch=base.batch))
        if name in ("mean", "sum") and base.graph:
            tensor = Tensor(base.owners, True, batch=base.batch)
            joined = any("gpu" in self.world.texts.get(guard.span, "").lower() for guard in self.guards)
            if "<loss>" in base.attrs or (base.hint == "forward" and joined):
                return self.as_loss(base, span)  # The mean over processes: how each made its loss is not known.
            made = self.tensor_method(tensor, name, args, keywords, span)
            if type(made) is Tensor and base.hint == "":
                for term in made.terms or ():
                    term.guessed = True
            return made
        if name == "requires_grad_" and not base.batch and not base.graph:
            self.set_requires_grad(self.owner_of(base), args[0] if args else keywords.get("requires_grad", True))
            return base
        if name in ("train", "eval") and not base.batch and not base.graph and (not args or isinstance(args[0], bool)):
            self.set_mode(self.owner_of(base), name == "train" and not (args and args[0] is False))
            return base
        if name in RESHAPES and "<size>" in base.attrs:
            if not self.keeps_batch_axis(base.attrs["<size>"][0], name, args):
                made = self.opaque(base.key, base.name, owners=base.owners, graph=base.graph, batch=base.batch)
                made.hint = base.hint
                return made
            return base
        if name in ("train", "eval") or (
            name in SAME and (base.graph or base.batch or name in ("to", "cuda", "train"))
        ):
            return base
        if name in ("append", "extend", "update", "add") and args and not base.graph:
            holder = base.attrs.setdefault("<held>", None if "<bounded>" in base.attrs else [])
            if name == "append" and isinstance(holder, list):
                holder.append(args[0])
                self.watch_kept(span, args[0], holder, text(expr.func), plain=False)
            elif name == "update":
                self.merge(base, args[0])
            return None
        if name in _DATA_SIZE and base.batch:
            size = base.attrs.get("<size>")
            if size is not None and (not args or args[0] == 0):
                return self.data_size(size[0])
            made = self.opaque(f"{base.key}.{name}()", "size", batch=base.batch)
            if args and isinstance(args[0], int) and args[0] > 0:
                made.hint = "width"  # of a sample, however many there are
            return made
        if name in ("chunk", "split", "tensor_split") and args:
            return self.chunks(base, name, args, span, keywords.get("dim"))
        if name in ("items", "values") and not args and EVERY in base.attrs:
            # What was written by name since then is in it, too.
            later = [one for key, one in base.attrs.items() if key[:2] in ("['", '["')]
            every = [base.attrs[EVERY], *later]
            key = self.opaque(f"item({base.key}.keys())", "key")
            return every if name == "values" else [(key, one) for one in every]
        if name in ("items", "values", "keys", "copy") and not args:
            made = self.opaque(
                f"{base.key}.{name}()", base.name, owners=base.owners, graph=base.graph, batch=base.batch
            )
            made.hint = base.hint
            return made
        if name == "add_argument" and args:
            return self.add_argument(base, args, keywords)
        if name in ("parse_args", "parse_known_args"):
            made = self.opaque("args", "args")
            made.attrs["<parser>"] = base.attrs.get("<arguments>", {})
            for option, value in base.attrs.get("<arguments>", {}).items():
                made.attrs[option] = value
            return made if name == "parse_args" else (made, [])
        if name == "get" and args and isinstance(args[0], str):
            return self.item(base, args[0], span)
        if name == "clip_grad_norm_" or name == "clip_grad_value_":
            self.event("clip", span)
            return self.opaque(f"norm:{span.row}", "grad_norm")
        if name == "get_global_grad_norm":
            for optimizer in self.run.optimizers:  # The model is DeepSpeed's engine, which zeroes by itself.
                self.event("opaque", span, what=f"{base.name}.{name}", value=optimizer)
        if name == "forward" and not base.graph and not base.batch:
            return self.unknown_call(base, args, keywords, expr, frame)
        return _NOT_HANDLED

    def add_argument(self, parser: Opaque, args: list[Value], keywords: dict[str, Value]) -> None:
        """argparse: a default is a hint, not a constant."""
        flags = [one for one in args if isinstance(one, str)]
        long = [flag for flag in flags if flag.startswith("--")] or flags
        name = keywords.get("dest") or (long[0].lstrip("-").replace("-", "_") if long else "")
        if not isinstance(name, str) or not name:
            return
        made = self.opaque(f"args.{name}", name)
        default = keywords.get("default")
        if isinstance(default, int) and not isinstance(default, bool):
            self.world.hints.setdefault(made.key, default)
        parser.attrs.setdefault("<arguments>", {})[name] = made

    def arithmetic_method(self, base: Opaque, name: str, other: Value, span: Span) -> Value:
        """`loss.div(k)`, `loss.mul_(1 / k)` on something unknown, which may turn out to be a loss."""
        lossy = base.graph or self.promote_loss(base)
        if name in QUOTIENTS:
            return self.binary(QUOTIENTS[name], base, other, span)
        if lossy:
            kept = self.as_loss(base, span)
            return self.changed(kept, self.binary(IN_PLACE[name], kept, other, span, True), span)
        if name == "add_":
            return _NOT_HANDLED
        base.attrs["<computed>"] = True
        return base

    def backward_method(self, base: Opaque, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        """`x.backward(...)` on something unknown: a loss, or a wrapper that is given one."""
        self.run.freezes |= "inputs" in keywords
        given = args[0] if args else keywords.get("loss")
        if (
            given is not None
            and type(given) in (Tensor, Opaque)
            and (given.graph or names.is_loss_name(getattr(given, "name", "")))
        ):
            if _is_accelerator(base.name):
                return self.accelerator_method(self.as_accelerator(base), "backward", args, keywords, span)
            if names.is_optimizer_name(base.name):
                self.backward(given, span, sure=False, via="optimizer")
                return None
            if "fabric" in base.name.lower():
                self.backward(given, span, via="fabric")
                return None
            self.event("engine", span, name=base.name)
            for term in self.as_loss(given, span).terms or () if given.graph else ():
                term.sent += 1
            return None
        if args and not base.graph and self.is_module_like(base):
            self.event("engine", span, name=base.name)  # A method of its own: `stage.backward(inputs, outputs, grads)`.
            return None
        if not base.graph and self.grad_enabled:
            # Whatever it is made from, it is a loss.
            base.graph = True
            base.owners = base.owners or self.unseen_owners(base.name)
        self.backward(base, span)
        return None

    def step_method(self, base: Opaque, name: str, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        """`x.step(...)` on something unknown: optimizer, scheduler, scaler, or something else."""
        first: Value = args[0] if args else keywords.get("optimizer")
        lossy = self.is_computed(first) or (type(first) is Opaque and names.is_loss_name(first.name))
        if lossy and not names.is_scheduler_name(base.name):
            # A step that takes the loss (a differentiable optimizer, an environment) works by itself.
            self.event("engine", span, name=base.name)
            return None
        if self.could_be_optimizer(first) and not names.is_scheduler_name(base.name):
            target = first if type(first) is v.Optimizer else self.as_optimizer(first)
            self.step(target, args[1:], {}, span)
            return None
        schedules = names.is_scheduler_name(base.name) and base.name not in self.world.zeroed_names
        if "<scheduler>" in base.attrs or (schedules and "<optimizer>" not in base.attrs):
            self.schedule(self.as_scheduler(base, span), args, span, absolute=name != "step" or bool(args))
            return None
        if name != "step":
            if "<optimizer>" in base.attrs or names.is_optimizer_name(base.name):
                self.event("engine", span, name=base.name)
                return None
            return _NOT_HANDLED
        if "<optimizer>" in base.attrs or names.is_optimizer_name(base.name) or base.key in self.world.zeroed_names:
            self.step(self.as_optimizer(base, span), args, keywords, span)
            return None
        if base.name in self.world.zeroed_names:
            self.step(self.as_optimizer(base, span), args, keywords, span)
            return None
        if self.is_module_like(base) and not args:
            self.event("engine", span, name=base.name)
            return None
        return _NOT_HANDLED

    def foreign_call(
        self, path: str, last: str, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        """A call into a package that acclint does not know."""
        span = expr.span
        values = [*args, *keywords.values()]
        if last == "scale_loss" and args:
            return ("scaled", args[0])
        if self.zeroed_by_name(last, values, span):
            return None
        if last == "optimizer_step" and args and self.could_be_optimizer(args[0]):  # torch_xla's
            return self.step_method(self.opaque(path, last), "step", args, keywords, span)
        if names.is_scaler_name(last) and last[:1].isupper():
            return v.Scaler(last)
        if path.startswith(META_LEARNING):
            self.run.notes.append(("losses of several tasks may be summed by design", span))
        for one in values:
            if type(one) is Closure and self.scanner.has_backward(one.function.body):
                self.engine_driven.append((one, path))
        batch = self.within_a_pass(self.batch_of(values))
        if last[:1].isupper() and not self.graph_owners(values) and not batch:
            key = f"{path}@{span.row}"
            made = self.opaque(key, "<" + last)
            if len(values) <= 3 and args and type(args[0]) is Closure:
                made.attrs["<wraps>"] = args[0]  # `self.step = Profiled(self.step, name)`
            if self.may_weigh(values, keywords):
                made.attrs["<k>"] = True
            made.attrs["<around>"] = next((one for one in values if type(one) is v.Optimizer), None)
            if names.is_loss_name(last):
                made.hint = "criterion"
            return made
        self.note_opaque(path, values, span)
        owners = NOBODY if path.startswith(_ARRAYS) or names.is_loader_name(last) else self.graph_owners(values)
        loaders = [
            one for one in values if type(one) is Loader or (type(one) is Opaque and names.is_loader_name(one.name))
        ]
        graph = self.grad_enabled and bool(owners) and (bool(batch) or any(self.carries_graph(one) for one in values))
        made = self.opaque(
            f"{path}({','.join(self.key(one) for one in args[:3])})", last, owners=owners, graph=graph, batch=batch
        )
        if names.is_loss_name(last):
            made.hint = "criterion"
            if any(self.carries_graph(one) for one in values):
                made.attrs["<scored>"] = True
        self.note_helper(made, expr)
        if names.is_optimizer_class(last):
            made.attrs.update({"<length>": keywords.get("t_total"), "<made>": span})  # BertAdam, copied into a project
        if loaders and not graph and not names.is_of_optimizer(last):
            made.hint, made.name = "loader", "loader"
        elif not graph and not batch:
            made.name = "<" + last
        made.attrs["<given>"] = {text(one): value for one, value in zip(expr.args, args, strict=False)}
        if self.may_weigh(values, keywords):
            made.attrs["<k>"] = True
        return made


def _gradients_in(values: list[Value]) -> list[v.Grad]:
    """The gradients that a call is given in lists: `multi_tensor_scale(..., [grads, copies], 1 / k)`."""
    lists = [one for one in values if isinstance(one, list)]
    lists += [inner for one in lists for inner in one if isinstance(inner, list)]
    return [one for inner in lists for one in inner if type(one) is v.Grad and one.shared]


def _is_accelerator(name: str) -> bool:
    return "accelerator" in names.words(name)
