"""The house stands as design.md draws it: imports go down only, rooms stay small, nothing is unpickled."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = "metaug_core"
PACKAGE = Path(__file__).resolve().parents[1] / ROOT

# A room may import rooms of strictly lower rank. A new room needs a rank here.
RANK: dict[str, float] = {
    **dict.fromkeys(["registry", "sources"], -1),
    **dict.fromkeys(["contradictions", "settings"], -0.5),
    "config": 0,
    "children": 0.1,
    **dict.fromkeys(["extensions", "cluster"], 0.2),
    "images": 0.4,
    **dict.fromkeys(["presets", "shapes", "formats", "machine", "formulas", "heads", "precision"], 0.5),
    "shards": 0.3,
    "colours": 0.3,
    **dict.fromkeys(["tangents", "products", "recomputing", "branches"], 0.7),
    "descent": 0.8,
    **dict.fromkeys(
        ["losses", "margins", "pairs", "probe", "data", "views", "encoders", "generator", "bank", "meta"], 1
    ),
    "adversarial": 1,
    "methods.base": 1.5,
    "methods.*": 2,  # one file per method; they may import methods.base, not each other
    "store": 2,
    "monitor": 2,
    "methods": 2.2,  # methods/__init__.py gathers them
    "catalogue": 2.4,
    "progress": 2.2,
    "grid": 2.3,
    **dict.fromkeys(["evaluation", "state"], 2.5),
    "tables": 2.6,
    "step": 2.7,
    "stepper": 2.8,
    "session": 2.9,
    "engine": 3,
    "results": 2.8,
    "making": 3.2,
    "helper": 3.3,
    "cost": 3.3,
    "paper": 0,
    **dict.fromkeys(["rehearsal", "profiles"], 3.2),
    "experiments": 3.3,
    "standing": 3.4,
    "toys": 3,
    **dict.fromkeys(["background", "together"], 3.2),
    **dict.fromkeys(["style", "estimates"], 3.5),
    "figures": 4,
    "paper_figures": 4,
    "anatomy": 4.1,
    "pictures": 4,
    "gallery": 4.1,
    "paper_gallery": 4.3,
    "diagram": 4,
    "lessons": 4,
    "meta_toy": 4,
    "explorer": 4.5,
    **dict.fromkeys(["oucl_explorer", "margin_explorer", "augmentation_viewer", "meta_stepper"], 4.7),
    "live_view": 4.7,
    **dict.fromkeys(["run_monitor", "run_browser"], 4.8),
    "widgets": 5,  # gathers the six rooms above it
    "layout": 4,
    "site": 5,
    "notebooks": 5.2,
    "plans": 5.3,
    "headless": 5.5,
    "cell": 5.6,
    "sweep": 5.7,
    "cli_options": 5.8,
    "cli_sweep": 5.9,
    "cli": 6,
    "": 9,  # metaug_core/__init__.py may import anything
}
PACKAGES = {ROOT, f"{ROOT}.methods"}
MAX_MODULE, MAX_FUNCTION = 400, 80
UNPICKLER_ROOM = f"{ROOT}.formats"  # the one room that may restrict an unpickler: CIFAR's files are pickles
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "jsonpickle"}
BANNED = {"torch.load", "torch.save", "torch.serialization.load", "joblib.load", "pandas.read_pickle"}


def rank(module: str) -> float | None:
    room = module.removeprefix(ROOT).removeprefix(".")
    if room in RANK:
        return RANK[room]
    inside_methods = room.startswith("methods.") and room.count(".") == 1
    return RANK["methods.*"] if inside_methods else None


def imported(module: str, tree: ast.Module, known: set[str]) -> Iterator[tuple[int, str]]:
    """(line, target) of every import of our own package, wherever it stands: at the top, in a function, in a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            source = absolute(module, node)
            inner = [f"{source}.{alias.name}" for alias in node.names if is_ours(source)]
            yield from dict.fromkeys((node.lineno, name if name in known else source) for name in inner)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name, target = ast.unparse(node.func).rpartition(".")[2], node.args[0].value
            if name in {"import_module", "__import__"} and isinstance(target, str) and is_ours(target):
                yield node.lineno, target


def is_ours(name: str) -> bool:
    return name == ROOT or name.startswith(f"{ROOT}.")


def absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    steps_up = node.level - (module in PACKAGES)
    base = module.rsplit(".", steps_up)[0] if steps_up else module
    return f"{base}.{node.module}" if node.module else base


