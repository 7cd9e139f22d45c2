"""What stands behind a name that the user has registered, as a hash that changes when the code does, or what it reads, and with
nothing else.

Followed are functions, classes with their members and bases, closures, `partial`, and what a function names of the user's own: at
the top level of its module (a helper, a constant, a list, an array, a network), or in another module of the user's. Comments and
the layout of the code do not count; docstrings do. An installed package, Python's library and this package stand for themselves by
name. What the code changes while a run is computed counts as it was before (`keep`); a global or a class attribute that the code
itself rebinds is not followed.
"""

import ast
import dis
import hashlib
import inspect
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property, partial, partialmethod
from importlib import import_module
from importlib.util import find_spec, resolve_name
from itertools import pairwise
from pathlib import PurePath
from textwrap import dedent
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from metaug_core.registry import Registry

PACKAGE = __name__.partition(".")[0]
SEMANTICS = 2  # goes up when the same code of a user trains otherwise
CONSTANTS = (str, bytes, int, float, complex, bool, type(None), type(Ellipsis))
WRITTEN_OF_TORCH = {("torch", "dtype"), ("torch", "device")}
WRITTEN = (PurePath, range, slice, re.Pattern)  # objects that their repr describes
BOOKKEEPING = {
    "__module__",
    "__qualname__",
    "__doc__",
    "__dict__",
    "__weakref__",
    "__firstlineno__",
    "__static_attributes__",
    "__annotations__",
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__abstractmethods__",
    "_abc_impl",
    "__dataclass_params__",
    "description",
}  # fmt: skip  (the last is made of the other members)


_kept: dict[tuple[int, ...], str] = {}  # digests while a run is computed, by the ids of what is registered
_before: dict[str, str] = {}  # digest of code that has run and has changed what it reads -> digest before


def digest(entries: Sequence[object]) -> str:
    """16 hexadecimal digits for what is registered; the same in every process."""
    now = _kept.get(tuple(map(id, entries))) or compute_digest(entries)
    return _before.get(now, now)


def compute_digest(entries: Iterable[object]) -> str:
    """`digest` of what the code is and reads at this moment."""
    seen: dict[int, object] = {}
    texts = [text for entry in entries for text in told(entry, seen, entry=True)]
    return hashlib.sha256("\n".join([str(SEMANTICS), *texts]).encode()).hexdigest()[:16]


@contextmanager
def keep(groups: Iterable[Sequence[object]]) -> Iterator[None]:
    """Context manager for the computing of runs: the digests of these groups of entries stay what they are, within and afterwards,
    whatever the code changes of what it reads (a list that it appends to)."""
    digests = [(group, digest(group)) for group in groups]
    outer = dict(_kept)
    _kept.update({tuple(map(id, group)): value for group, value in digests})
    try:
        yield
    finally:
        _kept.clear()
        _kept.update(outer)
        _before.update({compute_digest(group): value for group, value in digests})


def told(thing: Any, seen: dict[int, object], entry: bool = False) -> Iterator[str]:
    """The texts that say what a thing is. seen: what was told already. entry: it is what is registered, so its attributes count."""
    if constant(thing):
        yield written(thing)
        return
    if id(thing) in seen:
        return
    seen[id(thing)] = thing  # kept, so that no other gets its number
    if users(type(thing).__module__):
        yield from told(type(thing), seen)
    if isinstance(thing, classmethod | staticmethod):
        yield from told(thing.__func__, seen)
    elif isinstance(thing, MethodType):
        yield from (text for part in (thing.__func__, thing.__self__) for text in told(part, seen))
    elif isinstance(thing, cached_property):
        yield from told(thing.func, seen)
    elif isinstance(thing, property):
        yield from (text for part in (thing.fget, thing.fset) for text in told(part, seen))
    elif isinstance(thing, partial | partialmethod):
        yield from (text for part in (thing.func, *thing.args) for text in told(part, seen))
        yield from members(thing.keywords, seen)
    elif isinstance(thing, FunctionType):
        yield from of_function(thing, seen)
    elif isinstance(thing, type):
        yield from of_class(thing, seen)
    elif isinstance(thing, WRITTEN) or (type(thing).__module__, type(thing).__name__) in WRITTEN_OF_TORCH:
        yield repr(thing)
    elif isinstance(thing, Mapping) and not isinstance(thing, Registry):
        yield from members({str(key): value for key, value in thing.items()}, seen)
    elif isinstance(thing, set | frozenset):
        yield from sorted(text for part in thing for text in told(part, seen))
    elif isinstance(thing, list | tuple | deque):
        yield f"list of {len(thing)}"
        yield from (text for part in thing for text in told(part, seen))
    elif hasattr(thing, "__array__"):
        yield from of_numbers(thing, seen)
    else:
        yield from told(type(thing), seen)
        wrapped = getattr(thing, "__wrapped__", None)  # what functools.cache or the like decorates
        if wrapped is not None:
            yield from told(wrapped, seen)
        if entry or is_followed(thing):
            yield from members(attributes(thing), seen)


