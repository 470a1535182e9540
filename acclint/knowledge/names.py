"""The vocabulary of training scripts: what a name says about the thing it names.

A name is taken apart into words at underscores and case changes, and judged by its words: `accum_steps`,
`gradientAccumulationSteps` and `GRAD_ACC` are accumulation names, `accuracy` and `accumulator` are not. A name is the
weakest kind of evidence; each function here says only "a person would call it so".
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")

_SPLIT = {
    # Written as one word often enough to be taken apart.
    "dataloader": ("data", "loader"),
    "trainloader": ("train", "loader"),
    "valloader": ("val", "loader"),
    "testloader": ("test", "loader"),
    "batchsize": ("batch", "size"),
    "minibatch": ("mini", "batch"),
    "microbatch": ("micro", "batch"),
    "minibatches": ("mini", "batches"),
    "microbatches": ("micro", "batches"),
    "microsteps": ("micro", "steps"),
    "gradaccum": ("grad", "accum"),
    "gradacc": ("grad", "acc"),
    "accumsteps": ("accum", "steps"),
    "accumstep": ("accum", "step"),
    "accumgrad": ("accum", "grad"),
    "accumiter": ("accum", "iter"),
    "nacc": ("n", "acc"),
    "numepochs": ("num", "epochs"),
    "nepochs": ("n", "epochs"),
    "nepoch": ("n", "epoch"),
    "maxiter": ("max", "iter"),
    "maxiters": ("max", "iters"),
    "maxsteps": ("max", "steps"),
    "itersize": ("iter", "size"),
    "worldsize": ("world", "size"),
    "logfreq": ("log", "freq"),
    "printfreq": ("print", "freq"),
    "savefreq": ("save", "freq"),
    "lrscheduler": ("lr", "scheduler"),
    "gradscaler": ("grad", "scaler"),
}


@lru_cache(maxsize=8192)
def words(name: str) -> tuple[str, ...]:
    """The lower-case words of a snake_case, camelCase or CONSTANT name; of a dotted one, those of its last part."""
    found: list[str] = []
    for word in _WORD.findall(name.rpartition(".")[2]):
        low = word.lower()
        found.extend(_SPLIT.get(low, (low,)))
    return tuple(found)


_VERBS = _set(
    "get set build create make setup configure add register init load save use skip split dispatch reset restore "
    "resume "
    "prepare update adjust mocked dummy find calculate compute"
)
"""A name that begins with one of these is a function or a flag, not a thing."""


def _is_verb(sequence: tuple[str, ...]) -> bool:
    return bool(sequence) and sequence[0] in _VERBS


def _ends(sequence: tuple[str, ...], *endings: str) -> bool:
    return bool(sequence) and sequence[-1] in endings


def _pairs(sequence: tuple[str, ...], firsts: frozenset[str], seconds: frozenset[str]) -> bool:
    """Whether a word of `firsts` is directly followed by one of `seconds`."""
    return any(a in firsts and b in seconds for a, b in pairwise(sequence))


_COUNT = _set("n num number k nr count")
_STEPS = _set("step steps iter iters iteration iterations batch batches freq frequency every interval")
_GRAD = _set("grad grads gradient gradients")
_ACC = _set("accum accumulate accumulation accumulations accumulated accu acc")
_STRONG_ACC = _set("accum accumulation accumulations accumulate")
# A word beside "accumulate" that makes it a running value, a flag or a tool, not the length of a window.
_NOT_ACC = _set(
    "hook boundary sync no loss losses metric metrics reward rewards accuracy acc1 acc5 score scores correct "
    "error errors time total buffer "
    "idx index counter current cur scheduler optimizer context ctx fn func function type dtype mode is should use do "
    "enable enabled flag logits output outputs output_ result results plugin config cfg kwargs args dir path value "
    "values tokens hidden state states mean best top top1 top5 test val valid validation eval train training"
)


@lru_cache(maxsize=8192)
def is_accumulation_name(name: str) -> bool:
    """Whether a name says "accumulation steps": micro-batches per update (k)."""
    parts = words(name)
    if not parts or (_is_verb(parts) and parts[0] != "update"):
        return False
    known = set(parts)
    if _pairs(parts, frozenset({"iter"}), frozenset({"size"})) and len(parts) == 2:
        return True  # Caffe's name
    if parts in (
        ("subdivisions",),
        ("subdivision",),
        ("update", "freq"),
        ("update", "frequency"),
        ("virtual", "batch"),
    ):
        return True  # darknet's, fairseq's
    if (
        _pairs(parts, frozenset({"update"}), frozenset({"freq", "frequency"}))
        and known <= {"update", "freq", "frequency", "args", "cfg"} | _GRAD
    ):
        return True
    if parts in (
        ("backward", "passes", "per", "step"),
        ("micro", "batches", "per", "step"),
        ("mini", "batches", "per", "step"),
        ("micro", "steps", "per", "update"),
        ("iteration", "per", "update"),
        ("iterations", "per", "update"),
        ("acc", "it"),
    ):
        return True
    if _is_micro_batch_count(parts):
        return True
    if known & _STRONG_ACC:
        rest = known - _STRONG_ACC
        if rest & (_NOT_ACC - {"train", "training", "total"}):
            return False
        if known & (_GRAD | _STEPS | _COUNT | {"to", "size", "factor", "ga", "per", "rate"}):
            # `accumulated_grad` and `accum_grads` are gradients; `accum_grad` is ESPnet's k.
            return not (known & {"grads", "gradients"} and not known & (_STEPS | _COUNT | {"every", "batches"}))
        return rest <= {"k", "n"} or rest <= {"args", "cfg", "hps", "opt", "default"}
    if "accu" in known and known & (_GRAD | _STEPS | _COUNT):
        return True
    if parts in (("accumulative", "counts"), ("batches", "per", "step"), ("batches", "per", "update")):
        return True  # mmengine's
    if "acc" in known:
        # `acc` alone is accuracy; beside "grad" or "steps" or as n_acc it is accumulation.
        if known & _NOT_ACC:
            return False
        if known & _GRAD and not known & {"grads", "gradients"}:
            return True
        if known & (_STEPS - {"every", "interval", "batch"}):
            return True
        return parts in (("n", "acc"), ("num", "acc"), ("acc", "num"))
    if "accumulated" in known or "accumulating" in known:
        return False
    return parts in (("gas",), ("ga", "steps"), ("ga", "step"), ("grad", "steps", "per", "update"))


def _is_micro_batch_count(parts: tuple[str, ...]) -> bool:
    """`num_micro_batches`, `n_microbatches`, `micro_batches`, `num_virtual_batches`, `batch_split`."""
    if parts in (("micro", "batches"), ("batch", "split"), ("batch", "splits"), ("batch", "multiplier")):
        return True
    if len(parts) >= 3 and parts[0] in _COUNT and parts[1] in ("micro", "virtual"):
        return parts[2] in ("batch", "batches", "step", "steps") and not _ends(parts, "size", "sizes")
    return False


@lru_cache(maxsize=8192)
def is_micro_batch_size_name(name: str) -> bool:
    """Whether a name says "samples per micro-batch"."""
    parts = words(name)
    if not parts or not set(parts) & {"size", "bs", "bsz", "samples"}:
        return False
    return _pairs(parts, frozenset({"micro", "sub"}), frozenset({"batch", "bs", "bsz"})) or _pairs(
        parts, frozenset({"per"}), frozenset({"gpu", "device"})
    )


@lru_cache(maxsize=8192)
def is_batch_size_name(name: str) -> bool:
    """Whether a name says "samples per batch", micro or effective."""
    parts = words(name)
    known = set(parts)
    if not parts:
        return False
    if parts in (("bs",), ("bsz",), ("batch",), ("b",)):
        return parts != ("batch",) and parts != ("b",)
    if known & {"bs", "bsz"}:
        return len(parts) <= 3
    return _pairs(parts, frozenset({"batch", "batches"}), frozenset({"size", "sizes"})) or (
        parts[-1:] == ("gpu",) and _pairs(parts, frozenset({"samples", "batch", "images", "imgs"}), frozenset({"per"}))
    )


_EPOCH = frozenset({"epoch", "epochs", "ep"})


_EFFECTIVE = _set(
    "total effective global virtual target full large big real update optim optimizer step val valid eval test"
)


def is_loader_batch_size_name(name: str) -> bool:
    """Whether a name says "samples per batch of the training loader", not per update or of another loader."""
    return is_batch_size_name(name) and not _EFFECTIVE & set(words(name))


@lru_cache(maxsize=8192)
def is_epoch_name(name: str) -> bool:
    """Whether a name is a count or an index of epochs (not of steps per epoch)."""
    parts = words(name)
    known = set(parts)
    if not known & _EPOCH:
        return False
    if "per" in known or known & (_STEPS - {"every", "interval", "freq", "frequency"}):
        return False
    return not known & {
        "loss",
        "losses",
        "acc",
        "accuracy",
        "time",
        "metric",
        "metrics",
        "size",
        "len",
        "length",
        "logs",
        "bar",
    }


_LIMIT_HEAD = _set("max maximum total num n number train training t")
_PLURAL_UNIT = _set("steps iters iterations updates")
_LIMIT_UNIT = _set("step steps iter iters iteration iterations update updates")


@lru_cache(maxsize=8192)
def is_limit_name(name: str) -> bool:
    """Whether a name is a number of steps or updates at which something ends (max_steps, num_training_steps, ...)."""
    parts = words(name)
    if _is_verb(parts):
        return False
    known = set(parts)
    if parts == ("t", "total"):
        return True  # pytorch_transformers' name
    if not known & _LIMIT_UNIT or is_accumulation_name(name) or is_interval_name(name):
        return False
    if known & {
        "current",
        "cur",
        "global",
        "log",
        "logging",
        "eval",
        "save",
        "val",
        "validation",
        "ddim",
        "inference",
        "diffusion",
        "step_size",
        "size",
        "micro",
    }:
        return False
    if len(parts) == 1:
        return False
    plural = known & _PLURAL_UNIT
    if known & {"max", "maximum", "total", "warmup", "decay"}:
        return "per" not in known or bool(plural)
    # `train_step` and `step_num` are not limits; `train_steps`, `num_steps` and `steps_per_epoch` are.
    return bool(plural) and (bool(known & _LIMIT_HEAD) or "per" in known)


_TURN = _set("step iter iteration idx index itr it i id")
_TURN_OF = _set("accum batch micro step global train training cur current n iter local update")


@lru_cache(maxsize=8192)
def is_turn_name(name: str) -> bool:
    """Whether an argument of this name says which turn of the training loop it is (batch_idx, train_iter, i, ...)."""
    parts = words(name)
    if parts == ("id",) or not parts or parts[-1] not in _TURN:
        return False
    return all(part in _TURN_OF for part in parts[:-1])


_LOADER = _set("loader loaders dl dls dataloaders batches iterator minibatches")


@lru_cache(maxsize=8192)
def is_loader_name(name: str) -> bool:
    """Whether a name is something that yields micro-batches."""
    parts = words(name)
    if _is_verb(parts):
        return False
    if not parts:
        return False
    if parts[0] in _COUNT | {"len", "length", "size", "max", "total", "idx", "index", "steps"} or is_batch_size_name(
        name
    ):
        return False
    if parts[-1] in _LOADER:
        return True
    if parts[-1] in ("iter", "it", "gen", "generator") and len(parts) > 1:
        return parts[-2] in ("data", "loader", "train", "training", "batch", "trn", "dl")
    if parts[-1] in ("dataset", "ds") and len(parts) > 1:
        return False
    return parts in (("train", "data"), ("training", "data"), ("pbar",)) or (
        "loader" in parts and parts[-1] in ("train", "training", "src", "tgt", "source", "target", "u", "x", "l")
    )


_OPTIMIZER_CLASSES = re.compile(r"(Adam(W|ax)?|ADAM|SGD|Lamb|LAMB|Optimizer|Optim|Adafactor|RMSprop|Adagrad|Lion)$")


def is_optimizer_class(name: str) -> bool:
    """Whether a class of this name is an optimizer."""
    return bool(_OPTIMIZER_CLASSES.search(name))


def is_rate_name(name: str) -> bool:
    """Whether a name is a learning rate."""
    said = words(name)
    return "lr" in said or ("rate" in said and "learning" in said)


_ATTACKS = _set("attack perturb perturbation fgsm pgd")


@lru_cache(maxsize=8192)
def is_attack_name(name: str) -> bool:
    """Whether a function of this name changes inputs or embeddings by their gradients (adversarial training)."""
    return bool(_ATTACKS & set(words(name)))


_GRADIENTS = _set("grad grads gradients")
_KEEPS = _set("copy add store save restore accumulate collect stash backup swap")


@lru_cache(maxsize=8192)
def keeps_gradients(name: str) -> bool:
    """Whether a model's method of this name keeps its gradients elsewhere, or puts them back: `add_copy_grad`."""
    said = set(words(name))
    return bool(said & _GRADIENTS and said & _KEEPS)


