"use strict";
// What needs no page: colours, shares, text. Tests run these by themselves.
const RED = [255, 0, 81], BLUE = [0, 139, 251], WHITE = [255, 255, 255], BLACK = [20, 22, 26];

/** Colour of a share: from blue by the page's ground to red. */
function colourOf(value, limit, dark) {
  const ground = dark ? BLACK : WHITE, end = value < 0 ? BLUE : RED;
  const part = limit > 0 ? Math.min(1, Math.abs(value || 0) / limit) : 0;
  return ground.map((each, k) => Math.round(each + part * (end[k] - each)));
}

/** A number in a few digits; what is not known is a dash. */
function textOf(number) {
  if (number === null || number === undefined) return "–";
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return number.toExponential(2);
  return String(Number(number.toPrecision(4)));
}

function signed(number) {
  return (number > 0 ? "+" : "") + textOf(number);
}

/** All cells of a sample for one output: place, name, value and share. */
function cellsOf(page, sample, output) {
  const found = [];
  page.inputs.forEach((input, i) => {
    const of = sample.inputs[i], rows = of.rows || input.rows, width = input.features.length;
    of.values[output].forEach((share, at) => {
      const row = Math.floor(at / width), column = at % width;
      const place = rows[row] === "" ? "" : ` at ${rows[row]}`;
      const name = (page.inputs.length > 1 ? input.name + ", " : "") + input.features[column] + place;
      found.push({input: i, row, column, step: rows[row], feature: input.features[column], name,
        value: of.data[at], share});
    });
  });
  return found;
}

/** The steps from the base value to the prediction: the largest shares, the rest together, what goes around. */
function waterfall(cells, base, prediction, count) {
  const sorted = cells.slice().sort((a, b) => Math.abs(b.share) - Math.abs(a.share));
  const kept = sorted.length <= count ? sorted : sorted.slice(0, count - 1), rest = sorted.slice(kept.length);
  const parts = kept.map((cell) => ({name: cell.name, value: cell.value, share: cell.share}));
  if (rest.length) parts.push({name: `${rest.length} others`, value: null, share: sum(rest.map((c) => c.share))});
  const left = prediction - base - sum(parts.map((part) => part.share));
  if (Math.abs(left) > 1e-4 * Math.abs(prediction - base) + 1e-6 * Math.abs(base))
    parts.push({name: "around the explained layer", value: null, share: left});
  let at = base;
  return parts.map((part) => { const from = at; at += part.share; return {...part, from, to: at}; });
}

function sum(numbers) {
  return numbers.reduce((a, b) => a + b, 0);
}

/** Base value and all shares up to each row, of the first input. */
function courseOf(input, sample, output, base) {
  const width = input.features.length, shares = sample.inputs[0].values[output], found = [];
  let at = base;
  for (let row = 0; row * width < shares.length; row++) {
    at += sum(shares.slice(row * width, (row + 1) * width));
    found.push(at);
  }
  return found;
}

/** A field of CSV; what a spreadsheet would read as a formula is kept from it. */
function fieldOf(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
  return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
}

/** Samples as CSV: a line for each cell and output. */
function csvOf(page, samples) {
  const lines = [["sample", "output", "prediction", "base", "input", "row", "feature", "value", "share"]];
  for (const sample of samples)
    page.outputs.forEach((output, k) => {
      for (const cell of cellsOf(page, sample, k))
        lines.push([sample.name, output, sample.f[k], sample.base[k], page.inputs[cell.input].name, cell.step,
          cell.feature, cell.value, cell.share]);
    });
  return lines.map((line) => line.map(fieldOf).join(",")).join("\r\n") + "\r\n";
}

/** The cell that a key goes to. */
function moved(key, row, column, rows, columns) {
  const by = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]}[key];
  if (key === "Home") return [0, column];
  if (key === "End") return [rows - 1, column];
  if (!by) return null;
  return [Math.max(0, Math.min(rows - 1, row + by[0])), Math.max(0, Math.min(columns - 1, column + by[1]))];
}

