"""Names that a config may use, and the one exception that a user sees.

The tables are empty here; the room that knows a thing enters it (`encoders.py` fills ENCODERS, and so on), and so does a
user: ``ENCODERS["mine"] = build``. They stand at rank -1 so that `Config` can refuse a misspelt name before anything runs.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MetaugError(Exception):
    """Something the user can mend, said in one sentence that names what and where."""


def suggestion(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'gamma'?` for a near miss among `known`, else the list of what is known."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names) or 'none'}"


class Registry(dict):
    """A dict that refuses an unknown name with a `MetaugError` which says what is known."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __missing__(self, name: object):
        raise MetaugError(f"unknown {self.kind} {name!r}{suggestion(name, self)}")


DATASETS = Registry("dataset")  # name -> load(config) -> data.RawSplits
VIEWS = Registry("view")  # name -> views.View
ENCODERS = Registry("encoder")  # name -> build(channels, config) -> nn.Module, (B, C, H, W) -> (B, D)
METHODS = Registry("method")  # name -> methods.base.Method subclass or composition