_GROUPS = _set("optimizers optimisers optims schedulers")


def is_group_name(name: str) -> bool:
    """Whether a name is that of several optimizers or schedulers."""
    return not _GROUPS.isdisjoint(words(name))


_IDLE_STEPS = _set("reporter logger writer log pbar bar progress profiler prof timer meter tracker env run early")


def has_idle_step(name: str) -> bool:
    """Whether something of this name has a `step()` that updates nothing."""
    return not _IDLE_STEPS.isdisjoint(words(name))


_LOADERS = re.compile(r"load|(?<![a-z])dl(?![a-z])", re.IGNORECASE)


def mentions_loader(text: str) -> bool:
    """Whether a loader is named somewhere in a text."""
    return bool(_LOADERS.search(text))


_CLEARS = _set("zero clear clean reset")
_GRADIENTS = _set("grad grads gradient gradients")
_WHOSE = _set(
    "all up out set to the of model models net nets network optimizer optimizers opt optim param params parameters"
)
_ANYTHING = _CLEARS - {"reset"} | _set("all up")


@lru_cache(maxsize=8192)
def is_zeroing_name(name: str) -> bool:
    """Whether a name is that of a function that zeroes gradients: `zero_grad`, `reset_all_gradients`."""
    parts = set(words(name))
    return bool(parts & _CLEARS and parts & _GRADIENTS) and parts <= _CLEARS | _GRADIENTS | _WHOSE


