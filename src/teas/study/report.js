"use strict";
// The interactive parts of the report: everything is drawn from the JSON in the page, nothing is fetched.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const MARKS = { // Okabe-Ito colours, and a shape each, so that colour is never needed
  full: ["#000000", "square"], own: ["#56B4E9", "plus"], damage: ["#D55E00", "circle"], "by activity": ["#D55E00", "circle"], uniform: ["#0072B2", "triangle"],
  activity: ["#CC79A7", "square"], activity_root: ["#E69F00", "diamond"], shuffled: ["#009E73", "plus"],
  staircase: ["#56B4E9", "diamond"],
};
const NAMES = { mean: "mean window (steps)", sum: "sum of the windows: steps of one inference", max: "longest window (steps)" };

function draw(parent, tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function shape(kind, x, y, r) {
  if (kind === "circle") return `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`;
  if (kind === "square") return `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`;
  if (kind === "triangle") return `M${x},${y - r * 1.2}L${x + r * 1.2},${y + r}L${x - r * 1.2},${y + r}Z`;
  if (kind === "diamond") return `M${x},${y - r * 1.3}L${x + r * 1.3},${y}L${x},${y + r * 1.3}L${x - r * 1.3},${y}Z`;
  return `M${x - r},${y - r / 3}h${r * 2 / 3}v${-r * 2 / 3}h${r * 2 / 3}v${r * 2 / 3}h${r * 2 / 3}v${r * 2 / 3}h${-r * 2 / 3}v${r * 2 / 3}h${-r * 2 / 3}v${-r * 2 / 3}h${-r * 2 / 3}Z`;
}

const costOf = (point, cost) => (cost in point.latency ? point.latency[cost] : point.energy[cost]);
const spoken = (name) => name.replace("activity_root", "root of activity");
const markOf = (name) => { // the same for a retrained network, but larger
  const plain = name.replace(", retrained", "");
  return [...(MARKS[plain] || ["#777777", "circle"]), plain === name ? 5 : 7];
};
const axisName = (cost) => NAMES[cost] || `energy, ${cost} without memory (nJ)`;
const fontSize = () => (matchMedia("(max-width: 40rem)").matches ? 20 : 13); // as in the style sheet, of a drawing 720 wide
const short = (value) => (value >= 1000 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(4)).toString());

function ticks(low, high, log) { // round numbers between two bounds
  const decades = log ? [1, 2, 5].flatMap((m) => [...Array(9).keys()].map((k) => m * 10 ** k)).filter((x) => x >= low && x <= high).sort((a, b) => a - b) : [];
  if (decades.length > 2) return decades; // else even steps do on a short axis
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find((s) => (high - low) / s <= 6) || 50;
  return [...Array(Math.floor(high / step) - Math.ceil(low / step) + 1).keys()].map((k) => (Math.ceil(low / step) + k) * step);
}

function pareto(points, cost) { // by rising cost, each more accurate than every cheaper one
  const order = points.map((_, i) => i).sort((a, b) => costOf(points[a], cost) - costOf(points[b], cost) || points[b].accuracy - points[a].accuracy);
  return order.reduce((front, i) => (front.length && points[i].accuracy <= points[front[front.length - 1]].accuracy ? front : [...front, i]), []);
}

function describe(point, cost) {
  const at = point.latency, energy = cost in at ? "" : `, ${short(costOf(point, cost))} nJ (${cost})`;
  const test = point.test === undefined ? "" : `, test ${point.test.toFixed(2)} %`;
  return `${spoken(point.allocator)}: ${point.accuracy.toFixed(2)} %${test}; windows mean ${at.mean.toFixed(2)}, max ${at.max}, sum ${at.sum}${energy}`;
}

