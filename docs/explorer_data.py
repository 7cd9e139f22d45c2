"""The numbers behind two explorers of the site, as a script that a page loads: _static/explorers/data.js.

    python docs/explorer_data.py

FEATURES: z and z~ (V, N, d) of a trained run, which the margin explorer compares. FRAMES: Algorithm 1 on a circle as
`toys.run_algorithm` computes it, which the meta-step stepper plays, by the rate of the look-ahead and with or without R_sigma.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from metaug_core import fit, preset
from metaug_core.meta.forward_ad import Params
from metaug_core.objectives.similarity import similarity
from metaug_workbook.teaching.toys import Frame, run_algorithm
from metaug_workbook.widgets.margins import embed_run
from metaug_workbook.widgets.meta_step import INNER, measure_norm

FILE = Path(__file__).parent / "_static" / "explorers" / "data.js"


def write_features(images: int = 32) -> dict[str, Any]:
    """Features of the default run, in thousandths, so that the page stays small."""
    run = fit(preset("quick", seed=0))
    z, augmented = ((1000 * part[:, :images]).round().int().tolist() for part in embed_run(run))
    return {"source": "training images of the default run on shapes, seed 0", "z": z, "augmented": augmented}


def write_frames(inner_lr: float, alpha: float) -> dict[str, Any]:
    """The steps of Algorithm 1 on a circle. Features are angles (steps, V B); an arrow is how far z~ moves along the circle.

    z and augmented have one step more than the rest: where the last step leads to."""
    frames = run_algorithm(inner_lr, alpha, 0)
    numbers = {
        "z": [*(measure_angles(frame.z) for frame in frames), measure_angles(frames[-1].z_next)],
        "augmented": [
            *(measure_angles(frame.augmented) for frame in frames),
            measure_angles(frames[-1].augmented_next),
        ],
        "ahead": [measure_angles(frame.z_ahead) for frame in frames],
        "direct": [measure_turns(frame, frame.along_direct) for frame in frames],
        "mixed": [measure_turns(frame, frame.along_mixed) for frame in frames],
        "norms": [[measure_norm(part) for part in get_parts(frame)] for frame in frames],
        "loss": [frame.now.loss_ahead for frame in frames],
        "copy": [float(similarity((frame.z * frame.augmented).sum(-1)).mean()) for frame in frames],
    }
    return json.loads(json.dumps(numbers), parse_float=lambda text: round(float(text), 7))


def get_parts(frame: Frame) -> tuple[Params, Params]:
    return frame.now.direct, frame.now.mixed


def measure_angles(features: Tensor) -> list[float]:
    """Unit vectors (V, B, 2) -> angles (V B,)."""
    x, y = features.flatten(0, 1).unbind(-1)
    return y.atan2(x).tolist()


def measure_turns(frame: Frame, along: Tensor) -> list[float]:
    """Tangents (V, B, 2) at z~ -> how long they are (V B,), above 0 counterclockwise."""
    (x, y), (dx, dy) = frame.augmented.unbind(-1), along.unbind(-1)
    return (x * dy - y * dx).flatten().tolist()


def main() -> None:
    frames = {
        f"{rate:g}": {str(bool(alpha)).lower(): write_frames(rate, alpha) for alpha in (0.0, 1.0)} for rate in INNER
    }
    lines = [f"const {name} = {json.dumps(data, separators=(',', ':'))};" for name, data in
             {"FEATURES": write_features(), "FRAMES": frames}.items()]  # fmt: skip
    FILE.write_text("\n".join(["/* Written by docs/explorer_data.py. */", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