@lru_cache(maxsize=8192)
def may_zero(name: str) -> bool:
    """Whether a function of this name may well zero gradients, among other things: `clear`, `zero_all`."""
    parts = set(words(name))
    return bool(parts & _CLEARS) and parts <= _ANYTHING


@lru_cache(maxsize=8192)
def freezes(name: str) -> bool:
    """Whether a name says which parameters take gradients: `requires_grad`, `toggle_grad`, `freeze`."""
    parts = set(words(name))
    switches = bool(parts & {"set", "enable", "disable", "stop", "switch", "turn"}) and not parts & {"enabled", "none"}
    return (
        bool(parts & {"freeze", "frozen", "unfreeze", "trainable", "toggle", "untoggle"})
        or {"requires", "grad"} <= parts
        or (switches and bool(parts & _GRAD))
    )


_TRIAL = re.compile(
    r"(?<![a-z])(find|search|probe|bench(mark)?|sanity|overfit|smoke|(dry|dev)_?run|debug|profil\w*)(?![a-z])",
    re.IGNORECASE,
)


@lru_cache(maxsize=8192)
def is_trial(text: str) -> bool:
    """Whether a test asks for a trial instead of a training: how large a batch fits, which learning rate is best."""
    return _TRIAL.search(text) is not None


_SWITCH = re.compile(
    r"accum\w*_?grad|grad\w*_?accum|accum\w*_?(steps?|iters?|every|freq|batches)"
    r"|(?<![a-z_])accum(ulat(e|ion))?(?![a-z_])",
    re.IGNORECASE,
)


