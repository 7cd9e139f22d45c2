/* The margins of eq. 4 and the pairs that R_σ (eq. 5) pushes, on features of a real run (data.js: z and z~, V x N x d). */
"use strict";
{
  const BINS = 50, KINDS = { large: "Large", medium: "Medium", small: "Small", none: "None" };
  const dot = (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0);
  const normalise = vector => {
    const norm = Math.sqrt(dot(vector, vector));
    return vector.map(value => value / norm);
  };
  const average = values => values.reduce((sum, value) => sum + value, 0) / values.length;

  /* Similarities (1 + cos) / 2 of each anchor with the features of all other views: [positives, negatives]. */
  function compare(anchors, targets) {
    const positives = [], negatives = [];
    anchors.forEach((ofView, v) => targets.forEach((others, u) => {
      if (u === v) return;
      ofView.forEach((a, i) => others.forEach((b, k) => (i === k ? positives : negatives).push((1 + dot(a, b)) / 2)));
    }));
    return [positives, negatives];
  }

  const z = FEATURES.z.map(view => view.map(normalise)), augmented = FEATURES.augmented.map(view => view.map(normalise));
  const original = compare(z, z);
  const ends = [Math.min(...original[0]), Math.max(...original[1])]; // min+ and max- of eq. 4

  function findMargins(kind) {
    const [low, high] = [Math.min(...ends), Math.max(...ends)], middle = (low + high) / 2;
    return { large: [low, high], medium: [middle, middle], small: [high, low], none: [Infinity, -Infinity] }[kind];
  }

  /* Features on the way from z (0) to z~ (1), along the arc between. */
  const move = strength => z.map((view, v) => view.map((feature, i) =>
    normalise(feature.map((value, k) => value + strength * (augmented[v][i][k] - value)))));

  function measure({ margin, strength }) {
    const [sigmaPlus, sigmaMinus] = findMargins(margin), [positives, negatives] = compare(move(strength), z);
    const pushed = [positives.filter(d => d > sigmaPlus), negatives.filter(d => d < sigmaMinus)];
    const [tooNear, tooFar] = [positives.map(d => Math.max(d - sigmaPlus, 0)), negatives.map(d => Math.max(sigmaMinus - d, 0))];
    const regularisation = average(tooNear) + average(tooFar);
    const shares = [pushed[0].length / positives.length, pushed[1].length / negatives.length];
    return { sigmaPlus, sigmaMinus, positives, negatives, pushed, shares, regularisation };
  }

  function count(values, total) {
    const shares = new Array(BINS).fill(0);
    for (const value of values) shares[Math.min(Math.floor(BINS * value), BINS - 1)] += 1 / total;
    return shares;
  }

  function outline(axes, shares) {
    const steps = shares.flatMap((share, k) => [[k / BINS, share], [(k + 1) / BINS, share]]);
    return path([[0, 0], ...steps, [1, 0]].map(([x, y]) => [axes.X(x), axes.Y(y)]));
  }

  function makeHistogram(host, title, x, width, height, top) {
    const ylim = [0, top], yticks = [0, Math.floor(10 * top) / 10];
    const axes = makeAxes(host, { width, height, title, x, y: "share of its kind", ylim, xticks: [0, 0.25, 0.5, 0.75, 1], yticks });
    const draw = (classes) => make(axes.inside, "path", { class: classes });
    const filled = [draw("pushed blue"), draw("pushed red")], outlines = [draw("outline blue"), draw("outline red")];
    const lines = [draw("limit sky"), draw("limit orange")];
    return (pairs, pushed, limits) => {
      pairs.forEach((values, k) => {
        outlines[k].setAttribute("d", outline(axes, count(values, values.length)));
        filled[k].setAttribute("d", outline(axes, count(pushed[k], values.length)));
      });
      limits.forEach((at, k) => lines[k].setAttribute("d", Number.isFinite(at) ? `M${axes.X(at)} ${axes.top}v${axes.h}` : ""));
    };
  }

  function build(host, set, width) {
    const narrow = width < NARROW, height = narrow ? 150 : 185;
    const shown = [original, compare(augmented, z)].flat().map(values => Math.max(...count(values, values.length)));
    const top = 1.15 * Math.max(...shown);
    const [above, below] = narrow
      ? ["Two original features: min⁺, max⁻", "One original, one augmented: filled is pushed"]
      : ["Two original features: they give the margins, from min⁺ and max⁻ (eq. 4)",
        "One original and one augmented feature: filled is what R_σ pushes (eq. 5)"];
    makeHistogram(host, above, "", width, height - 16, top)(original, [[], []], ends);
    const update = makeHistogram(host, below, "similarity d", width, height, top);
    return values => {
      const { sigmaPlus, sigmaMinus, positives, negatives, pushed, shares, regularisation } = measure(values);
      update([positives, negatives], pushed, [sigmaPlus, sigmaMinus]);
      if (values.margin === "none") return "No margins: R_σ = 0 and no pair is pushed, so nothing keeps z̃ from copying z.";
      const [ofSame, ofOthers] = shares.map(share => Math.round(100 * share));
      return `${KINDS[values.margin]}: σ⁺ = ${sigmaPlus.toFixed(2)}, σ⁻ = ${sigmaMinus.toFixed(2)}. ${ofSame} % of the pairs ` +
        `of the same image are above σ⁺ and are pushed apart, ${ofOthers} % of those of different images are below σ⁻ and are ` +
        `pushed together. R_σ = ${regularisation.toFixed(4)}.`;
    };
  }

  EXPLORERS.margins = {
    title: "Margin explorer: what keeps augmented features from copying the original ones",
    controls: {
      margin: { label: "margins", tip: "eq. 4 and Appendix A.2", menu: KINDS, value: "large" },
      strength: {
        label: "z̃: from z (0) to MAG (1)", tip: "at 0 the augmented feature is a copy of z", min: 0, max: 1, step: 0.05, value: 1,
      },
    },
    presets: [
      ["A copy", "z̃ = z, the collapse: Large pushes nearly all pairs of the same image apart.", { margin: "large", strength: 0 }],
      ["A copy, Small", "The same under the easiest margins: fewer than half of these pairs are pushed.",
        { margin: "small", strength: 0 }],
      ["No margins", "No pair is pushed, so nothing keeps z̃ from copying z.", { margin: "none", strength: 1 }],
    ],
    reset: "The trained MAG: no pair of the same image is above σ⁺, so z̃ is no copy. It also hardly tells images apart.",
    caption: `n = ${z[0].length} images, ${z.length} views: ${FEATURES.source}`,
    legend: [
      ['<path d="M1 6H25" class="outline blue"/>', "pairs of the same image"],
      ['<path d="M1 6H25" class="outline red"/>', "pairs of different images"],
      ['<rect width="13" height="12" class="pushed blue"/><rect x="13" width="13" height="12" class="pushed red"/>',
        "those that are pushed"],
      ['<path d="M13 0V12" class="limit sky"/>', "above min⁺, below σ⁺: the same image is pushed below it"],
      ['<path d="M13 0V12" class="limit orange"/>', "above max⁻, below σ⁻: different images are pushed above it"],
    ],
    measure,
    build,
  };
}
