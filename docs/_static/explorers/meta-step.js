/* The meta-step on a circle, stage by stage: what the engine computed (data.js), played. Three images, two views; theta is the
angle of each feature, the MAG one linear map for each view. */
"use strict";
{
  const STEPS = 8, OUTER = 1.3; // z~ is on the unit circle as well: drawn further out, it does not hide z
  const COLORS = ["blue", "red", "green"]; // of an image
  const STAGES = {
    features: "Features z (inner circle) and augmented features z̃ = MAG(z) (outer ring).",
    "look-ahead": "Look-ahead: a step of size l along the encoder's gradient would move z to the crosses (θ', eq. 3).",
    "gradient of the MAG": "The MAG's gradient at θ' has two parts. Direct: what z̃ itself does to the loss. " +
      "Mixed: how z̃ steers the encoder's next step.",
    update: "Update: the encoder steps, and the MAG follows both parts together.",
  };
  const longest = frames => Math.max(...[...frames.direct, ...frames.mixed].flat().map(Math.abs));

  /* What is seen at a stage: features as angles, the two parts of the MAG's gradient and what they amount to. */
  function measure({ stage, inner_lr, margin }) {
    const frames = FRAMES[inner_lr][margin], step = Math.floor(stage / 4), updated = stage % 4 === 3 ? 1 : 0;
    const at = name => frames[name][step];
    return {
      step, stage: stage % 4, frames, z: frames.z[step + updated], augmented: frames.augmented[step + updated], ahead: at("ahead"),
      direct: at("direct"), mixed: at("mixed"), norms: at("norms"), loss: at("loss"), scale: 0.8 / longest(frames),
    };
  }

  const round = (angle, radius) => [radius * Math.cos(angle), radius * Math.sin(angle)];

  function makeCircle(host, side) {
    const limits = [-1.7, 1.7], size = { width: side, height: side };
    const axes = makeAxes(host, { ...size, title: " ", xlim: limits, ylim: limits, xticks: [], bare: true });
    const place = ([x, y]) => [axes.X(x), axes.Y(y)];
    for (const [radius, look] of [[1, "ring"], [OUTER, "ring dotted"]])
      make(axes.inside, "circle", { cx: axes.X(0), cy: axes.Y(0), r: axes.X(radius) - axes.X(0), class: look });
    const shapes = classes => Array.from({ length: 6 }, (_, k) =>
      make(axes.inside, "path", { class: `${classes} ${COLORS[k % 3]}` }));
    const [inner, outer, ahead] = ["dot filled", "dot", "dot"].map(shapes);
    const [direct, mixed] = ["arrow orange", "arrow purple"].map(look => make(axes.inside, "path", { class: look }));
    const arrows = { direct, mixed };
    const disc = ([x, y]) => `M${x - 5.5} ${y}a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0`;
    const square = ([x, y]) => `M${x - 5} ${y - 5}h10v10h-10z`;
    const cross = ([x, y]) => `M${x - 5} ${y - 5}l10 10M${x - 5} ${y + 5}l10 -10`;
    const marker = k => (k < 3 ? disc : square);
    return ({ step, stage, z, augmented, ahead: next, scale, ...parts }) => {
      axes.title.textContent = `Step ${step + 1} of ${STEPS}: ${Object.keys(STAGES)[stage]}`;
      z.forEach((angle, k) => inner[k].setAttribute("d", marker(k)(place(round(angle, 1)))));
      augmented.forEach((angle, k) => outer[k].setAttribute("d", marker(k)(place(round(angle, OUTER)))));
      next.forEach((angle, k) => ahead[k].setAttribute("d", stage === 1 || stage === 2 ? cross(place(round(angle, 1))) : ""));
      for (const [name, radius] of [["direct", OUTER], ["mixed", OUTER + 0.12]]) {
        const each = augmented.map((angle, k) => {
          const [x, y] = round(angle, radius), by = scale * parts[name][k];
          return arrow(place([x, y]), place([x - by * Math.sin(angle), y + by * Math.cos(angle)]));
        });
        arrows[name].setAttribute("d", stage === 2 ? each.join("") : "");
      }
    };
  }

  function makeCourse(host, width, height, title, y, ylim, yticks, looks) {
    const steps = Array.from({ length: STEPS }, (_, k) => k + 1);
    const axes = makeAxes(host, { width, height, title, x: "step", y, xlim: [0.7, STEPS + 0.3], ylim, xticks: steps, yticks });
    const lines = looks.map(look => make(axes.inside, "path", { class: `curve ${look}` }));
    const here = make(axes.inside, "path", { class: "here" });
    return (step, ...curves) => {
      curves.forEach((values, k) => lines[k].setAttribute("d", path(values.map((value, s) => [axes.X(s + 1), axes.Y(value)]))));
      here.setAttribute("d", `M${axes.X(step + 1)} ${axes.top}v${axes.h}`);
    };
  }

  function build(host, set, width) {
    const narrow = width < NARROW, side = narrow ? 0.85 * width : Math.min(0.52 * width, 430);
    const rest = narrow ? (width - 8) / 2 : width - side - 8, height = narrow ? 150 : side / 2;
    const circle = makeCircle(host, side);
    const column = make(host, "div", { class: "explorer-panels", style: `width: ${narrow ? width : rest}px` });
    const parts = makeCourse(column, rest, height, "Gradient of the MAG", "norm", [0, 0.65], [0, 0.3, 0.6], ["orange", "purple"]);
    const copy = makeCourse(column, rest, height, "Does z̃ copy z?", "d(z, z̃)", [0.85, 1.005], [0.85, 0.9, 0.95, 1], ["muted"]);
    return values => {
      const now = measure(values), { step, stage, frames, norms, loss, scale } = now;
      circle(now);
      parts(step, frames.norms.map(pair => pair[0]), frames.norms.map(pair => pair[1]));
      copy(step, frames.copy);
      return `${Object.values(STAGES)[stage]} Norms: direct ${norms[0].toFixed(3)}, mixed ${norms[1].toFixed(3)}; loss at θ' ` +
        `${loss.toFixed(3)}. Arrows are drawn ${scale.toFixed(1)} times as long as they are.`;
    };
  }

  EXPLORERS["meta-step"] = {
    title: "Meta-step stepper: what the MAG's gradient is made of",
    play: { control: "stage", milliseconds: 1500 },
    controls: {
      stage: {
        label: "stage (4 per step)", tip: Object.keys(STAGES).join(", "), min: 0, max: 4 * STEPS - 1, step: 1, value: 2,
      },
      inner_lr: {
        label: "l, look-ahead step (eq. 3)", tip: "in units of the gradient; 0: no second derivative", options: [0, 0.25, 0.5, 1],
        value: 1,
      },
      margin: { label: "R_σ, the margins (eq. 5)", value: true, tip: "off: nothing keeps z̃ from copying z" },
    },
    presets: [
      ["No look-ahead", "With l = 0 there is no step to steer: the mixed part is 0.", { stage: 2, inner_lr: 0, margin: true }],
      ["No margins", "Without R_σ nothing keeps z̃ from copying z: the lower curve.", { stage: 31, inner_lr: 1, margin: false }],
    ],
    reset: "The first gradient of the MAG: two parts, which need not agree.",
    caption: "computed by the engine in float64, n = 3 images",
    legend: [
      ['<circle cx="7" cy="6" r="4.5" class="dot filled"/><rect x="16" y="2" width="8" height="8" class="dot filled"/>',
        "z of view 1 and 2; a colour is an image"],
      ['<circle cx="7" cy="6" r="4.5" class="dot"/><rect x="16" y="2" width="8" height="8" class="dot"/>',
        "its z̃; both rings are the unit circle, drawn apart"],
      ['<path d="M8 2l8 8M8 10l8 -8" class="dot"/>', "z at θ'"],
      ['<path d="M1 6H24M18 2L24 6L18 10" class="arrow orange"/>', "direct part"],
      ['<path d="M1 6H24M18 2L24 6L18 10" class="arrow purple"/>', "mixed part"],
      ['<path d="M13 0V12" class="here"/>', "this step"],
    ],
    measure,
    build,
  };
}