def is_accumulation_switch(test: str) -> bool:
    """Whether a test asks for accumulation at all: `config["accumulate_gradients"] is None`."""
    return _SWITCH.search(test) is not None


_WAY = re.compile(
    r"(?<![a-z])(amp|fp_?16|bf_?16|float16|half|mixed_precision|precision|scaler|apex|deepspeed|fsdp|ddp|distributed"
    r"|data_?parallel|n?_?gpus?|cuda|tpu|xla|local_rank|world_size)(?![a-z])|(?<![a-z_])rank(?![a-z_])",
    re.IGNORECASE,
)


def is_way_of_computing(test: str) -> bool:
    """Whether a test is about how to compute the same thing: the precision, the devices, a wrapper for them."""
    return _WAY.search(test) is not None


_OPTIMIZER = _set("optimizer optimizers optim optims optimiser optimisers opt opts")


@lru_cache(maxsize=8192)
def is_optimizer_name(name: str) -> bool:
    """Whether a name is an optimizer (`opt` is also used for parsed options: use it with other evidence)."""
    parts = words(name)
    if _is_verb(parts):
        return False
    if not set(parts) & _OPTIMIZER:
        return False
    return not set(parts) & {
        "scheduler", "sched", "lr", "step", "steps", "state", "cls", "class", "type", "name", "kwargs", "args",
        "config", "cfg", "params", "idx", "index", "path", "interval", "level", "fn", "func", "wrapper",
        "parameters", "num",
    }  # fmt: skip