function tradeoff(found) {
  const { points } = found, slider = byId("slider"), axis = byId("axis"), plot = byId("tradeoff-plot"), tip = byId("tip");
  const costs = ["sum", "mean", "max", ...data.regimes.filter((regime) => points.every((point) => regime in point.energy))];
  for (const cost of costs) axis.append(new Option(axisName(cost), cost));
  axis.value = costs.includes(found.cost) ? found.cost : "sum";
  let front = [], rings = null, at = null;

  function redraw() {
    const cost = axis.value, font = fontSize(), [w, h, left, top, bottom, right] = [720, 330, 4 * font, 12, 3.4 * font, 1.6 * font];
    plot.replaceChildren();
    const xs = points.map((point) => Math.log(costOf(point, cost))), ys = points.map((point) => point.accuracy);
    const [x0, x1, y1] = [Math.min(...xs) - 0.05, Math.max(...xs) + 0.05, Math.min(100, Math.max(...ys) + 0.4)];
    const y0 = Math.max(Math.min(...ys) - 0.5, y1 - 16, 0); // what lies lower stands on the edge: it is never on the front's interesting end
    const px = (x) => left + ((x - x0) / (x1 - x0)) * (w - left - right);
    const py = (y) => h - bottom - ((Math.max(y, y0) - y0) / (y1 - y0)) * (h - top - bottom);
    for (const y of ticks(y0, y1, false)) {
      draw(plot, "line", { x1: left, x2: w - right, y1: py(y), y2: py(y), class: "grid" });
      draw(plot, "text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, short(y));
    }
    for (const x of ticks(Math.exp(x0), Math.exp(x1), true)) draw(plot, "text", { x: px(Math.log(x)), y: h - bottom + 1.4 * font, "text-anchor": "middle" }, short(x));
    draw(plot, "text", { x: (left + w - right) / 2, y: h - 6, "text-anchor": "middle" }, axisName(cost));
    draw(plot, "text", { x: font, y: (h - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 ${font} ${(h - bottom) / 2})` }, "accuracy (%)");
    front = pareto(points, cost);
    draw(plot, "path", { class: "front", d: front.map((i, k) => `${k ? "L" : "M"}${px(xs[i])},${py(ys[i])}`).join("") });
    points.forEach((point, i) => {
      const [color, kind, size] = markOf(point.allocator), inFront = front.includes(i);
      const options = { d: shape(kind, px(xs[i]), py(ys[i]), size), fill: inFront ? color : "none", stroke: color, class: kind === "square" && color === "#000000" ? "mark ink" : "mark" };
      const mark = draw(plot, "path", { ...options, role: "img", "aria-label": describe(point, cost) });
      const show = () => { tip.textContent = describe(point, cost); };
      mark.addEventListener("pointerenter", show);
      mark.addEventListener("pointerleave", () => { tip.textContent = ""; });
      if (inFront) mark.addEventListener("click", () => { slider.value = front.indexOf(i); choose(); });
    });
    rings = { node: draw(plot, "circle", { r: 11, class: "ring" }), place: (i) => [px(xs[i]), py(ys[i])] };
    slider.max = front.length - 1;
    const kept = front.indexOf(at === null ? found.chosen : at);
    slider.value = kept >= 0 ? kept : Math.floor((front.length - 1) / 2);
    choose();
  }

  function choose() {
    at = front[Number(slider.value)];
    const [x, y] = rings.place(at);
    rings.node.setAttribute("cx", x);
    rings.node.setAttribute("cy", y);
    const text = describe(points[at], axis.value);
    byId("chosen").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    bars(points[at]);
  }

  const legend = byId("legend");
  for (const name of new Set(points.map((point) => point.allocator))) {
    const [color, kind, size] = markOf(name), item = document.createElement("span");
    const icon = draw(item, "svg", { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" });
    draw(icon, "path", { d: shape(kind, 8, 8, size), fill: color, stroke: color, class: color === "#000000" ? "ink" : "" });
    item.append(" ", spoken(name));
    legend.append(item);
  }
  axis.addEventListener("change", redraw);
  matchMedia("(max-width: 40rem)").addEventListener("change", redraw);
  slider.addEventListener("input", choose);
  redraw();
}

function bars(point) { // window of each layer as a bar, its activity as a mark on a scale of its own
  const plot = byId("bars"), layers = Object.keys(point.windows), font = fontSize(), row = 1.7 * font, w = 720, h = layers.length * row + 2.6 * font;
  const left = Math.max(...layers.map((layer) => layer.length)) * 0.6 * font + 12, room = w - left - 3.5 * font;
  plot.replaceChildren();
  plot.setAttribute("viewBox", `0 0 ${w} ${h}`);
  const most = Math.max(...Object.values(point.windows)), loud = Math.max(...layers.map((layer) => point.activity[layer] || 0), 1e-9);
  layers.forEach((layer, k) => {
    const steps = point.windows[layer], y = k * row, activity = point.activity[layer];
    draw(plot, "text", { x: left - 8, y: y + 1.15 * font, "text-anchor": "end" }, layer);
    draw(plot, "rect", { x: left, y: y + 2, width: Math.max(2, (steps / most) * room), height: row - 6, class: "bar", "data-steps": steps });
    draw(plot, "text", { x: w - 4, y: y + 1.15 * font, "text-anchor": "end", class: "value" }, steps);
    if (activity !== undefined) draw(plot, "path", { d: shape("diamond", left + (activity / loud) * room, y + row / 2 - 1, 4.5), class: "activity" });
  });
  const foot = h - 0.4 * font;
  draw(plot, "rect", { x: 8, y: foot - 0.9 * font, width: font, height: font, class: "bar" });
  draw(plot, "text", { x: 14 + font, y: foot }, "window (steps)");
  draw(plot, "path", { d: shape("diamond", 30 + 10 * font, foot - 0.4 * font, 5), class: "activity" });
  draw(plot, "text", { x: 40 + 10 * font, y: foot }, `activity (spikes a step, up to ${loud.toPrecision(2)})`);
}

function raster(found) {
  const box = byId("raster"), slider = byId("step"), layers = Object.entries(found.layers);
  const longest = Math.max(...layers.map(([, layer]) => layer.window));
  slider.max = longest;
  slider.value = longest;
  const panels = layers.map(([name, layer]) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption"), canvas = document.createElement("canvas");
    figure.append(canvas, caption);
    box.append(figure);
    return { name, layer, caption, canvas };
  });
  function redraw() {
    const now = Number(slider.value), style = getComputedStyle(document.body);
    for (const { name, layer, caption, canvas } of panels) {
      const rows = layer.spikes.length, cell = Math.max(4, Math.min(20, Math.floor(180 / layer.window))), high = 5;
      [canvas.width, canvas.height] = [layer.window * cell, rows * high];
      const pen = canvas.getContext("2d");
      pen.fillStyle = style.getPropertyValue("--mark");
      pen.fillRect(0, 0, Math.min(now, layer.window) * cell, rows * high);
      pen.fillStyle = style.getPropertyValue("--spike");
      let seen = 0;
      layer.spikes.forEach((steps, neuron) => steps.filter((step) => step < now).forEach((step) => { pen.fillRect(step * cell, neuron * high, cell - 1, high - 1); seen += 1; }));
      const done = now >= layer.window;
      caption.textContent = `${name}: step ${Math.min(now, layer.window)} of ${layer.window}${done ? ", done" : ""}; ${seen} spikes of ${rows} neurons`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", caption.textContent);
    }
    byId("now").textContent = `step ${now} of ${longest}`;
  }
  let timer = null;
  byId("play").addEventListener("click", () => {
    if (timer) { clearInterval(timer); timer = null; byId("play").textContent = "Play"; return; }
    if (Number(slider.value) >= longest) slider.value = 0;
    byId("play").textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      redraw();
      if (Number(slider.value) >= longest) { clearInterval(timer); timer = null; byId("play").textContent = "Play"; }
    }, 250);
  });
  slider.addEventListener("input", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  redraw();
}

if (data.tradeoff) tradeoff(data.tradeoff);
if (data.raster) raster(data.raster);
