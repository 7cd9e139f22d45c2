"""MetAug and its ablation on real images: an image folder (train/CLASS/*, test/CLASS/*), beside the untrained encoder.

    python benchmarks/real_images.py FOLDER [--images 10000] [--epochs 5] [--seeds 1] [--note "what the images are"]

A small encoder and few epochs: it shows that the same config trains on real images, not how well the method does.
"""

import argparse
import tempfile
import time
from pathlib import Path

from _results import write

from metaug_core import evaluate, fit, preset

METHODS = ("metaug", "metaug-only-oucl")
MEASURES = ("probe_plain", "probe_fast", "knn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    if args.folder is None:  # as `make benchmarks` calls it: there is no data set that everybody has
        print("skipped: name an image folder")
        return
    found = []
    with tempfile.TemporaryDirectory() as runs:
        for seed in range(args.seeds):
            for method in METHODS:
                config = preset("quick", dataset="folder", data_dir=args.folder, train_images=args.images, epochs=args.epochs,
                                method=method, seed=seed, lr=args.lr, views=("L", "ab", "RGB"), runs_dir=Path(runs))  # fmt: skip
                start = time.monotonic()
                run = fit(config)
                table = evaluate(run).reset_index().assign(seconds_per_epoch=(time.monotonic() - start) / args.epochs)
                found += table.assign(train_method=method, seed=seed).to_dict("records")
    print(f"{args.note} {args.images} training images, {args.epochs} epochs, {args.seeds} seed(s); test accuracy in %")
    print("| | " + " | ".join(MEASURES) + " |\n|---|---|---|---|")
    for row in found:
        if row["representation"] == "trained" or row["train_method"] == METHODS[0]:
            name = row["train_method"] if row["representation"] == "trained" else row["representation"]
            print(f"| {name}, seed {row['seed']} | " + " | ".join(f"{100 * row[m]:.1f}" for m in MEASURES) + " |")
    asked = vars(args) | {"folder": None}  # where the images lie on this machine is nobody else's business
    write("real_images", "real_images.py FOLDER", asked, "cpu", rows=found)


if __name__ == "__main__":
    main()