_SCHEDULER = _set("scheduler schedulers sched scheds schedule lrs schedular warmup")


@lru_cache(maxsize=8192)
def is_of_optimizer(name: str) -> bool:
    """Whether a function is about an optimizer, its rate or schedule: `build_optimizer(args, model, len(loader))`."""
    return not _OPTIMIZER.isdisjoint(words(name)) or not (_SCHEDULER | {"lr"}).isdisjoint(words(name))


@lru_cache(maxsize=8192)
def is_scheduler_name(name: str) -> bool:
    """Whether a name is a learning-rate scheduler object."""
    parts = words(name)
    if _is_verb(parts):
        return False
    known = set(parts)
    if not known & _SCHEDULER or known & {"noise", "ddpm", "ddim", "diffusion", "sampling", "timestep", "beta", "ema"}:
        return False
    if known & {
        "type",
        "name",
        "kwargs",
        "args",
        "config",
        "cfg",
        "cls",
        "class",
        "state",
        "fn",
        "step",
        "steps",
        "epochs",
    }:
        return False
    if known & {"warmup", "lrs"}:
        return parts in (
            ("lrs",),
            ("warmup", "scheduler"),
            ("scheduler", "warmup"),
            ("lr", "warmup"),
            ("warmup", "sched"),
        )
    return True


@lru_cache(maxsize=8192)
def is_scaler_name(name: str) -> bool:
    """Whether a name is a gradient scaler (loss scaling for float16), not a data scaler."""
    parts = words(name)
    if _is_verb(parts):
        return False
    known = set(parts)
    if not known & {"scaler", "scalers"}:
        return False
    return not known & {
        "standard",
        "std",
        "minmax",
        "min",
        "max",
        "data",
        "feature",
        "target",
        "x",
        "y",
        "robust",
        "state",
        "states",
        "dict",
        "path",
        "kwargs",
        "config",
    }


_LOSS = _set("loss losses")
_NOT_LOSS = _set(
    "fn func function functions name names type types weight weights coef coeff lambda scale scaler scaling factor "
    "factors multiplier ratio log logger logs "
    "meter meters avg average running history hist best val valid validation eval test epoch total sum mean list "
    "dict key keys module cls class dir path plot file ema prev last cum cumulative tracker"
)


@lru_cache(maxsize=8192)
def is_loss_name(name: str) -> bool:
    """Whether a name is a loss value of the current micro-batch (no function, weight, meter or running sum)."""
    parts = words(name)
    known = set(parts)
    if not parts:
        return False
    if parts in (
        ("total", "loss"),
        ("loss", "total"),
        ("loss", "sum"),
        ("mean", "loss"),
        ("loss", "mean"),
        ("avg", "loss"),
    ):
        return True
    if parts[0] == "err" and len(parts) <= 2 and (len(parts) == 1 or parts[1] in ("d", "g")):
        return True  # errD, errG: GANs
    return bool(known & _LOSS) and not known & _NOT_LOSS


