"""What a training step costs: plain (only OUCL), with the MAG's update (regular + meta), and the same by double backward.

    python benchmarks/meta_step.py [--encoder conv] [--size 64] [--batch 64] [--seconds 100] [--device auto]

One run, one minibatch, each step whole: views, losses, gradients, optimisers, bank. Double backward takes the gradient to omega
only: the fair one. The variants take turns within a round; times and ratios are medians over rounds. Peak memory is what a step
adds to weights and optimiser states: on the CPU the resident set of a process of its own, on a GPU torch's count.
"""

import argparse
import statistics

from _measure import Steps, peaks, ratio, turns
from _results import table, write

from metaug_core import Config
from metaug_core.training.loop import pick_device
from metaug_workbook.results.step_costs import count_work

VARIANTS = {
    "plain (only OUCL)": {"method": "metaug-only-oucl"},
    "regular + meta": {"method": "metaug"},
    "regular + meta, the optimiser's look-ahead": {"method": "metaug", "look_ahead_update": "optimiser"},
    "regular + meta, own gradient": {"method": "metaug", "look_ahead": "fresh"},
    "regular + double backward": {"method": "metaug", "meta": "double-backward"},
}


def measure(base: Config, seconds: float) -> list[dict]:
    device, plain = pick_device(base.device), next(iter(VARIANTS))
    configs = {name: base.replace(**changes) for name, changes in VARIANTS.items()}
    steps = {name: Steps(config) for name, config in configs.items()}
    work = {name: count_work(step) for name, step in steps.items()}  # the first step of a kind is eager
    found = turns(steps, device, seconds)
    memory = dict(zip(configs, peaks(list(configs.values())), strict=True))
    return [
        {
            "step": name,
            "milliseconds": 1e3 * statistics.median(found[name]),
            "times_plain": ratio(found[name], found[plain]),
            "rounds": len(found[name]),
            "eager_because": steps[name].stepper.reason,
            "gflop": work[name].flops / 1e9,
            "peak_megabytes": None if (peak := memory[name]) is None else peak / 2**20,
            "memory_times_plain": None if peak is None else peak / (memory[plain] or 1),
        }
        for name in VARIANTS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="conv")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=100, help="of measuring (the rounds that fit in it, 3 to 25)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    config = Config(encoder=args.encoder, image_size=args.size, batch_size=args.batch, device=args.device)
    rows = measure(config, args.seconds)
    print(f"{args.encoder}, {args.size} px, batch {args.batch}; medians of {rows[0]['rounds']} rounds")
    print(table(rows, **{"step": "{step}", "ms": "{milliseconds:.1f}", "x plain": "{times_plain:.2f}", "GFLOP": "{gflop:.0f}",
                         "peak MB": "{peak_megabytes:.0f}", "peak x plain": "{memory_times_plain:.2f}"}))  # fmt: skip
    name = f"meta_step-{args.encoder}-{args.size}-{args.batch}"
    write(name, "meta_step.py", vars(args), pick_device(args.device), rows=rows)


if __name__ == "__main__":
    main()
