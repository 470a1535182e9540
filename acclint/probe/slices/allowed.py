"""What a slice of a checked file may name: torch, the frameworks, and what touches nothing outside of its process.

This is the list by which slices are refused (`obstacle`) and by which their imports are answered (`reach.py`). It keeps
a file's statements from reaching files, programs and the network by accident or by the usual detours. What it takes to
hold against code that is written to break out is not here: the child that runs a slice is guarded besides (`guard.py`).

No torch is imported here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Modules of the standard library that touch nothing, and torch.
ALLOWED = word_set(
    "__future__ abc argparse bisect cmath collections contextlib copy dataclasses datetime decimal enum fractions "
    "functools heapq itertools math numbers operator random re statistics string time torch types typing "
    "typing_extensions warnings weakref"
)
FRAMEWORKS = frozenset({"accelerate", "lightning", "pytorch_lightning", "transformers"})
# Torch's modules, those in _TREES with all that is in them. The others load, compile, profile or start something.
_MODULES = word_set(
    "torch torch.utils torch.utils.data torch.utils.data.dataloader torch.utils.data.dataset torch.utils.data.sampler "
    "torch.utils.data.distributed torch.utils.checkpoint torch.distributed torch.cuda torch.cpu torch.mps torch.xpu "
    "torch.accelerator torch.autograd torch.autograd.function torch.autograd.functional torch.autograd.grad_mode "
    "torch.random torch.functional torch.types torch.version torch.return_types"
)
_TREES = word_set(
    "torch.nn torch.optim torch.amp torch.cuda.amp torch.cpu.amp torch.backends torch.distributions torch.linalg "
    "torch.fft torch.special torch.func torch.sparse torch.nested torch.masked torch.signal collections"
)

# Builtins that reach files, the terminal or code that is not in the slice.
BUILTINS_REFUSED = word_set(
    "open exec eval compile input breakpoint exit quit help copyright credits license memoryview"
)
# Members of allowed modules that do: they take the text of an attribute or of code, or the name of a file.
_MEMBERS = word_set(
    "attrgetter methodcaller get_type_hints ForwardRef evaluate_forward_ref singledispatch singledispatchmethod "
    "FunctionType LambdaType CodeType FileType formatwarning showwarning warn_explicit save load from_file "
    "import_ir_module import_ir_module_from_buffer PyTorchFileReader PyTorchFileWriter FileStore TCPStore HashStore"
)
_TAMED = frozenset({"save", "load"})  # of torch itself; see `tame.py`
# Attributes that lead from an object to the code and the frames around it.
_ATTRIBUTES = word_set(
    "gi_frame gi_code cr_frame cr_code ag_frame ag_code f_back f_builtins f_code f_globals f_locals tb_frame tb_next "
    "_evaluate"
)
# Attributes that lead to files, or to a module; a stand-in takes their place, whatever object has them.
REPLACED = word_set(
    "from_file _write_file _new_using_filename_cpu tofile ctypes multiprocessing_context _read_args_from_files"
)
_DUNDERS = word_set(
    "__init__ __new__ __call__ __class__ __name__ __qualname__ __module__ __doc__ __dict__ __version__ __len__ "
    "__getitem__ __setitem__ __delitem__ __contains__ __iter__ __next__ __reversed__ __enter__ __exit__ __aenter__ "
    "__aexit__ __getattr__ __setattr__ __delattr__ __post_init__ __init_subclass__ __repr__ __str__ __format__ __eq__ "
    "__ne__ __lt__ __le__ __gt__ __ge__ __hash__ __bool__ __int__ __float__ __index__ __add__ __sub__ __mul__ "
    "__truediv__ __floordiv__ __mod__ __pow__ __matmul__ __neg__ __abs__ __radd__ __rmul__ __iadd__ __isub__ __imul__ "
    "__itruediv__ __annotations__ __all__ __torch_function__"
)
_NAMES = word_set("__builtins__ __loader__ __spec__ __import__ __build_class__ __acc__ __acc_error__ __match_args__")
_PATTERNS = word_set("bool bytearray bytes dict float frozenset int list set str tuple")


def is_open(module: str) -> bool:
    """Whether a slice may have this module, given by its full name."""
    root = module.partition(".")[0]
    if root != "torch" and root in ALLOWED | FRAMEWORKS:
        return root in FRAMEWORKS or "." not in module or root in _TREES
    return module in _MODULES or any(module == tree or module.startswith(tree + ".") for tree in _TREES)


def is_refused(attribute: str) -> bool:
    """Whether an attribute of this name leads out of the slice, whatever object has it."""
    special = attribute.startswith("__") and attribute.endswith("__")
    return attribute in _ATTRIBUTES or (special and attribute not in _DUNDERS)


def is_refused_member(module: str, name: str) -> bool:
    """The same for a member of an allowed module: there, private functions and modules are refused, too."""
    root = module.partition(".")[0]
    private = name.startswith("_") and not name.startswith(("__", "_foreach_", "_assert"))
    if name in _MEMBERS:
        return not (module == "torch" and name in _TAMED) and root not in FRAMEWORKS
    return is_refused(name) or (private and root != "torch" and root not in FRAMEWORKS)


def obstacle(tree: ast.AST) -> str:
    """The first thing in a program that a slice must not name, and its row; empty without one."""
    found = sorted((row, name) for node in ast.walk(tree) for row, name in _refused(node))
    return f"`{found[0][1]}` (line {found[0][0]})" if found else ""


def _refused(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Attribute) and is_refused(node.attr):
        yield node.lineno, node.attr
    elif isinstance(node, ast.Name) and node.id in _NAMES:
        yield node.lineno, node.id
    elif isinstance(node, ast.MatchClass):  # reads attributes: those it names, and those that the class lists
        for name in node.kwd_attrs:
            if is_refused(name) or name == "__dict__" or name in REPLACED:
                yield node.lineno, name
        if node.patterns and not (isinstance(node.cls, ast.Name) and node.cls.id in _PATTERNS):
            yield node.lineno, f"case {ast.unparse(node.cls)}(...)"