def import_violations(module: str, tree: ast.Module, known: set[str]) -> Iterator[str]:
    own = rank(module)
    if own is None:
        yield f"{module}: has no rank in tests/test_architecture.py"
        return
    for line, target in imported(module, tree, known):
        theirs = rank(target)
        if target == ROOT:
            yield f"{module}:{line}: imports from the package root; name the room instead"
        elif theirs is None or target not in known:
            yield f"{module}:{line}: imports {target}, which is not a room"
        elif theirs >= own:
            yield f"{module}:{line}: rank {own:g} imports {target} of rank {theirs:g}"


def size_violations(module: str, source: str, tree: ast.Module) -> Iterator[str]:
    if (lines := len(source.splitlines())) > MAX_MODULE:
        yield f"{module}: {lines} lines, at most {MAX_MODULE}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION:
                yield f"{module}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION}"


def pickle_violations(module: str, tree: ast.Module) -> Iterator[str]:
    """No pickle anywhere; UNPICKLER_ROOM may subclass pickle.Unpickler with a find_class of its own."""
    names = aliases(tree)
    restricted: set[ast.AST] = set()
    if module == UNPICKLER_ROOM:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(getattr(part, "name", "") == "find_class" for part in node.body):
                restricted |= set(node.bases)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if module != UNPICKLER_ROOM and PICKLES & {name.partition(".")[0] for name in found}:
                yield f"{module}:{node.lineno}: imports a pickle"
        elif isinstance(node, ast.Name | ast.Attribute):
            name = dotted(node, names)
            in_pickle = name.partition(".")[0] in PICKLES and "." in name and name != "pickle.UnpicklingError"
            if (in_pickle and node not in restricted) or name in BANNED:
                yield f"{module}:{node.lineno}: uses {name}"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not is_false(node.value):
            yield f"{module}:{node.value.lineno}: allows pickle"


