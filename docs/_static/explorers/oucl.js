/* What OUCL asks of a pair of similarities and how hard it pushes, beside InfoNCE (eq. 1, 8, 9, 10), in closed form.

One positive d⁺ and one negative d⁻. The loss is softplus(e) / β, or softplus(e) for InfoNCE, with the exponent e:
  eq. 9, 10   β / φ ((d⁺ - 1)² + (d⁻)² - 2 γ²)     the weights Γ multiplied out; φ = 1 is eq. 10
  eq. 8       β (d⁻ - d⁺ + λ), λ = 1 - 2 γ          the weights are 1
  eq. 1       (d⁻ - d⁺) / (t / 2)                   d is half as wide as a cosine, so the temperature is half as high */
"use strict";
{
  const softplus = x => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
  const sigmoid = x => 1 / (1 + Math.exp(-x));

  function measureOucl(dPos, dNeg, { beta, gamma, weights, phi_dec }) {
    const exponent = weights
      ? (beta / phi_dec) * ((dPos - 1) ** 2 + dNeg ** 2 - 2 * gamma ** 2)
      : beta * (dNeg - dPos + 1 - 2 * gamma);
    const [byPos, byNeg] = weights ? [(2 * (dPos - 1)) / phi_dec, (2 * dNeg) / phi_dec] : [-1, 1];
    const share = sigmoid(exponent);
    return { loss: softplus(exponent) / beta, positive: share * byPos, negative: share * byNeg };
  }

  function measureInfoNce(dPos, dNeg, { temperature }) {
    const exponent = (dNeg - dPos) / (temperature / 2), share = sigmoid(exponent);
    return { loss: softplus(exponent), positive: -share / (temperature / 2), negative: share / (temperature / 2) };
  }

  const LOSSES = { oucl: measureOucl, infoNce: measureInfoNce };

  function measure(values) {
    const measured = {};
    for (const [name, loss] of Object.entries(LOSSES)) {
      const corner = loss(0, 1, values); // the worst pair: its gradient is the largest of the map
      measured[name] = { ...loss(values.positive, values.negative, values), steepest: Math.max(-corner.positive, corner.negative) };
    }
    return measured;
  }

  /* --- one map: its value in bands, where a step moves a pair, where the loss is half satisfied, and the pair */
  const SIDE = 120, BANDS = 16, ARROWS = 9;

  function paint(loss, values) {
    const losses = new Float64Array(SIDE * SIDE);
    for (let k = 0; k < losses.length; k++) {
      const row = Math.floor(k / SIDE);
      losses[k] = loss(((k % SIDE) + 0.5) / SIDE, 1 - (row + 0.5) / SIDE, values).loss;
    }
    const [low, high] = [losses.reduce((a, b) => Math.min(a, b)), losses.reduce((a, b) => Math.max(a, b))];
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    const context = canvas.getContext("2d"), image = context.createImageData(SIDE, SIDE);
    losses.forEach((value, k) => {
      const band = Math.min(Math.floor((BANDS * (value - low)) / (high - low)), BANDS - 1);
      image.data.set([0, 100, 190, Math.round((215 * (band + 0.5)) / BANDS)], 4 * k); // more or less of one blue, on any ground
    });
    context.putImageData(image, 0, 0);
    return canvas.toDataURL();
  }

  function drawArrows(axes, loss, values, steepest) {
    let d = "";
    for (let k = 0; k < ARROWS * ARROWS; k++) {
      const at = [((k % ARROWS) + 0.5) / ARROWS, (Math.floor(k / ARROWS) + 0.5) / ARROWS];
      const { positive, negative } = loss(...at, values);
      const [dx, dy] = [-positive, negative].map(part => (0.95 * axes.w * part) / steepest / ARROWS);
      const [x, y] = [axes.X(at[0]), axes.Y(at[1])];
      d += arrow([x, y], [x + dx, y + dy]);
    }
    return d;
  }

  function makeMap(host, title, loss, side, width, set, get) {
    const axes = makeAxes(host, { width, height: side, title, x: "d⁺, similarity of a positive", y: "d⁻, of a negative" });
    const box = { x: axes.left, y: axes.top, width: axes.w, height: axes.h };
    const image = make(axes.inside, "image", { ...box, preserveAspectRatio: "none" });
    const arrows = make(axes.inside, "path", { class: "arrows" });
    const line = make(axes.inside, "path", { class: "halfway" });
    const dot = make(axes.svg, "circle", { r: 7, class: "pair" });
    const handle = make(axes.svg, "circle", { r: 22, class: "handle", tabindex: 0, role: "button" });
    let painted = "";
    const round = x => Math.round(100 * x) / 100;
    const at = () => [get().positive, get().negative]; // not as drawn: two keys may come within a frame
    makeDraggable(axes, handle, at, (x, y) => set({ positive: round(x), negative: round(y) }));
    return (values, steepest, halfway) => {
      const { positive, negative, ...settings } = values, wanted = JSON.stringify(settings);
      if (wanted !== painted) {
        image.setAttribute("href", paint(loss, values));
        arrows.setAttribute("d", drawArrows(axes, loss, values, steepest));
        line.setAttribute("d", path(halfway.map(([x, y]) => [axes.X(x), axes.Y(y)])));
        painted = wanted;
      }
      for (const circle of [dot, handle]) {
        circle.setAttribute("cx", axes.X(positive));
        circle.setAttribute("cy", axes.Y(negative));
      }
      const at = `d⁺ ${positive.toFixed(2)}, d⁻ ${negative.toFixed(2)}`;
      handle.setAttribute("aria-label", `The pair: ${at}. Drag it, or use the arrow keys.`);
    };
  }

  /* Where the exponent is 0: a circle around the goal (1, 0), or a straight line. */
  function findHalfway({ gamma, weights }) {
    const turns = Array.from({ length: 61 }, (_, k) => (k / 60) * (Math.PI / 2)), radius = Math.SQRT2 * gamma;
    if (weights) return turns.map(turn => [1 - radius * Math.cos(turn), radius * Math.sin(turn)]);
    return [[-1, -1 - (1 - 2 * gamma)], [2, 2 - (1 - 2 * gamma)]];
  }

  function build(host, set, width, get) {
    const narrow = width < NARROW, side = narrow ? (width - 8) / 2 : (width - 24) / 3;
    const maps = Object.entries(LOSSES).map(([name, loss]) =>
      makeMap(host, name === "oucl" ? "Loss: OUCL" : "Loss: InfoNCE", loss, side, side, set, get));
    const axes = makeAxes(host, {
      width: narrow ? width : side, height: side, title: "Gradient at this d⁺, share of the largest",
      x: "d⁻, similarity of a negative", y: " ", ylim: [0, 1.05],
    });
    const curves = ["red", "blue", "purple"].map(color => make(axes.inside, "path", { class: `curve ${color}` }));
    const here = make(axes.inside, "path", { class: "here" });
    return values => {
      const measured = measure(values), { oucl, infoNce } = measured;
      maps[0](values, oucl.steepest, findHalfway(values));
      maps[1](values, infoNce.steepest, [[-1, -1], [2, 2]]);
      const along = Array.from({ length: 101 }, (_, k) => k / 100);
      const parts = [["oucl", "negative", 1], ["oucl", "positive", -1], ["infoNce", "negative", 1]];
      parts.forEach(([name, part, sign], k) => {
        const share = d => (sign * LOSSES[name](values.positive, d, values)[part]) / measured[name].steepest;
        curves[k].setAttribute("d", path(along.map(d => [axes.X(d), axes.Y(share(d))])));
      });
      here.setAttribute("d", `M${axes.X(values.negative)} ${axes.top}v${axes.h}`);
      const form = !values.weights ? "eq. 8" : values.phi_dec === 1 ? "eq. 10" : `eq. 9, Γ / ${values.phi_dec}`;
      return `The pair d⁺ = ${values.positive.toFixed(2)}, d⁻ = ${values.negative.toFixed(2)}. OUCL (${form}): loss ` +
        `${oucl.loss.toFixed(3)}, gradient ${signed(oucl.positive, 3)} on d⁺ and ${signed(oucl.negative, 3)} on d⁻, ` +
        `${values.weights ? "each by its own distance" : "both alike"}. InfoNCE: loss ${infoNce.loss.toFixed(3)}, gradient ` +
        `${signed(infoNce.positive, 2)} and ${signed(infoNce.negative, 2)}, always alike.`;
    };
  }

  EXPLORERS.oucl = {
    title: "OUCL explorer: what a loss asks of a pair, and how hard it pushes",
    controls: {
      positive: {
        label: "d⁺ of the pair (0 to 1)", tip: "similarity of a positive, (1 + cos) / 2", min: 0, max: 1, step: 0.01, value: 0.8,
      },
      negative: {
        label: "d⁻ of the pair (0 to 1)", tip: "similarity of a negative, (1 + cos) / 2", min: 0, max: 1, step: 0.01, value: 0.6,
      },
      beta: {
        label: "β, temperature (2 to 256)", tip: "of OUCL, eq. 8 to 10", options: [2, 4, 8, 16, 32, 64, 128, 256], value: 16,
      },
      gamma: { label: "γ, margin (0 to 1)", tip: "of OUCL; the paper uses 0.40", min: 0, max: 1, step: 0.05, value: 0.4 },
      weights: { label: "weights Γ (eq. 9, 10)", tip: "off: eq. 8 with λ = 1 - 2γ", value: true },
      phi_dec: {
        label: "φ_dec, divides Γ", tip: "attenuation of Γ (section 4.4); 1: none", options: [1, 2, 4, 6, 8], value: 1,
        enabled: values => values.weights,
      },
      temperature: { label: "t of InfoNCE", tip: "temperature on cosines, eq. 1", min: 0.01, max: 0.5, step: 0.01, value: 0.07 },
    },
    presets: [
      ["Paper", "Weights Γ divided by 6: a push that fades slowly, felt by pairs that are nearly right as well.",
        { beta: 16, gamma: 0.4, phi_dec: 6, weights: true }],
      ["Authors", "Their code sets both weights to 1 and λ to 0: eq. 8, which pushes both similarities alike, as InfoNCE does.",
        { beta: 16, gamma: 0.5, phi_dec: 1, weights: false }],
      ["Hardest negative", "A negative more alike than the positive: OUCL pushes the worse of the two harder.",
        { positive: 0.6, negative: 0.95 }],
    ],
    reset: "A positive that is nearly right and a negative that is not: OUCL pushes mostly the negative, InfoNCE hardly either.",
    legend: [
      ['<circle cx="13" cy="6" r="5" class="pair"/>', "the pair: drag it"],
      ['<path d="M1 6H25" class="halfway"/>', "halfway to satisfied: loss log 2 / β (log 2 for InfoNCE)"],
      ['<path d="M3 6H23M18 2.5L23 6L18 9.5" class="arrows"/>', "where a step of descent moves a pair"],
      ['<rect width="26" height="12" class="high"/>', "high loss"],
      ['<path d="M1 6H25" class="curve red"/>', "OUCL on d⁻"],
      ['<path d="M1 6H25" class="curve blue"/>', "OUCL on d⁺"],
      ['<path d="M1 6H25" class="curve purple"/>', "InfoNCE, on both alike"],
      ['<path d="M13 0V12" class="here"/>', "d⁻ of the pair"],
    ],
    measure,
    build,
  };
}
