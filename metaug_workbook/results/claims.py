"""The paper's claims, and what the evidence says of each: the table of docs/claims.md and of notebook 09, written from the tables.

A claim is a set of differences with the sign that it needs. It holds where the interval of each is on its side of 0. It does not
hold where one of them is, with its whole interval, below what would matter (`MATTERS` points). Else it is open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from metaug_workbook.results import evidence_tables
from metaug_workbook.results.evidence import DELTAS, EXPERIMENTS, KINDS, PHI_DECS
from metaug_workbook.results.evidence_tables import Cell, Difference, Table

MATTERS = 0.5  # points: about the least gain that the literature of feature augmentation reports
HOLDS, FAILS, OPEN, MISSING, SHOWN = "holds", "does not hold", "open", "no runs yet", "not part of the verdict"


@dataclass(frozen=True)
class Contrast:
    """A difference that a claim is about. needs: more (above 0), less (below 0), same (within `within` points of 0), or nothing: it
    is shown and decides nothing."""

    name: str
    plus: tuple[Cell, ...]
    minus: tuple[Cell, ...]
    needs: str = "more"
    within: float = 1.0

    def judge(self, difference: Difference) -> str:
        low, high = difference.ends
        if self.needs == "nothing":
            return SHOWN
        if np.isnan(low):
            return OPEN if difference.n else MISSING
        if self.needs == "less":
            low, high = -high, -low
        if self.needs == "same":
            return HOLDS if max(-low, high) < self.within else FAILS if max(low, -high) > self.within else OPEN
        return HOLDS if low > 0 else FAILS if high < MATTERS else OPEN


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. letter: as docs/claims.md counts them. paper: its numbers, with their place."""

    letter: str
    sentence: str
    paper: str
    experiment: str
    contrasts: tuple[Contrast, ...]
    beyond: str = "a longer training"  # what could change a verdict that is not open


@dataclass(frozen=True)
class Verdict:
    """What the tables say of a claim. differences and words: of each contrast, by its name. regime and spread: `describe_regime`,
    `describe_spread`."""

    claim: Claim
    word: str
    differences: Mapping[str, Difference]
    words: Mapping[str, str]
    regime: str
    spread: str


def minus(arm: str, reference: str, needs: str = "more") -> Contrast:
    """The accuracy of an arm minus that of another on the same seeds."""
    return Contrast(f"{arm} minus {reference}", ((arm, "accuracy"),), ((reference, "accuracy"),), needs)


def knn_minus(arm: str, reference: str) -> Contrast:
    """The same by kNN, which the paper does not use."""
    return Contrast(f"kNN: {arm} minus {reference}", ((arm, "knn"),), ((reference, "knn"),), "nothing")


def with_augmented(arm: str) -> Contrast:
    """A classifier of z and z~ minus one of h, of the same encoder."""
    return Contrast(f"{arm}: z and z~ minus h", ((arm, "augmented_accuracy"),), ((arm, "accuracy"),), "less")


def drop(method: str, other: str, weak: int, strong: int) -> Contrast:
    """What a method keeps of its accuracy with a weaker augmentation set, minus what another keeps."""
    cells = [(f"{name}, set {number}", "accuracy") for name, number in
             ((method, weak), (other, strong), (method, strong), (other, weak))]  # fmt: skip
    name = f"set {weak} minus set {strong}: {method} minus {other}"
    return Contrast(name, tuple(cells[:2]), tuple(cells[2:]))


