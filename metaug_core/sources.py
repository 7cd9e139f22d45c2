"""What stands behind a name that the user has registered, as a hash that changes when the code does and with nothing else.

Followed are functions, classes with their members and bases, closures, `partial`, and what a function names of the user's own: at
the top level of its module (a helper, a constant), or in another module of the user's. Comments and the layout of the code do not
count; docstrings do. An installed package, Python's library and this package stand for themselves by name. What code holds and may
change while it runs is not followed: lists, arrays, networks, a global or a class attribute that the code itself rebinds.
"""

import ast
import dis
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property, partial
from textwrap import dedent
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

PACKAGE = __name__.partition(".")[0]
SEMANTICS = 2  # goes up when the same code of a user trains otherwise
CONSTANTS = (str, bytes, int, float, complex, bool, type(None), type(Ellipsis))
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


def digest(entries: Iterable[object]) -> str:
    """16 hexadecimal digits for what is registered; the same in every process."""
    seen: dict[int, object] = {}
    texts = [text for entry in entries for text in told(entry, seen, entry=True)]
    return hashlib.sha256("\n".join([str(SEMANTICS), *texts]).encode()).hexdigest()[:16]


def told(thing: Any, seen: dict[int, object], entry: bool = False, holds: bool = False) -> Iterator[str]:
    """The texts that say what a thing is. seen: what was told already. entry: it is what is registered, so its attributes count.
    holds: it is a member of a class, where lists and dicts are constants."""
    if constant(thing):
        yield written(thing)
        return
    if id(thing) in seen:
        return
    seen[id(thing)] = thing  # kept, so that no other gets its number
    if isinstance(thing, classmethod | staticmethod | MethodType):
        yield from told(thing.__func__, seen)
    elif isinstance(thing, cached_property):
        yield from told(thing.func, seen)
    elif isinstance(thing, property):
        yield from (text for part in (thing.fget, thing.fset) for text in told(part, seen))
    elif isinstance(thing, partial):
        yield from (text for part in (thing.func, *thing.args) for text in told(part, seen))
        yield from members(thing.keywords, seen)
    elif isinstance(thing, FunctionType):
        yield from of_function(thing, seen)
    elif isinstance(thing, type):
        yield from of_class(thing, seen)
    elif holds and isinstance(thing, Mapping):
        yield from members({str(key): value for key, value in thing.items()}, seen)
    elif holds and isinstance(thing, list | tuple | set | frozenset):
        yield from sorted(text for part in thing for text in told(part, seen, holds=True))
    else:
        yield from told(type(thing), seen)
        if entry:
            yield from members(vars(thing) if hasattr(thing, "__dict__") else {}, seen)


def members(attributes: Mapping[str, Any], seen: dict[int, object]) -> Iterator[str]:
    for name, value in attributes.items():
        if name not in BOOKKEEPING:
            yield name
            yield from told(value, seen, holds=True)


def of_class(cls: type, seen: dict[int, object]) -> Iterator[str]:
    yield name_of(cls)
    if users(cls.__module__):
        codes = [value.__code__ for value in vars(cls).values() if isinstance(value, FunctionType)]
        state = {name for code in codes for name in names(code, "STORE_ATTR")}
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
    for cell in function.__closure__ or ():
        try:
            yield from told(cell.cell_contents, seen)
        except ValueError:  # not filled yet
            continue
    used = names(code, "LOAD_GLOBAL", "LOAD_NAME") - names(code, "STORE_GLOBAL")
    for name in sorted(used & function.__globals__.keys()):
        value = function.__globals__[name]
        if not isinstance(value, ModuleType):
            yield from told(value, seen)
        elif users(value.__name__):
            parts = sorted(names(code, "LOAD_ATTR", "LOAD_METHOD") & vars(value).keys())
            yield from (text for part in parts for text in told(vars(value)[part], seen))


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
    if name.partition(".")[0] in {PACKAGE, *sys.stdlib_module_names}:
        return False
    file = str(getattr(sys.modules.get(name), "__file__", None) or "")
    return "site-packages" not in file and "dist-packages" not in file


def inner(code: CodeType) -> Iterator[CodeType]:
    """The code and that of functions within it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from inner(part)


def names(code: CodeType, *operations: str) -> set[str]:
    """The names on which the code does these operations of Python's machine: what it loads or rebinds."""
    return {at.argval for part in inner(code) for at in dis.get_instructions(part) if at.opname in operations}


@cache  # as it was when it was first asked for: a file that is edited later is not the code that runs
def text_of(code: CodeType) -> str:
    """The source without comments and layout, or what stands for it where there is none to be had (a REPL)."""
    try:
        tree = ast.parse(dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):  # no source, or a part of a call of several lines
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
