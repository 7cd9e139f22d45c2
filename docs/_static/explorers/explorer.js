/* What the explorers of the site share: controls, presets, axes and drawing. No dependency and no kernel.

A page holds <div class="explorer" data-explorer="NAME" data-settings='{"beta": 16}'>; a file beside this one sets EXPLORERS.NAME:
  title; controls by the name of their value; play {control, milliseconds}, where a slider can be played;
  presets [name, sentence, values]; legend [mark, text], a mark being SVG of 26 x 12;
  reset: a sentence on how it begins; caption: where its numbers are from, if not from a formula;
  measure(values) -> every number that is shown, without drawing;
  build(host, set, width, get) -> update(values), which draws into host, width px wide, and returns a sentence with the most
    telling numbers; set(values) moves controls, get() says where they are, drawn or not yet. */
"use strict";
const EXPLORERS = {};
const NARROW = 560; // px of an explorer, below which a phone's layout is drawn

function make(parent, tag, attributes = {}, text = "") {
  const svg = parent instanceof SVGElement || tag === "svg";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) write(node, text);
  return parent.appendChild(node);
}

/* Text in which φ_dec has a subscript. */
function write(node, text) {
  node.textContent = "";
  text.split(/_(\p{L}+)/u).forEach((part, k) => {
    if (!(node instanceof SVGElement)) node.appendChild(document.createElement(k % 2 ? "sub" : "span")).textContent = part;
    else Object.assign(make(node, "tspan", k % 2 ? { dy: 3, "font-size": "0.8em" } : k ? { dy: -3 } : {}), { textContent: part });
  });
}

const path = points => points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
const signed = (x, digits) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/* An arrow in px, with a head no longer than itself. */
function arrow([x, y], tip) {
  const [dx, dy] = [tip[0] - x, tip[1] - y], length = Math.hypot(dx, dy);
  if (length < 0.5) return "";
  const head = Math.min(5, length) / length;
  const wing = side => [tip[0] - head * (dx + side * 0.6 * dy), tip[1] - head * (dy - side * 0.6 * dx)];
  return path([[x, y], tip]) + path([wing(1), tip, wing(-1)]);
}

/* Axes of width x height px in a host, bare: without a frame. X and Y map numbers to px; `inside` is a group that is clipped to
the axes. */
let clips = 0;
function makeAxes(host, options) {
  const { width, height, title, x, y, xlim = [0, 1], ylim = [0, 1], xticks = [0, 0.5, 1], yticks = [0, 0.5, 1], bare } = options;
  const [left, right, top, bottom] = [y ? 48 : 12, 10, 26, x ? 38 : 22];
  const svg = make(host, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": title });
  const [w, h] = [width - left - right, height - top - bottom];
  const X = value => left + (w * (value - xlim[0])) / (xlim[1] - xlim[0]);
  const Y = value => top + h - (h * (value - ylim[0])) / (ylim[1] - ylim[0]);
  const clip = `clip-${++clips}`;
  make(make(svg, "clipPath", { id: clip }), "rect", { x: left, y: top, width: w, height: h });
  const inside = make(svg, "g", { "clip-path": `url(#${clip})` });
  if (!bare) make(svg, "path", { class: "frame", d: `M${left} ${top}V${top + h}H${left + w}` });
  for (const tick of xticks) make(svg, "text", { x: X(tick), y: top + h + 15, "text-anchor": "middle" }, `${tick}`);
  if (y) for (const tick of yticks) make(svg, "text", { x: left - 6, y: Y(tick) + 4, "text-anchor": "end" }, `${tick}`);
  if (x) make(svg, "text", { x: left + w / 2, y: height - 5, "text-anchor": "middle" }, x);
  if (y) make(svg, "text", { transform: `translate(12 ${top + h / 2}) rotate(-90)`, "text-anchor": "middle" }, y);
  const heading = make(svg, "text", { x: left, y: 15, class: "title" }, title);
  const invert = event => { // the numbers under a pointer
    const box = svg.getBoundingClientRect();
    const px = ((event.clientX - box.left) * width) / box.width, py = ((event.clientY - box.top) * height) / box.height;
    const at = (share, [low, high]) => low + clamp(share, 0, 1) * (high - low);
    return [at((px - left) / w, xlim), at((top + h - py) / h, ylim)];
  };
  return { svg, inside, title: heading, X, Y, left, top, w, h, invert };
}

/* A handle is dragged by mouse, pen or finger and moved by the arrow keys; a press beside it brings it there. A finger that starts
beside it scrolls the page. move(x, y): called with the numbers under the pointer; at(): those of the handle. */
function makeDraggable(axes, handle, at, move, step = 0.01) {
  let held = false;
  axes.svg.addEventListener("pointerdown", event => {
    if (event.pointerType === "touch" && event.target !== handle) return;
    event.preventDefault();
    held = true;
    axes.svg.setPointerCapture(event.pointerId);
    handle.focus({ preventScroll: true });
    move(...axes.invert(event));
  });
  handle.addEventListener("touchstart", event => event.preventDefault()); // the page stays where it is
  axes.svg.addEventListener("pointermove", event => held && move(...axes.invert(event)));
  for (const end of ["pointerup", "pointercancel"]) axes.svg.addEventListener(end, () => (held = false));
  axes.svg.addEventListener("click", event => move(...axes.invert(event)));
  handle.addEventListener("keydown", event => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] }[event.key];
    if (!by) return;
    event.preventDefault();
    const size = event.shiftKey ? 10 * step : step;
    move(...at().map((value, k) => clamp(value + size * by[k], 0, 1)));
  });
}