CLAIMS = (
    Claim(
        "a", "OUCL beats the contrastive loss.", "85.98 against CMC's 81.31: +4.67 (Table 1, CIFAR-10, conv)", "09-claims",
        (
            minus("only OUCL", "CMC"),
            minus("only OUCL", "CMC at t = 2/beta"),
            knn_minus("only OUCL", "CMC"),
            knn_minus("only OUCL", "CMC at t = 2/beta"),
        ),
    ),
    Claim(
        "b", "Meta feature augmentation adds to OUCL.", "87.87 against 85.98: +1.89 (Table 1, CIFAR-10, conv)", "09-claims",
        (minus("MetAug, literal", "only OUCL"), minus("MetAug", "only OUCL"), minus("MetAug", "frozen MAG"),
         knn_minus("MetAug", "only OUCL")),
    ),
    Claim(
        "c", "R_sigma keeps augmented features from copying the originals, and the encoders are better for it.",
        "a picture (Figure 2), no numbers", "09-claims",
        (
            Contrast("100 d(z, z~): MetAug minus no R_sigma", (("MetAug", "augmented_similarity"),),
                     (("no R_sigma", "augmented_similarity"),), "less"),
            minus("MetAug", "no R_sigma"),
        ),
    ),
    Claim(
        "d", "Attenuating Gamma helps, and most at 6.", "42.02 at 6, 41.16 without Gamma: +0.86 (Figure 3, Tiny ImageNet, conv)",
        "04-gamma-attenuation",
        (
            minus("phi_dec 6", "without Gamma"),
            *(minus("phi_dec 6", f"phi_dec {phi}") for phi in PHI_DECS if phi != 6),
        ),
    ),
    Claim(
        "e", "The Large margin is best, with either loss.", "a picture (Figure 5), no numbers", "06-margins",
        tuple(minus(f"{loss}, large", f"{loss}, {kind}") for loss in ("OUCL", "contrastive") for kind in KINDS[:3]),
    ),
    Claim(
        "f", "gamma matters little.", "a picture (Figure 7), no numbers", "07-gamma",
        tuple(minus(f"gamma {gamma:g}", "gamma 0.4", "same") for gamma in (0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.8)),
        "more negatives than a minibatch of 32 has, since gamma is only the factor exp(-2 beta gamma^2) on their sum",
    ),
    Claim(
        "g", "Augmented features in the test hurt a little.", "-0.15 at delta 1e-5, -0.29 to +0.37 at others (Table 5, CIFAR-10)",
        "11-delta", tuple(with_augmented(f"delta {delta:g}") for delta in DELTAS),
    ),
    Claim(
        "h", "MetAug is robust to weak augmentation.", "from set 8 to set 1 MetAug loses 1.60, LooC 2.44 (Table 4)",
        "08-augmentations", (drop("metaug", "looc", 1, 8), drop("metaug", "looc", 3, 8)),
    ),
)  # fmt: skip


def judge(claim: Claim, folder: Path = evidence_tables.FOLDER) -> Verdict:
    """What the tables in a folder say of a claim. Raises StoreError for a table that cannot be read."""
    table = evidence_tables.read(claim.experiment, folder)
    bits = evidence_tables.read_bits(claim.experiment, folder)
    differences = {c.name: evidence_tables.compare(table, c.plus, c.minus, bits) for c in claim.contrasts}
    words = {c.name: c.judge(differences[c.name]) for c in claim.contrasts}
    word = next(word for word in (FAILS, MISSING, OPEN, HOLDS) if word in words.values())
    spread = describe_spread(table, EXPERIMENTS[claim.experiment].reference, bits)
    return Verdict(claim, word, differences, words, describe_regime(table), spread)


def judge_all(folder: Path = evidence_tables.FOLDER) -> list[Verdict]:
    return [judge(claim, folder) for claim in CLAIMS]


def describe_regime(table: Table) -> str:
    """Of what the rows of a table are, in which a verdict holds: images, networks, length, measure, machines."""
    rows = evidence_tables.select_seeds(table)
    if rows.empty:
        return ""
    first = rows.iloc[0]
    names = {"folder": "an image folder", "cifar10": "CIFAR-10", "shapes": "`shapes`"}
    images = "all images" if pd.isna(first["train_images"]) else f"{int(first['train_images']):,} images"
    machines = ", ".join(sorted({f"{row.processor} ({row.precision})" for row in rows.itertuples()}))
    return (
        f"{names.get(first['dataset'], first['dataset'])}, {images} at {int(first['image_size'])} px, {first['encoder']} of width "
        f"{first['width']:g}, {int(first['epochs'])} epochs, {int(first['n_eval']):,} test images; {machines}"
    )


