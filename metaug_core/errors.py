"""The one exception that a user sees, and how its sentences name what was wrong."""

from collections.abc import Iterable
from difflib import get_close_matches


class MetaugError(Exception):
    """Something the user can mend, said in one sentence that names what and where."""


class Paused(MetaugError):
    """A run was asked to stop by a `stop.request` in its folder. It is saved, and the same request goes on with it."""


def shown(value: object) -> str:
    """A value as it was given, cut short if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def suggestion(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'gamma'?` for a near miss among `known`, else the list of what is known."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names) or 'none'}"