def aliases(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: `import torch as t` gives t -> torch."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute) and (left := dotted(node.value, names)):
        return f"{left}.{node.attr}"
    return ""


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def violations(modules: dict[str, str]) -> list[str]:
    """Every breach of the rules by modules given as {dotted name: source}; packages go by their own name."""
    known = set(modules) | {f"{ROOT}.{room}" for room in RANK if room and "*" not in room}
    found: list[str] = []
    for module, source in sorted(modules.items()):
        tree = ast.parse(source)
        if module.rpartition(".")[2] in {"utils", "util"}:
            found.append(f"{module}: there is no utils.py; a line finds its room by the most worldly thing it touches")
        found += import_violations(module, tree, known)
        found += size_violations(module, source, tree)
        found += pickle_violations(module, tree)
    return found


def read_house() -> dict[str, str]:
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        modules[".".join(parts)] = path.read_text(encoding="utf-8")
    return modules


def test_the_house_is_read():
    assert {ROOT, f"{ROOT}.config", f"{ROOT}.methods", f"{ROOT}.methods.base"} <= set(read_house())


def test_the_house_stands():
    assert not (found := violations(read_house())), "\n" + "\n".join(found)


GOOD = {
    "metaug_core": "from metaug_core import engine\nfrom .config import Config",
    "metaug_core.config": "from metaug_core.registry import Registry\nimport pydantic",
    "metaug_core.registry": "",
    "metaug_core.data": "from metaug_core.shapes import draw\nfrom . import config",
    "metaug_core.methods.base": "from metaug_core import losses, bank",
    "metaug_core.methods.cmc": "from .base import Method\nfrom ..losses import f\nfrom metaug_core.methods import base",
    "metaug_core.methods": "from . import base, cmc\nfrom .cmc import Cmc",
    "metaug_core.store": "import json, torch\nx = torch.ones(1)\ny = json.load(open('f'))",
    "metaug_core.engine": "from metaug_core.methods import METHODS\nimport metaug_core.store as store",
    "metaug_core.cli": "def main():\n    from metaug_core.engine import fit",
}


def test_a_good_house_passes():
    assert violations(GOOD) == []


RESTRICTED = "import pickle\nclass Safe(pickle.Unpickler):\n    def find_class(self, module, name): raise ValueError\n"


def test_formats_may_restrict_an_unpickler():
    caught = RESTRICTED + "try:\n    Safe(f).load()\nexcept pickle.UnpicklingError:\n    pass"
    assert violations({"metaug_core.formats": caught}) == []
    assert (
        violations(
            {
                "metaug_core.formats": RESTRICTED.replace("import pickle", "from pickle import Unpickler").replace(
                    "pickle.U", "U"
                )
            }
        )
        == []
    )


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION

BAD = [
    ("losses", "from metaug_core.engine import fit", "rank 1 imports metaug_core.engine of rank 3"),
    ("losses", "from metaug_core import margins", "rank 1 imports metaug_core.margins of rank 1"),
    ("losses", "from .margins import sigma", "rank 1 imports metaug_core.margins"),
    ("losses", "from . import margins", "rank 1 imports metaug_core.margins"),
    ("losses", "def f():\n    import metaug_core.figures as figures", ":2: rank 1 imports metaug_core.figures"),
    ("losses", "import importlib\nimportlib.import_module('metaug_core.engine')", "metaug_core.engine of rank 3"),
    (
        "losses",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .views import V",
        "metaug_core.views of rank 1",
    ),
    ("losses", "from metaug_core.losses import f", "of rank 1"),
    ("registry", "from .config import Config", "rank -1 imports metaug_core.config of rank 0"),
    ("shapes", "from metaug_core import data", "rank 0.5 imports metaug_core.data of rank 1"),
    ("methods.cmc", "from .simclr import SimCLR", "rank 2 imports metaug_core.methods.simclr of rank 2"),
    ("methods.cmc", "from metaug_core.methods import METHODS", "rank 2 imports metaug_core.methods of rank 2.2"),
    ("methods.cmc", "from . import METHODS", "rank 2 imports metaug_core.methods of rank 2.2"),
    ("methods.cmc", "from ..engine import fit", "rank 2 imports metaug_core.engine of rank 3"),
    ("methods.base", "from .cmc import CMC", "rank 1.5 imports metaug_core.methods.cmc of rank 2"),
    ("methods", "from ..engine import fit", "rank 2.2 imports metaug_core.engine of rank 3"),
    ("monitor", "from metaug_core import store", "rank 2 imports metaug_core.store of rank 2"),
    ("cli", "import metaug_core", "imports from the package root"),
    ("cli", "from metaug_core import __version__", "imports from the package root"),
    ("cli", "from . import __version__", "imports from the package root"),
    ("cli", "from metaug_core.helpers import f", "metaug_core.helpers, which is not a room"),
    ("cli", "from metaug_core.methods.nowhere import f", "metaug_core.methods.nowhere, which is not a room"),
    ("trainer", "", "has no rank"),
    ("methods.deep.er", "", "has no rank"),
    ("utils", "", "there is no utils.py"),
    ("methods.utils", "", "there is no utils.py"),
    ("losses", "x = 1\n" * (MAX_MODULE + 1), "401 lines, at most 400"),
    ("losses", LONG_FUNCTION, "f has 81 lines, at most 80"),
    ("losses", "async " + LONG_FUNCTION, "f has 81 lines, at most 80"),
    ("store", "import torch\ntorch.load('f')", "uses torch.load"),
    ("store", "import torch as t\nload = t.load", "uses torch.load"),
    ("store", "from torch import load\nload('f', weights_only=True)", "uses torch.load"),
    ("store", "from torch import load as read\nread('f')", "uses torch.load"),
    ("store", "import pickle", "imports a pickle"),
    ("store", "def f():\n    from pickle import loads", "imports a pickle"),
    ("store", RESTRICTED, "imports a pickle"),
    ("store", "import pandas as pd\npd.read_pickle('f')", "uses pandas.read_pickle"),
    ("store", "import numpy as np\nnp.load('f', allow_pickle=True)", "allows pickle"),
    ("formats", "import pickle\npickle.load(f)", "uses pickle.load"),
    ("formats", "import pickle as p\np.loads(b'')", "uses pickle.loads"),
    ("formats", "from pickle import load\nload(f)", "uses pickle.load"),
    ("formats", "import pickle\npickle.Unpickler(f).load()", "uses pickle.Unpickler"),
    ("formats", "import pickle\nclass Open(pickle.Unpickler):\n    pass", "uses pickle.Unpickler"),
]


@pytest.mark.parametrize(("room", "source", "expected"), BAD)
def test_a_bad_house_is_refused(room: str, source: str, expected: str):
    modules = {"metaug_core.methods.simclr": "", "metaug_core.methods.cmc": "", f"metaug_core.{room}": source}
    found = violations(modules)
    assert any(expected in line and line.startswith(f"metaug_core.{room}:") for line in found), found


def test_every_breach_is_told_once():
    assert violations({"metaug_core.losses": "from metaug_core import margins, engine\nfrom .bank import a, b"}) == [
        "metaug_core.losses:1: rank 1 imports metaug_core.margins of rank 1",
        "metaug_core.losses:1: rank 1 imports metaug_core.engine of rank 3",
        "metaug_core.losses:2: rank 1 imports metaug_core.bank of rank 1",
    ]
