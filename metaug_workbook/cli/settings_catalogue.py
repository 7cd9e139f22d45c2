"""What `Config` says about its settings, as text for `metaug settings`."""

from collections.abc import Iterable, Sequence
from typing import Any

import click

from metaug_core.config import NOT_IDENTITY, Config
from metaug_core.presets import PRESETS
from metaug_core.registry import METHODS, MODIFIERS
from metaug_core.runs.listing import default_settings, format_setting
from metaug_core.settings import ONLY_WITH, OPTIONAL

BASE = "cmc"  # tells which settings a modifier adds to the method that it is put on


def list_settings(names: Iterable[str]) -> str:
    """These settings with default and meaning, under a heading for each group of methods that use them."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: name in OPTIONAL):  # those of every method first
        groups.setdefault(describe_users(name), []).append(name)
    formatter = start_text()
    for users, group in groups.items():
        with formatter.section(f"Used by {users}"):
            formatter.write_dl([(f"{name}  {show_default(name)}", read_meaning(name)) for name in group])
    return formatter.getvalue() + "\nname  default  meaning; `metaug settings NAME` explains one setting in full"


def explain(name: str) -> str:
    """Everything there is to know about one setting."""
    text = start_text()
    brought: dict[str, list[str]] = {}  # the methods by the value that they bring
    for method in METHODS:
        value = show(name, METHODS[method].description.defaults.get(name, default_settings()[name]))
        brought.setdefault(value, []).append(method)
    brought.pop(show_default(name), None)
    in_presets = [f"{preset} {show(name, values[name])}" for preset, values in PRESETS.items() if name in values]
    needed = [f"{other} {' or '.join(sorted(values))}" for other, values in ONLY_WITH.get(name, {}).items()]
    parts = {
        "values": describe_values(Config.model_json_schema()["properties"][name]),
        "default": show_default(name),
        "in presets": ", ".join(in_presets),
        "in methods": "; ".join(f"{value} in {', '.join(methods)}" for value, methods in brought.items()),
        "used by": describe_users(name),
        "only with": " or ".join(needed),
        "name of the run": "does not depend on it" if name in NOT_IDENTITY else "",
    }
    with text.section(name):
        text.write_text(read_meaning(name))
        text.write_paragraph()
        text.write_dl([(head, said) for head, said in parts.items() if said])
    return text.getvalue().rstrip()


def start_text() -> click.HelpFormatter:
    """A formatter as wide as the terminal, within what can be read."""
    return click.Context(click.Command("settings")).make_formatter()


def read_meaning(name: str) -> str:
    return " ".join((Config.model_fields[name].description or "").split())


def show(name: str, value: Any) -> str:
    """A value of the package's own tables as one would type it."""
    return format_setting(name, list(value) if isinstance(value, tuple) else value)


def show_default(name: str) -> str:
    return show(name, default_settings()[name])


def describe_users(name: str) -> str:
    """The methods that use a setting, in words; also of compositions by name, such as NAME+mag."""
    if name not in OPTIONAL:
        return "every method"
    users = [method for method in METHODS if name in METHODS[method].description.uses]
    if len(users) > len(METHODS) / 2:
        return f"every method except {', '.join(method for method in METHODS if method not in users)}"
    of_base = METHODS[BASE].description.uses
    added = [f"NAME+{modifier}" for modifier in MODIFIERS
             if name in METHODS[f"{BASE}+{modifier}"].description.uses - of_base]  # fmt: skip
    return ", ".join([method for method in users if method.rpartition("+")[2] not in MODIFIERS] + added)


def describe_values(schema: dict[str, Any]) -> str:
    """What a setting accepts, in words, from its JSON schema."""
    if options := schema.get("anyOf"):
        return " or ".join(map(describe_values, options))
    if options := schema.get("enum"):
        return " or ".join(map(str, options))
    kind = schema["type"]
    if kind == "array":
        parts: Sequence[Any] = schema.get("prefixItems") or [schema["items"]]
        return f"{len(parts) if len(parts) > 1 else 'any number of'} values with commas between, each {describe_values(parts[0])}"
    names = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "null": "None",
        "string": "a name",
    }
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema and schema[key] < 2**31 - 1]
    return " ".join(["a path" if schema.get("format") == "path" else names[kind], " and ".join(bounds)]).strip()