def is_followed(thing: object) -> bool:
    """Whether an object's attributes count: of one of the user's classes, a network, or a part of this package (a config holds
    paths, which are of a machine)."""
    modules = [cls.__module__ for cls in type(thing).__mro__]
    of_package = modules[0].startswith(f"{PACKAGE}.") and modules[0] != f"{PACKAGE}.config"
    return of_package or users(modules[0]) or "torch.nn.modules.module" in modules


def attributes(thing: object) -> dict[str, Any]:
    """What an object holds, by name."""
    slots = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ()) if hasattr(thing, name)]
    return {name: getattr(thing, name) for name in slots} | getattr(thing, "__dict__", {})


def of_numbers(thing: Any, seen: dict[int, object]) -> Iterator[str]:
    """A tensor or an array: its kind, its shape and a hash of its bytes."""
    try:
        if hasattr(thing, "detach"):  # a tensor: numpy does not know all its kinds
            kind, shape = thing.dtype, tuple(thing.shape)
            array = thing.detach().cpu().contiguous().flatten().view(sys.modules["torch"].uint8).numpy()
        else:
            array = sys.modules["numpy"].ascontiguousarray(thing)
            kind, shape = array.dtype, array.shape
        if array.dtype.hasobject:
            yield from told(array.tolist(), seen)
        else:
            yield f"{kind} {shape} {hashlib.sha256(array.reshape(-1).view('u1')).hexdigest()}"
    except (RuntimeError, TypeError, ValueError):  # without values of its own: sparse, on the device meta
        yield name_of(type(thing))


def members(attributes: Mapping[str, Any], seen: dict[int, object]) -> Iterator[str]:
    for name, value in attributes.items():
        if name not in BOOKKEEPING:
            yield name
            yield from told(value, seen)


def of_class(cls: type, seen: dict[int, object]) -> Iterator[str]:
    yield name_of(cls)
    if users(cls.__module__):
        codes = [value.__code__ for value in vars(cls).values() if isinstance(value, FunctionType)]
        state = {name for code in codes for name in rebound(code)}
        yield from members({name: value for name, value in vars(cls).items() if name not in state}, seen)
        yield from (text for base in cls.__bases__ for text in told(base, seen))


