"""What it takes to evaluate: frozen features of all images, both linear probes on plain images (one over six
learning rates), kNN.

    python benchmarks/evaluation.py [--images 60000] [--width 1] [--size 32] [--rounds 2] [--device auto]

The images are noise, as many as CIFAR-10 has (five sixths to train on), of ten classes: what is in a picture does not change
what it costs. On a CPU fewer of them and a narrow encoder; all parts grow linearly with the images but kNN, which grows with
their square. Medians over rounds, after one that warms up.
"""

import argparse
import statistics

import torch
from _measure import default, seconds
from _results import table, write

from metaug_core import Config
from metaug_core.evaluation.probes import PLAIN_PROBES, Labelled, predict_knn, probe_linear
from metaug_core.evaluation.representations import features, load_networks
from metaug_core.runtime.device import keep_freed_memory
from metaug_core.training.loop import pick_device
from metaug_workbook.results.step_costs import make_noise

CLASSES = 10


def measure(config: Config, count: int, rounds: int, device: str) -> tuple[list[dict], int]:
    """Seconds by part, and the dimension of the features."""
    images, held = make_noise(count, config.image_size, device), count // 6
    networks = load_networks(config, CLASSES)[0].to(device)
    parts: dict[str, list[float]] = {}
    with keep_freed_memory():  # as in `evaluate`
        for number in range(rounds + 1):
            found: list[torch.Tensor] = []
            took = {"features": seconds(lambda found=found: found.append(features(networks, images, config)), device)}
            labels = torch.arange(count, device=device) % CLASSES
            test, train = (Labelled(found[0][part], labels[part]) for part in (slice(held), slice(held, None)))
            for name, probe in PLAIN_PROBES.items():
                what = f"{name}: {len(probe.lrs)} learning rate(s), {probe.epochs} epochs"
                took[what] = seconds(lambda p=probe, a=train, b=test: probe_linear(p, a, b.x, None, CLASSES), device)
            took["kNN"] = seconds(lambda a=train, b=test: predict_knn(a.x, a.y, b.x, CLASSES), device)
            for part, value in took.items():
                parts.setdefault(part, []).extend([value] if number else [])
    rows = [{"part": part, "seconds": statistics.median(values)} for part, values in parts.items()]
    return [*rows, {"part": "together", "seconds": sum(row["seconds"] for row in rows)}], found[0].shape[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int)
    parser.add_argument("--encoder", default="conv")
    parser.add_argument("--width", type=float)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    args.images, args.width = args.images or default(device, 60_000, 6_000), args.width or default(device, 1.0, 0.25)
    config = Config(encoder=args.encoder, width=args.width, image_size=args.size, device=args.device)
    rows, dim = measure(config, args.images, args.rounds, device)
    print(
        f"{args.images} images of {args.size} px, {args.encoder} x {args.width}, {dim} features; medians of {args.rounds} rounds"
    )
    print(table(rows, part="{part}", seconds="{seconds:.2f}"))
    write(f"evaluation-{device}", "evaluation.py", vars(args), device, rows=rows, features=dim)


if __name__ == "__main__":
    main()
