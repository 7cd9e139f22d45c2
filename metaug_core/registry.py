"""Names that a config may use.

The tables are empty here; the module that knows a thing enters it (`networks/encoders.py` fills ENCODERS, and so on), and so does
a user: ``ENCODERS["mine"] = build``. They stand below `Config`, so that it can refuse a misspelt name before anything runs.
"""

from metaug_core.errors import MetaugError, shown, suggestion


class Registry(dict):
    """A dict that refuses an unknown name with a `MetaugError` which says what is known."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.own: dict[str, object] = {}

    def __missing__(self, name: object):
        raise MetaugError(f"unknown {self.kind} {shown(name)}{suggestion(name, self)}")

    def settle(self) -> None:
        """What is entered now is the package's own; what comes later is the user's."""
        self.own = dict(self)

    def added(self, name: str) -> list[object]:
        """What the user has entered under this name; nothing if the entry is the package's own."""
        return [] if self.own.get(name) is self[name] else [self[name]]

    def refusal(self, name: object) -> str | None:
        """Why there is nothing of this name, in one sentence, or None."""
        try:
            self[name]
        except MetaugError as error:
            return str(error)
        return None


class Methods(Registry):
    """Methods by name, and those that a name composes: `cmc+hard+mag` is `cmc` with the modifiers `hard` and `mag` on it."""

    def __missing__(self, name: object):
        base, *parts = str(name).split("+")
        if not parts:
            return super().__missing__(name)
        found = self[base]
        for number, part in enumerate(parts):
            if part in parts[:number]:
                raise MetaugError(f"modifier {part!r} stands twice in {shown(name)}")
            found = MODIFIERS[part](found)
        return found

    def added(self, name: str) -> list[object]:
        if super().__contains__(name):
            return super().added(name)
        base, *parts = name.split("+")
        return [*self.added(base), *(entry for part in parts for entry in MODIFIERS.added(part))]

    def get(self, name: object, default=None):
        return default if self.refusal(name) else self[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or ("+" in str(name) and self.refusal(name) is None)


DATASETS = Registry("dataset")  # name -> load(config) -> data.RawSplits
VIEWS = Registry("view")  # name -> views.View
ENCODERS = Registry("encoder")  # name -> build(channels, config) -> nn.Module, (B, C, H, W) -> (B, D)
MODIFIERS = Registry(
    "modifier"
)  # name -> from a method class or composition to a composition, as methods.modifiers has it
METHODS = Methods("method")  # name -> methods.base.Method subclass or composition
