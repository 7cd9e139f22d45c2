"""Names that a config may use.

The package's own entries come from the module that knows the thing (`networks/encoders.py` fills ENCODERS, and so on), which is
imported when its table is first read. A user enters ``ENCODERS["mine"] = build``. The tables stand below `Config`, so that it can
refuse a misspelt name before anything runs.
"""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from importlib import import_module
from typing import Any

from metaug_core.errors import MetaugError, shown, suggestion


class Registry(dict[Any, Any]):
    """A dict that refuses an unknown name with a `MetaugError` which says what is known.

    filled_by: the module that enters the package's own; it is imported before the table is read, or written by a user.
    """

    def __init__(self, kind: str, filled_by: str | None = None):
        super().__init__()
        self.kind, self.filled_by = kind, filled_by
        self.own: dict[str, object] = {}

    def fill(self) -> None:
        if self.filled_by is not None:
            import_module(self.filled_by)
            self.filled_by = None

    def register_own(self, entries: Mapping[str, Any]) -> None:
        """Enter what is the package's own; everything else is the user's."""
        self.own |= entries
        self |= entries

    def __setitem__(self, name: str, entry: Any) -> None:
        self.fill()
        super().__setitem__(name, entry)

    def __missing__(self, name: object):
        if self.filled_by is not None:
            self.fill()
            return self[name]  # type: ignore[index]
        raise MetaugError(f"unknown {self.kind} {shown(name)}{suggestion(name, self)}")

    def __contains__(self, name: object) -> bool:
        self.fill()
        return super().__contains__(name)

    def __iter__(self) -> Iterator[Any]:
        self.fill()
        return super().__iter__()

    def __len__(self) -> int:
        self.fill()
        return super().__len__()

    def keys(self) -> KeysView[Any]:  # type: ignore[override]
        return KeysView(self)

    def items(self) -> ItemsView[Any, Any]:  # type: ignore[override]
        return ItemsView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return ValuesView(self)

    def get(self, name: object, default: Any = None) -> Any:  # type: ignore[override]
        return default if self.refusal(name) else self[name]  # type: ignore[index]

    def added(self, name: str) -> list[object]:
        """What the user has entered under this name; nothing if the entry is the package's own."""
        entry = self[name]  # first: it fills the table
        return [] if self.own.get(name) is entry else [entry]

    def refusal(self, name: object) -> str | None:
        """Why there is nothing of this name, in one sentence, or None."""
        try:
            self[name]
        except MetaugError as error:
            return str(error)
        return None


class Methods(Registry):
    """Methods by name, and those that a name composes: `cmc+hard+mag` is `cmc` with the modifiers `hard` and `mag` on it."""

    def __setitem__(self, name: str, entry: Any) -> None:
        if not hasattr(entry, "description"):
            raise MetaugError(f"METHODS[{name!r}] must be a subclass of metaug_core.methods.Method, got {shown(entry)}")
        super().__setitem__(name, entry)

    def __missing__(self, name: object):
        base, *parts = str(name).split("+")
        if not parts or self.filled_by is not None:
            return super().__missing__(name)
        method = self[base]
        for number, part in enumerate(parts):
            if part in parts[:number]:
                raise MetaugError(f"modifier {part!r} occurs twice in {shown(name)}")
            method = MODIFIERS[part](method)
        return method

    def added(self, name: str) -> list[object]:
        if super().__contains__(name):
            return super().added(name)
        base, *parts = name.split("+")
        return [*self.added(base), *(entry for part in parts for entry in MODIFIERS.added(part))]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or ("+" in str(name) and self.refusal(name) is None)


# name -> load(config) -> datasets.RawSplits
DATASETS = Registry("dataset", "metaug_core.data.datasets")
# name -> augmentation.View
VIEWS = Registry("view", "metaug_core.views.augmentation")
# name -> build(channels, config) -> nn.Module, (B, C, H, W) -> (B, D)
ENCODERS = Registry("encoder", "metaug_core.networks.encoders")
# name -> from a method class or composition to a composition, as methods.modifiers has it
MODIFIERS = Registry("modifier", "metaug_core.methods")
# name -> methods.base.Method subclass or composition
METHODS = Methods("method", "metaug_core.methods")
