"""The one exception that a user sees, and how its sentences name what was wrong."""

from collections.abc import Iterable
from difflib import get_close_matches


class MetaugError(Exception):
    """Something the user can mend, said in one sentence that names what and where."""


class Paused(MetaugError):
    """A run was asked to stop (`Run.request_stop`): it is saved, and the same request goes on."""


class Interrupted(MetaugError):
    """Ctrl-C or SIGTERM: what was under way is saved."""


def shown(value: object) -> str:
    """A value as it was given, cut short if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def one_line(error: BaseException) -> str:
    """The message of an error on one line; its kind, if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


LISTED = 24  # names in a sentence: the methods alone are forty


def suggestion(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'gamma'?` for a near miss among `known`, else what is known: of a long list the first `LISTED`."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names[:LISTED]) or 'none'}{more}"