def describe_spread(table: Table, arm: str, bits: Mapping[str, np.ndarray]) -> str:
    """How much an arm differs between seeds, and how much of that the size of the test set explains."""
    deviation, sampling = evidence_tables.split_spread(table, arm, bits)
    if np.isnan(sampling):
        return ""
    return (
        f"Between seeds the accuracy of {arm} has a standard deviation of {deviation:.2f} points. If each test image were right by "
        f"chance alone, it would be {sampling:.2f}"
    )


def format_difference(difference: Difference) -> str:
    """`+0.3 ± 0.5 (n = 5; ± 0.4 over images)`."""
    if not difference.n:
        return "–"
    half = "" if np.isnan(difference.half) else f" ± {difference.half:.1f}"
    images = "" if np.isnan(difference.half_images) else f"; ± {difference.half_images:.1f} over images"
    return f"{difference.mean:+.1f}{half} (n = {difference.n}{images})"


def describe_needs(verdict: Verdict) -> str:
    """What would decide what is open: the seeds for an interval of ± `MATTERS`, and the command."""
    command = f"`metaug evidence {verdict.claim.experiment}`"
    if verdict.word == MISSING:
        return command
    if verdict.word != OPEN:
        return verdict.claim.beyond
    open_ones = [verdict.differences[name] for name, word in verdict.words.items() if word == OPEN]
    counts = [count for one in open_ones if (count := one.count_seeds(MATTERS))]
    return f"{max(counts)} seeds: {command[:-1]} --seeds {max(counts)}`" if counts else command


def to_answer(verdict: Verdict) -> str:
    """A verdict as the first sentences of a notebook: the claim, the word, and the differences that there are."""
    claim, found = verdict.claim, {name: one for name, one in verdict.differences.items() if one.n}
    first = f"**Claim ({claim.letter}): {claim.sentence[:-1]} – {verdict.word}.** The paper: {claim.paper}."
    if not found:
        return f"{first} To be run: {describe_needs(verdict)}."
    listed = "; ".join(f"{name}: {one.mean:+.1f} ± {one.half:.1f}".replace(" ± nan", "") for name, one in found.items())
    low, high = min(one.n for one in found.values()), max(one.n for one in found.values())
    seeds = f"{high} seeds" if low == high else f"{low} to {high} seeds"
    return f"{first} Here, in points, with 95 % intervals over {seeds}: {listed}. {verdict.regime[:1].upper()}{verdict.regime[1:]}."


def to_text(verdicts: Sequence[Verdict]) -> str:
    """The verdicts for a terminal."""
    lines = []
    for v in verdicts:
        lines += [f"({v.claim.letter}) {v.claim.sentence}  {v.word}", f"    paper: {v.claim.paper}"]
        lines += [
            f"    {name}: {format_difference(one)}  {v.words[name]}" for name, one in v.differences.items() if one.n
        ]
        lines += [f"    next: {describe_needs(v)}"]
    return "\n".join(lines)


BEGIN, END = "<!-- claims: `metaug claims --markdown` -->", "<!-- claims end -->"  # of what docs/claims.md takes in


def to_table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table of Markdown: claim, the paper's numbers, verdict."""
    rows = [f"| ({v.claim.letter}) {v.claim.sentence} | {v.claim.paper} | **{v.word}** |" for v in verdicts]
    return "\n".join(["| claim | the paper | verdict |", "|---|---|---|", *rows])


def to_markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as docs/claims.md has them: a table, then each claim with all its differences."""
    lines = [BEGIN, "", to_table(verdicts)]
    for v in verdicts:
        lines += ["", f"## ({v.claim.letter}) {v.claim.sentence}", "", f"The paper: {v.claim.paper}."]
        lines += [f"Here: {v.regime or 'no runs yet'}.", *([f"{v.spread}."] if v.spread else [])]
        lines += [
            "",
            "| difference, in points | mean ± 95 % over seeds | |",
            "|---|---|---|",
        ]
        lines += [f"| {name} | {format_difference(one)} | {v.words[name]} |" for name, one in v.differences.items()]
        lines += ["", f"What it would take: {describe_needs(v)}."]
    return "\n".join([*lines, "", END]) + "\n"
