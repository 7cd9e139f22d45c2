"""What the parameters of a notebook accept: types for the annotations of its parameters cell.

`metaug run` reads them in the text of the cell and checks before anything starts; the notebook itself checks by the same types
what was changed in JupyterLab or given to papermill. papermill reads names and brackets, so each type here has a name.
"""

import ast
from collections.abc import Container, Iterable, Mapping
from typing import Annotated, Any, Literal, Optional, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    Field,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WrapValidator,
)

from metaug_core.config import ALL, Config, ConfigError
from metaug_core.contradictions import one_sentence
from metaug_core.evaluation.probes import MEASURES
from metaug_workbook.jobs import grid
from metaug_workbook.results.paper_values import AUGMENTATION_SETS

T = TypeVar("T")


# --- the types
def build_beside(settings: Mapping[str, Any] | None, **values: Any) -> Config:
    """The Config of a notebook's settings with these values among them. Raises ConfigError."""
    return grid.apply_preset({**(settings or {}), **values})


def value_of(setting: str, **needed: Any) -> Any:
    """The type of one value of a setting of Config, which checks it beside the notebook's settings. needed: what the notebook
    sets with it."""

    def check(value: Any, info: ValidationInfo) -> Any:
        build_beside(info.context, **needed, **{setting: value})
        return value

    return Annotated[Config.model_fields[setting].annotation, AfterValidator(check)]


def check_split(split: str, info: ValidationInfo) -> str:
    """The split, if the runs have it. Raises ConfigError."""
    if split == "val" and not build_beside(info.context).val_fraction:
        raise ConfigError("'val' needs val_fraction > 0, or take 'test'")
    return split


Several = Annotated[list[T], Field(min_length=1)]
Images = Annotated[int, WrapValidator(lambda value, check: value if value == ALL else check(value))]
Count = Annotated[int, Field(ge=1, le=10_000)]
AtLeastTwo = Annotated[int, Field(ge=2)]
Hours = Annotated[float, Field(ge=0)]
Measure = Literal[MEASURES]
Split = Annotated[Literal["val", "test"], AfterValidator(check_split)]
AugmentationSet = Annotated[int, Field(ge=min(AUGMENTATION_SETS), le=max(AUGMENTATION_SETS))]
TrainImages = value_of("train_images", batch_size=32)  # as `00_walkthrough` trains
Epochs = value_of("epochs")
Method, Alpha, Beta, Gamma, Delta, BatchSize = map(
    value_of, ("method", "alpha", "beta", "gamma", "delta", "batch_size")
)
PhiDec = value_of("phi_dec", oucl="eq9")


# --- checking
def find_type(annotation: object) -> Any:
    """The type that an annotation or its text means; Any for one that is not known here."""
    if not isinstance(annotation, str):
        return annotation
    try:
        kind = eval(annotation, {"Optional": Optional, **globals()})
        return Any if kind is None else kind  # papermill says None where there is no annotation
    except (NameError, TypeError, SyntaxError, AttributeError):
        return Any


def holds_list(kind: Any) -> bool:
    return list in (kind, get_origin(kind)) or any(map(holds_list, get_args(kind)))


def read_literal(text: str) -> Any:
    """The number, list, ... that a text writes in Python; any other text as it is."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def read_list(text: str) -> list[Any]:
    """The list that a text writes: in Python, with commas, or of one value."""
    value = read_literal(text)
    if isinstance(value, str):
        return [read_literal(part.strip()) for part in value.strip().strip("[]").split(",")]
    return list(value) if isinstance(value, list | tuple) else [value]


def parse_value(text: str, kind: Any) -> Any:
    """What a text on the command line means for a parameter of this type, before `check_value`."""
    if text == "None" and type(None) in get_args(kind):
        return None
    if holds_list(kind):
        return read_list(text)
    return read_literal(text) if kind in (Any, dict) else text


def refuse_varied(settings: Iterable[str], parameters: Container[str]) -> None:
    """ConfigError for a setting of which a notebook of many runs has several values, by a parameter of its own."""
    for name in settings:
        if f"{name}s" in parameters:
            raise ConfigError(f"{name}: this notebook has many runs; its parameter `{name}s` says of which")


def check_value(
    name: str, value: Any, kind: Any, settings: Mapping[str, Any] | None = None, strict: bool = True
) -> Any:
    """The value of a parameter, if it is of its type. strict: a text is no number. settings: of the notebook, beside which
    values of settings are checked. Raises ConfigError."""
    try:
        value = TypeAdapter(kind).validate_python(value, strict=strict, context=dict(settings or {}))
    except PydanticUserError:  # a class of the user's own, which pydantic cannot check
        return value
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    except ValidationError as error:
        faults: Any = [{**fault, "loc": (name, *fault["loc"])} for fault in error.errors()]
        raise ConfigError(one_sentence(faults, ())) from None
    if isinstance(value, list) and (repeated := [one for one in value if value.count(one) > 1]):
        raise ConfigError(f"{name}: {repeated[0]!r} is listed twice")
    return value
