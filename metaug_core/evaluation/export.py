"""A run's encoder as files for programs that do not have this package, and a model card beside them."""

from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaug_core.config import NOT_IDENTITY, Config, as_file_name
from metaug_core.errors import MetaugError, one_line
from metaug_core.evaluation.probes import MEASURES
from metaug_core.registry import METHODS, VIEWS
from metaug_core.runs import data
from metaug_core.runs.encoder import Encoder
from metaug_core.runs.files import read_json, weights, write, write_tensors
from metaug_core.runs.store import Run

RESNETS = ("resnet18", "resnet50")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_TOLERANCE = 1e-4  # of h, relative to its largest entry
LIMITS = """\
- It is a research model of one run. It has seen {seen} of `{dataset}`, resized to {size} px. On other kinds of images its features
  may be no better than raw pixels: measure that first (`metaug evaluate`).
- It was not tested for robustness, nor for differences between groups of people. It is not for decisions about people.
- It classifies nothing by itself: a classifier on its features has to be trained and tested."""


def export(run: Run, place: Path) -> dict[Path, str]:
    """Write a finished run's encoder, views inside, and what belongs to it -> what each file is; a file that could not be made has
    a sentence that begins with "not written". Raises MetaugError.

    place: the exported program (`torch.export`), any batch size and any height and width. Beside it, with its stem: NAME.onnx, the
    weights of each view's network NAME-VIEW.safetensors, and the model card NAME.md.
    """
    if place.is_dir():
        raise MetaugError(f"{place} is a folder: name a file for the encoder")
    # In torch's usual layout: torch.export.save warns about weights in another, and ONNX has no other.
    encoder, config = run.encoder().to(memory_format=torch.contiguous_format), run.config
    example = torch.randint(0, 256, (2, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        program = trace(encoder, example)
    except Exception as error:  # torch.export has many kinds of refusal
        raise MetaugError(f"torch.export cannot export encoder {config.encoder!r}: {one_line(error)[:300]}") from None
    content = BytesIO()
    torch.export.save(program, content)
    write(place, content.getvalue())
    files = {place: "the encoder with its views, for `torch.export.load`"}
    onnx, why_not = place.with_suffix(".onnx"), write_onnx(program, encoder, place.with_suffix(".onnx"))
    files[onnx] = f"not written: {why_not}" if why_not else "the same for ONNX Runtime"
    files |= write_backbones(encoder, place)
    card = place.with_suffix(".md")
    with torch.no_grad():
        dim = encoder(example).shape[1]
    write(card, describe(run, place, dim, files).encode())
    return files | {card: "the model card"}


def trace(encoder: Encoder, example: Tensor) -> torch.export.ExportedProgram:
    """The encoder as an exported program for any batch size, height and width; example: uint8 (2, 3, H, W), H and W unlike."""
    with torch.no_grad():
        encoder(example)  # makes the constants of the views, which would else be kept as tensors without numbers
        free = torch.export.Dim.DYNAMIC
        return torch.export.export(encoder, (example,), dynamic_shapes=({0: free, 2: free, 3: free},))


def write_onnx(program: torch.export.ExportedProgram, encoder: Encoder, place: Path) -> str | None:
    """Write an ONNX file if its checker passes and ONNX Runtime computes the same -> why it was not written, or None."""
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        return f"it needs {', '.join(missing)}"
    import onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    images = torch.randint(0, 256, (3, 3, 50, 34), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None
        content = made.model_proto.SerializeToString()
        onnx.checker.check_model(content, full_check=True)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (computed,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    except Exception as error:  # of three packages
        return f"its checker or runtime refuses it ({one_line(error)[:200]})"
    with torch.no_grad():
        h = encoder(images)
    if (difference := float((torch.as_tensor(computed) - h).abs().max() / h.abs().max())) > ONNX_TOLERANCE:
        return f"ONNX Runtime computes other features, by {difference:.1g} of the largest"
    write(place, content)
    return None


def write_backbones(encoder: Encoder, place: Path) -> dict[Path, str]:
    """Write the weights of each view's network as a state_dict -> what each file is. Those of ResNets have torchvision's
    keys, which are timm's too."""
    files, kind = {}, encoder.config.encoder
    for view in encoder.names:
        file = place.with_name(f"{place.stem}-{as_file_name(view)}.safetensors")
        write_tensors(file, weights(encoder.encoders.nets[view]), {"view": view, "encoder": kind})
        keys = ", with the keys of torchvision and timm" if kind in RESNETS else ""
        files[file] = f"the weights of the network of view {view} alone{keys}"
    return files


# --- the model card


def describe(run: Run, place: Path, dim: int, files: dict[Path, str]) -> str:
    """The model card in Markdown: files, how they are used, data, accuracies as stored, settings, origin, limits, licence."""
    config, about = run.config, METHODS[run.config.method].description
    kept = read_json(run.path / data.FILE, dict) if (run.path / data.FILE).exists() else {}
    session: dict[str, Any] = run.sessions[-1] if run.sessions else {}
    changed = " with uncommitted changes" if session.get("uncommitted_changes") else ""
    seen = f"{kept['pretrain']:,} images" if "pretrain" in kept else "images"
    origin = {
        "trained by": f"MetAug Workbook {version('metaug-workbook')}, engine version {session.get('engine', 'unknown')}",
        "commit": f"{session.get('commit') or 'unknown'}{changed}",
        "processor": session.get("processor", "unknown"),
        "started": session.get("started", "unknown"),
    } | {name: number for name, number in session.get("versions", {}).items() if name in ("torch", "python")}
    parts = [
        f"# {run.path.name}",
        f"An image encoder, `{config.encoder}` on the views {', '.join(config.views)}, pretrained by {about.title or config.method}"
        f"{f' ({about.paper})' if about.paper else ''} {'with' if about.labelled else 'without'} labels on {seen} of "
        f"`{config.dataset}` at {config.image_size} px, {config.epochs} epochs, seed {config.seed}. It gives {dim:,} features.",
        table(("file", "what"), {file.name: what for file, what in files.items()}),
        "## Use",
        f'```python\nimport torch\n\nencoder = torch.export.load("{place.name}").module()\n'
        "h = encoder(images)  # uint8 RGB (B, 3, H, W) of any size -> float32 "
        f"(B, {dim})\n```",
        f"Images are cut to their central square and resized to {config.image_size} px inside.",
        *(describe_backbone(config, view, place) for view in dict.fromkeys(config.views) if config.encoder in RESNETS),
        "## Data",
        table(("images", "count"), {name: value for name, value in kept.items() if isinstance(value, int)})
        + f"\n| files | {kept.get('source') or kept.get('images') or 'no record'} |",
        "## Accuracies, as stored with the run",
        describe_accuracies(run),
        "## Settings",
        "Those that differ from the defaults of the method:",
        table(("setting", "value"), {k: v for k, v in config.chosen().items() if k not in NOT_IDENTITY}),
        "## Origin",
        table(("", ""), origin),
        "## What it is not good for",
        LIMITS.format(seen=seen, dataset=config.dataset, size=config.image_size),
        "## Licence",
        "The workbook is under the MIT licence, which does not bind weights that you train with it. The licence of the images may.",
    ]
    return "\n\n".join(parts) + "\n"


def table(heads: tuple[str, str], rows: dict[str, Any]) -> str:
    """A table in Markdown with two columns."""
    return "\n".join([f"| {heads[0]} | {heads[1]} |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def describe_backbone(config: Config, view: str, place: Path) -> str:
    """How torchvision and timm load the network of one view."""
    channels, file = VIEWS[view].channels, f"{place.stem}-{as_file_name(view)}.safetensors"
    small = config.stem == "small" or (config.stem == "auto" and config.image_size <= 64)
    first = f"nn.Conv2d({channels}, 64, " + ("3, padding=1" if small else "7, stride=2, padding=3") + ", bias=False)"
    lines = ["import safetensors.torch", "import torchvision", "from torch import nn", ""]
    lines += [f"net = torchvision.models.{config.encoder}()", f"net.conv1, net.fc = {first}, nn.Identity()"]
    lines += ["net.maxpool = nn.Identity()"] * small + [f'net.load_state_dict(safetensors.torch.load_file("{file}"))']
    said = (
        "With timm the same, after `timm.create_model` with `num_classes=0` and without `net.fc`: its first layer is not that of "
        "small images."
        if small
        else f'Or `timm.create_model("{config.encoder}", num_classes=0, in_chans={channels}, checkpoint_path="{file}")`.'
    )
    code = "\n".join(lines)
    return f"The network of view {view} alone, whose input is {channels} channels in [-1, 1]:\n\n```python\n{code}\n```\n\n{said}"


def describe_accuracies(run: Run) -> str:
    """The stored accuracies in percent, a row for each representation."""
    stored = run.evaluation()
    if not stored:
        return "None yet: `metaug evaluate` measures them."
    measures = [name for name in MEASURES if any(name in row for row in stored.values())]
    lines = [f"| % of test images | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    for name, row in stored.items():
        cells = (f"{100 * row[one]:.1f}" if one in row else "-" for one in measures)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    counts = next(iter(stored.values()))
    said = f"{counts['n_train']:,} labelled images, {counts['n_eval']:,} test images, one seed."
    return "\n".join(lines) + f"\n\nOf frozen features: {said}"