def of_function(function: FunctionType, seen: dict[int, object]) -> Iterator[str]:
    if not users(function.__globals__.get("__name__")):
        yield name_of(function)
        yield from told(getattr(function, "__wrapped__", None), seen)  # what torch.no_grad() or the like decorates
        return
    code = function.__code__
    yield text_of(code)
    yield from (text for value in function.__defaults__ or () for text in told(value, seen))
    yield from members(function.__kwdefaults__ or {}, seen)
    for cell in function.__closure__ or ():
        try:
            yield from told(cell.cell_contents, seen)
        except ValueError:  # not filled yet
            continue
    used = names(code, "LOAD_GLOBAL", "LOAD_NAME") - names(code, "STORE_GLOBAL")
    values = [function.__globals__[name] for name in sorted(used & function.__globals__.keys())]
    parts = names(code, "LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
    for value in [*values, *imported_within(code, function.__globals__.get("__package__"))]:
        yield from of_module(value, parts, seen) if isinstance(value, ModuleType) else told(value, seen)


def of_module(module: ModuleType, parts: set[str], seen: dict[int, object]) -> Iterator[str]:
    """The parts of a module of the user's, and of its modules."""
    if users(module.__name__):
        for name in sorted(parts & vars(module).keys()):
            value = vars(module)[name]
            yield from of_module(value, parts - {name}, seen) if isinstance(value, ModuleType) else told(value, seen)


def imported_within(code: CodeType, package: str | None) -> Iterator[ModuleType]:
    """The user's own modules that a function imports when it runs."""
    for part in inner(code):
        steps = [*dis.get_instructions(part)]
        for level, _, step in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname == "IMPORT_NAME":
                with suppress(Exception):  # as it is at that moment, so the run says what is wrong
                    name = resolve_name("." * level.argval + step.argval, package)
                    top = find_spec(name.partition(".")[0])
                    if top is not None and is_users_file(top.name, top.origin):
                        yield from (import_module(name), import_module(top.name))


def constant(thing: Any) -> bool:
    return isinstance(thing, CONSTANTS) or (isinstance(thing, tuple | frozenset) and all(map(constant, thing)))


def written(thing: Any) -> str:
    """A constant as text; the elements of a set in order, which in Python is another in every process."""
    if isinstance(thing, tuple | frozenset):
        parts = list(map(written, thing))
        return str(sorted(parts) if isinstance(thing, frozenset) else parts)
    return repr(thing)


def name_of(thing: Any) -> str:
    """Of the user's code without its module: a class of a notebook may move to a file."""
    return thing.__qualname__ if users(thing.__module__) else f"{thing.__module__}.{thing.__qualname__}"


@cache
def users(module: str | None) -> bool:
    """Whether a module is neither of this package, nor of Python's library, nor installed."""
    name = module or ""
    if name == "__main__":  # a script or a notebook, whatever program runs it
        return True
    return is_users_file(name, getattr(sys.modules.get(name), "__file__", None))


def is_users_file(module: str, file: str | None) -> bool:
    if module.partition(".")[0] in {PACKAGE, *sys.stdlib_module_names}:
        return False
    return "site-packages" not in (file or "") and "dist-packages" not in (file or "")


def inner(code: CodeType) -> Iterator[CodeType]:
    """The code and that of functions within it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from inner(part)


def rebound(code: CodeType) -> Iterator[str]:
    """The attributes that a method rebinds, without those that it sets on its first argument: these are of the instance alone."""
    steps = [*dis.get_instructions(code)]
    for before, step in pairwise(steps):
        if step.opname == "STORE_ATTR":
            loaded = before.argval if isinstance(before.argval, tuple) else (before.argval,)
            if not (before.opname.startswith("LOAD_FAST") and loaded[-1] in code.co_varnames[:1]):
                yield step.argval


def names(code: CodeType, *operations: str) -> set[str]:
    """The names on which the code does these operations of Python's machine: what it loads or rebinds."""
    return {at.argval for part in inner(code) for at in dis.get_instructions(part) if at.opname in operations}


@cache  # as it was when it was first asked for: a file that is edited later is not the code that runs
def text_of(code: CodeType) -> str:
    """The source without comments and layout, or what stands for it where there is none to be had (a REPL)."""
    try:
        whole = compile("".join(inspect.findsource(code)[0]), code.co_filename, "exec", dont_inherit=True)
        tree = ast.parse(dedent(inspect.getsource(code)))
    except (OSError, TypeError, ValueError, SyntaxError):  # no source, or a part of a call of several lines
        return compiled(code)
    if code not in inner(whole):  # the file was edited after it was imported
        return compiled(code)
    if code.co_name != "<lambda>":
        return ast.unparse(tree)
    lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    return (
        ast.unparse(lambdas[0]) if len(lambdas) == 1 else compiled(code)
    )  # which of several it is, the source does not say


def compiled(code: CodeType) -> str:
    """The bytes, names and constants of the code and of functions within it; another version of Python makes others."""
    parts = [compiled(part) if isinstance(part, CodeType) else written(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {parts}"