function start() {
  const page = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const state = {sample: 0, output: page.first, maps: [], cells: []};
  const night = matchMedia("(prefers-color-scheme: dark)");

  function made(tag, parent, text, attributes) {
    const element = tag === "svg" || parent.namespaceURI.endsWith("svg")
      ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    parent.appendChild(element);
    return element;
  }

  function optionsOf(select, names) {
    names.forEach((name, k) => made("option", select, name, {value: String(k)}));
  }

  function build() {
    page.inputs.forEach((input, i) => {
      const box = at("maps"), rows = page.samples[0].inputs[i].values[0].length / input.features.length;
      if (page.inputs.length > 1) made("h3", box, input.name);
      const grid = made("div", box, null, {class: "map"});
      const map = {input, i, rows, columns: input.features.length, row: 0, column: 0};
      if (i === 0 && rows > 1) map.course = made("svg", grid, null, {class: "course", role: "img", viewBox: "0 0 100 40",
        preserveAspectRatio: "none"});
      const names = made("div", grid, null, {class: "names", "aria-hidden": "true"});
      const every = Math.ceil(map.columns / 40);
      input.features.forEach((name, k) => made("span", names, k % every ? "" : name, {title: name}));
      map.cells = made("div", grid, null, {class: "cells", tabindex: "0", role: "application",
        "aria-label": `Heat map of ${input.name}: arrow keys go from cell to cell, the table below has all numbers`,
        "aria-describedby": `readout${i}`});
      map.canvas = made("canvas", map.cells, null, {width: String(rows), height: String(map.columns), "aria-hidden": "true"});
      map.canvas.style.height = Math.max(48, Math.min(640, map.columns * 24)) + "px";
      map.cursor = made("div", map.cells, null, {class: "cursor", hidden: ""});
      map.axis = made("div", grid, null, {class: "axis", "aria-hidden": "true"});
      map.readout = made("p", box, "Point at a cell, or move to the map and use the arrow keys.",
        {class: "readout", id: `readout${i}`, role: "status", "aria-live": "polite"});
      const pointed = (event) => {
        const edge = map.canvas.getBoundingClientRect();
        const part = (x, low, size, count) => Math.max(0, Math.min(count - 1, Math.floor((x - low) / size * count)));
        goTo(map, part(event.clientX, edge.left, edge.width, rows), part(event.clientY, edge.top, edge.height, map.columns));
      };
      map.cells.addEventListener("pointermove", pointed);
      map.cells.addEventListener("pointerdown", pointed);
      map.cells.addEventListener("keydown", (event) => {
        const to = moved(event.key, map.row, map.column, rows, map.columns);
        if (to) { event.preventDefault(); goTo(map, ...to); }
      });
      map.cells.addEventListener("focus", () => goTo(map, map.row, map.column));
      state.maps.push(map);
    });
  }

  function goTo(map, row, column) {
    Object.assign(map, {row, column});
    const cell = state.cells.filter((each) => each.input === map.i)[row * map.columns + column];
    map.readout.textContent = `${cell.name}: value ${textOf(cell.value)}, share ${signed(cell.share)}`;
    Object.assign(map.cursor.style, {left: `${100 * row / map.rows}%`, width: `${100 / map.rows}%`,
      top: `${100 * column / map.columns}%`, height: `${100 / map.columns}%`});
    map.cursor.hidden = false;
  }

  function draw() {
    const sample = page.samples[state.sample], k = state.output, f = sample.f[k], base = sample.base[k];
    const cells = cellsOf(page, sample, k), limit = Math.max(...cells.map((cell) => Math.abs(cell.share)), 0);
    state.cells = cells;
    at("sample").value = String(state.sample);
    at("before").disabled = state.sample === 0;
    at("after").disabled = state.sample === page.samples.length - 1;
    at("prediction").textContent = textOf(f);
    at("base").textContent = textOf(base);
    at("change").textContent = signed(f - base);
    at("sum").textContent = signed(sum(cells.map((cell) => cell.share)));
    at("told").textContent = `${sample.name}, ${page.outputs[k]}: prediction ${textOf(f)}, base value ${textOf(base)}`;
    at("low").textContent = textOf(-limit);
    at("high").textContent = signed(limit);
    paint(at("scale"), 64, 1, (x) => (x / 63 * 2 - 1) * limit, limit);
    for (const map of state.maps) {
      const values = sample.inputs[map.i].values[k], rows = sample.inputs[map.i].rows || map.input.rows;
      paint(map.canvas, map.rows, map.columns, (row, column) => values[row * map.columns + column], limit);
      map.axis.replaceChildren();
      const middle = Math.floor((map.rows - 1) / 2);
      for (const row of new Set([0, middle, map.rows - 1])) made("span", map.axis, rows[row]);
      if (map.course) drawCourse(map, courseOf(map.input, sample, k, base), base, f);
      map.cursor.hidden = true;
    }
    drawWaterfall(waterfall(cells, base, f, 12));
    if (at("all").open) drawTable(cells);
  }

  function paint(canvas, width, height, valueAt, limit) {
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++)
        image.data.set([...colourOf(valueAt(x, y), limit, night.matches), 255], 4 * (y * width + x));
    context.putImageData(image, 0, 0);
  }

  function drawCourse(map, course, base, f) {
    const low = Math.min(base, ...course), high = Math.max(base, ...course), size = high - low || 1;
    const y = (value) => 38 - 36 * (value - low) / size;
    map.course.replaceChildren();
    map.course.setAttribute("aria-label", `Course of the prediction, from the base value ${textOf(base)} to ${textOf(f)}`);
    made("line", map.course, null, {x1: 0, x2: 100, y1: y(base), y2: y(base)});
    made("polyline", map.course, null, {points: course.map((value, t) =>
      `${100 * (t + .5) / course.length},${y(value)}`).join(" ")});
  }

  function drawWaterfall(parts) {
    const body = at("waterfall"), ends = parts.flatMap((part) => [part.from, part.to]);
    const low = Math.min(...ends), size = Math.max(...ends) - low || 1;
    body.replaceChildren();
    for (const part of parts) {
      const row = made("tr", body);
      made("th", row, part.name, {scope: "row"});
      made("td", row, textOf(part.value), {class: "number"});
      made("td", row, signed(part.share), {class: "number"});
      const bar = made("div", made("td", row, null, {class: "share", "aria-hidden": "true"}), null,
        {class: part.share < 0 ? "fall" : "rise"});
      bar.style.left = `${100 * (Math.min(part.from, part.to) - low) / size}%`;
      bar.style.width = `${100 * Math.abs(part.share) / size}%`;
    }
  }

  function drawTable(cells) {
    const body = at("cells");
    body.replaceChildren();
    for (const cell of cells) {
      const row = made("tr", body);
      made("th", row, cell.name, {scope: "row"});
      made("td", row, textOf(cell.value), {class: "number"});
      made("td", row, signed(cell.share), {class: "number"});
    }
  }

  function download(name, samples) {
    const address = URL.createObjectURL(new Blob(["\ufeff" + csvOf(page, samples)], {type: "text/csv;charset=utf-8"}));
    const link = made("a", document.body, null, {href: address, download: name});
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  function show(sample) {
    state.sample = Math.max(0, Math.min(page.samples.length - 1, sample));
    draw();
  }

  optionsOf(at("sample"), page.samples.map((each) => each.name));
  optionsOf(at("output"), page.outputs);
  at("output").value = String(state.output);
  build();
  at("sample").addEventListener("change", (event) => show(Number(event.target.value)));
  at("output").addEventListener("change", (event) => { state.output = Number(event.target.value); draw(); });
  at("before").addEventListener("click", () => show(state.sample - 1));
  at("after").addEventListener("click", () => show(state.sample + 1));
  at("one").addEventListener("click", () => download("sample.csv", [page.samples[state.sample]]));
  at("every").addEventListener("click", () => download("samples.csv", page.samples));
  at("all").addEventListener("toggle", draw);
  night.addEventListener("change", draw);
  at("page").hidden = false;
  draw();
}

if (typeof document === "undefined") module.exports = {cellsOf, colourOf, courseOf, csvOf, moved, textOf, waterfall};
else start();