@lru_cache(maxsize=8192)
def is_criterion_name(name: str) -> bool:
    """Whether an object is a loss function, by its name."""
    return bool(_LOSS.union(("criterion", "criteria", "objective")).intersection(words(name)))


_INTERVAL_HEAD = _set(
    "log logging print save saving eval evaluate evaluation val valid validation validate checkpoint checkpointing "
    "ckpt report display sample vis visualize test snapshot summary wandb tb sync generate sampling image plot dump "
    "gc verbose disp show progress"
)
_INTERVAL_TAIL = _set("every interval intervals freq frequency step steps iter iters iterations period each n")


@lru_cache(maxsize=8192)
def is_interval_name(name: str) -> bool:
    """Whether a name says "log, save or evaluate every so many steps"."""
    parts = words(name)
    known = set(parts)
    if len(parts) == 1 or is_accumulation_name(name):
        return False
    if known & _INTERVAL_HEAD and known & _INTERVAL_TAIL:
        return not known & {"max", "total"}
    return parts in (("steps", "per", "print"), ("every", "n", "steps"))


@lru_cache(maxsize=8192)
def is_world_size_name(name: str) -> bool:
    """Whether a name is a number of processes or devices."""
    parts = words(name)
    if _is_verb(parts):
        return False
    if parts in (
        ("world", "size"),
        ("ws",),
        ("ngpu",),
        ("ngpus",),
        ("nprocs",),
        ("dp", "size"),
        ("dp", "world", "size"),
        ("ddp", "world", "size"),
    ):
        return True
    if _pairs(parts, frozenset({"world"}), frozenset({"size"})):
        return True
    if "tokens" in parts or "samples" in parts or "batch" in parts:
        return False
    return len(parts) >= 2 and parts[0] in _COUNT and parts[-1] in (
        "gpu", "gpus", "processes", "replicas", "ranks", "devices", "nodes", "procs", "rank",
    )  # fmt: skip


_METRICS = _set("score scores metric metrics accuracy acc iou miou auc f1 precision recall psnr bleu rouge wer cer")


def is_metric_name(name: str) -> bool:
    """Whether a function computes a metric, by its name."""
    parts = set(words(name))
    return bool(parts & _METRICS) and "loss" not in parts


_COUNTED = _set("correct count counts accuracy acc acc1 acc5 top1 top5 hits tp fp fn tn")


def is_count_name(name: str) -> bool:
    """Whether an entry of a record is a count or a share of right answers, which no gradient flows through."""
    parts = words(name)
    return bool(parts) and not _COUNTED.isdisjoint(parts) and "loss" not in parts


_START = _set("warmup start begin delay after until from since")


@lru_cache(maxsize=8192)
def is_start_name(name: str) -> bool:
    """Whether a name is a step or an epoch from which on something happens (`discriminator_warmup`, `start_iter`)."""
    return not _START.isdisjoint(words(name))


_HOOK = _set("hook hooks callback callbacks cb cbs handler handlers event events window reset updated")
_HOOKED = _set("on before after call notify trigger fire emit begin start")


@lru_cache(maxsize=8192)
def may_call_back(name: str) -> bool:
    """Whether what is called so may hand over to code of the user, which may do anything (`on_step_end`)."""
    parts = words(name)
    return bool(parts) and (parts[0] in _HOOKED or not _HOOK.isdisjoint(parts))


def is_loading_name(name: str) -> bool:
    """Whether what is called so reads back what an earlier run has saved, if there is anything (`load_checkpoint`)."""
    return words(name)[:1] in (("load",), ("resume",), ("restore",))


_INDEX = _set("ids idx idxs indices index indexes")


@lru_cache(maxsize=8192)
def is_index_name(name: str) -> bool:
    """Whether a name says that its values are positions, which no gradient flows through (`ids_slice`, `idx`)."""
    parts = words(name)
    return bool(parts) and not _INDEX.isdisjoint((parts[0], parts[-1]))