/* One control: {label, value} and min, max, step of a slider, or options of one, or menu {value: name}, or neither: a checkbox.
Returns show(value, enabled). set(value): called when it is moved. */
function makeControl(host, { label, options, menu, min, max, step, value, tip = "" }, set) {
  const row = make(host, "label", { title: tip });
  make(row, "span", {}, label);
  const digits = step ? Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) : 0;
  if (menu) {
    const input = make(row, "select");
    for (const [key, name] of Object.entries(menu)) make(input, "option", { value: key }, name);
    input.addEventListener("change", () => set(input.value));
    return shown => (input.value = shown);
  }
  const input = make(row, "input", { type: typeof value === "boolean" ? "checkbox" : "range" });
  if (typeof value === "boolean") {
    input.addEventListener("change", () => set(input.checked));
    return shown => (input.checked = shown);
  }
  Object.assign(input, options ? { min: 0, max: options.length - 1, step: 1 } : { min, max, step });
  const output = make(row, "output");
  input.addEventListener("input", () => set(options ? options[input.value] : Number(input.value)));
  return (shown, enabled) => {
    input.value = options ? options.indexOf(shown) : shown;
    output.textContent = options ? shown : shown.toFixed(digits);
    input.setAttribute("aria-valuetext", output.textContent);
    row.classList.toggle("disabled", (input.disabled = !enabled));
  };
}

/* Buttons that move a slider one step back or forward, and one that plays it to its end. */
function makePlay(host, { control: name, milliseconds }, { min, max }, get, set) {
  const row = make(host, "div", { class: "explorer-play" });
  const move = by => set({ [name]: clamp(get()[name] + by, min, max) });
  const button = (text, act) => make(row, "button", { type: "button" }, text).addEventListener("click", act);
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    [timer, play.textContent] = [0, "▶ Play"];
  };
  button("◀ Back", () => move(-1));
  const play = make(row, "button", { type: "button" }, "▶ Play");
  button("Forward ▶", () => move(1));
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (get()[name] === max) set({ [name]: min });
    timer = setInterval(() => (get()[name] < max ? move(1) : stop()), milliseconds);
    play.textContent = "❚❚ Pause";
  });
}

function startExplorer(box) {
  const kind = EXPLORERS[box.dataset.explorer];
  const initial = Object.fromEntries(Object.entries(kind.controls).map(([name, control]) => [name, control.value]));
  Object.assign(initial, JSON.parse(box.dataset.settings));
  let values = { ...initial }, update = null, width = 0, asked = false;
  const draw = () => {
    asked = false;
    for (const [name, show] of Object.entries(shows)) show(values[name], kind.controls[name].enabled?.(values) ?? true);
    for (const [button, wanted] of buttons)
      button.setAttribute("aria-pressed", Object.entries(wanted).every(([name, value]) => values[name] === value));
    write(sentence, update(values));
  };
  const set = some => { // several changes before a frame are drawn once
    values = { ...values, ...some };
    if (!asked) requestAnimationFrame(draw);
    asked = true;
  };

  make(box, "p", { class: "explorer-title" }, kind.title);
  const panels = make(box, "div", { class: "explorer-panels" });
  const legend = make(box, "ul", { class: "explorer-legend" });
  for (const [mark, text] of kind.legend) {
    const item = make(legend, "li");
    item.innerHTML = `<svg width="26" height="12" aria-hidden="true">${mark}</svg>`;
    make(item, "span", {}, text);
  }
  if (kind.caption) make(legend, "li", {}, kind.caption);
  const sentence = make(box, "p", { class: "explorer-sentence", "aria-live": "polite" });
  const controls = make(box, "div", { class: "explorer-controls" });
  const shows = {};
  for (const [name, control] of Object.entries(kind.controls))
    shows[name] = makeControl(controls, control, value => set({ [name]: value }));
  if (kind.play) makePlay(controls, kind.play, kind.controls[kind.play.control], () => values, set);
  const list = make(box, "ul", { class: "explorer-presets" });
  const buttons = [...kind.presets, ["Reset", kind.reset, initial]].map(([name, text, wanted]) => {
    const item = make(list, "li");
    const button = make(item, "button", { type: "button" }, name);
    button.addEventListener("click", () => set(wanted));
    make(item, "span", {}, text);
    return [button, wanted];
  });
  new ResizeObserver(() => {
    if (!box.clientWidth || box.clientWidth === width) return;
    width = box.clientWidth;
    panels.replaceChildren();
    update = kind.build(panels, set, width, () => values);
    draw();
  }).observe(box);
  box.classList.add("live");
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".explorer").forEach(startExplorer));
