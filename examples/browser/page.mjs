// The page: which recording, what was changed of it, and what the explainer says of it.
import {Channel, made, paint} from "./channel.mjs";
import {changed, csvOf, percent, sharesOf, signed, sum, textOf} from "./series.mjs";

const at = (id) => document.getElementById(id);
const night = matchMedia("(prefers-color-scheme: dark)");
const state = {recording: 0, activity: 0, strength: [], shift: [], drawn: new Map(), kept: null, found: null, limits: null};
let data, worker, channels, series, bars, busy = false, again = false, telling;

function failed(message) {
  at("message").textContent = `This page cannot explain: ${message}`;
  at("message").className = "failed";
  at("message").hidden = false;
}

/** Have the worker explain a series. */
function explained(given) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({data: answer}) => answer.error ? reject(new Error(answer.error)) : resolve(answer);
    worker.postMessage({series: given, shape: [1, data.steps, data.channels.length]});
  });
}

/** Explain what is shown; of all that changes meanwhile, the newest next. */
async function explain() {
  if (busy) { again = true; return; }
  busy = true;
  at("why").setAttribute("aria-busy", "true");
  try {
    do {
      again = false;
      const given = series.slice(), {recording} = state, found = await explained(given);
      if (recording !== state.recording) continue;
      // A recording's own colours stay, so that what is drawn can be compared with it.
      state.limits ||= data.activities.map((_, k) => largest(found, k));
      state.found = {...found, series: given};
      draw();
    } while (again);
    at("message").hidden = true;
    at("page").hidden = false;
  } catch (error) {
    failed(error.message);
  }
  busy = false;
  at("why").setAttribute("aria-busy", "false");
}

function largest(found, activity) {
  return Math.max(...sharesOf(found.values, activity, data.activities.length).map(Math.abs));
}

function columnOf(values, channel) {
  return Array.from({length: data.steps}, (_, t) => values[t * data.channels.length + channel]);
}

/** Everything that the sliders and the drawing say, at once; the explanation follows. */
function change() {
  const recorded = data.recordings[state.recording].values;
  series = changed(recorded, data.channels.length, state.strength, state.shift, state.drawn);
  channels.forEach((each, c) => each.drawSignal(columnOf(series, c), columnOf(Float32Array.from(recorded), c)));
  at("reset").disabled = !state.drawn.size && state.strength.every((s) => s === 1) && state.shift.every((s) => s === 0);
  showSliders();
  explain();
}

function show(recording) {
  state.recording = Math.max(0, Math.min(data.recordings.length - 1, recording));
  state.activity = data.recordings[state.recording].activity;
  state.limits = null;
  at("recording").value = String(state.recording);
  at("before").disabled = state.recording === 0;
  at("after").disabled = state.recording === data.recordings.length - 1;
  reset();
}

function reset() {
  state.drawn = new Map();
  state.strength = data.channels.map(() => 1);
  state.shift = data.channels.map(() => 0);
  change();
}

function draw() {
  const {prediction, values, base, milliseconds} = state.found, k = state.activity, name = data.activities[k];
  const shares = sharesOf(values, k, data.activities.length), limit = Math.max(state.limits[k], largest(state.found, k));
  const first = prediction.indexOf(Math.max(...prediction)), total = sum(shares);
  bars.forEach((bar, j) => {
    bar.radio.checked = j === k;
    bar.told.textContent = percent(prediction[j]);
    bar.fill.style.width = `${100 * prediction[j]}%`;
    bar.tick.style.left = `${100 * base[j]}%`;
    bar.label.classList.toggle("first", j === first);
  });
  at("base").textContent = textOf(base[k]);
  at("sum").textContent = signed(total);
  at("total").textContent = textOf(prediction[k]);
  at("error").textContent = `Exact to ${Math.abs(base[k] + total - prediction[k]).toExponential(0)}. ` +
    `Computed in ${milliseconds.toFixed(0)} ms.`;
  at("explained").textContent = name;
  at("low").textContent = textOf(-limit, 2);
  at("high").textContent = signed(limit, 2);
  paint(at("scale"), Array.from({length: 64}, (_, x) => (x / 31.5 - 1) * limit), limit, night.matches);
  channels.forEach((each, c) => each.drawShares(columnOf(shares, c), limit, night.matches));
  clearTimeout(telling);
  // Not each of the many predictions along a stroke.
  telling = setTimeout(() => {
    at("told").textContent = `${data.activities[first]}, ${percent(prediction[first])}`;
  }, 300);
}

/** The channels that the sliders move. */
function chosen() {
  const c = Number(at("channel").value);
  return c < 0 ? data.channels.map((_, k) => k) : [c];
}

function showSliders() {
  const [c] = chosen();
  at("strength").value = String(state.strength[c]);
  at("shift").value = String(state.shift[c]);
  const seconds = `${(state.shift[c] * data.seconds).toFixed(1)} s`;
  at("strength-told").textContent = `× ${state.strength[c].toFixed(2)}`;
  at("shift-told").textContent = state.shift[c] > 0 ? `+${seconds}` : seconds;
  at("strength").setAttribute("aria-valuetext", at("strength-told").textContent);
  at("shift").setAttribute("aria-valuetext", seconds);
}

function build() {
  data.recordings.forEach(({name}, k) => { made("option", at("recording"), {value: k}).textContent = name; });
  ["all channels", ...data.channels.map(({name}) => name)].forEach((name, k) => {
    made("option", at("channel"), {value: k - 1}).textContent = name;
  });
  bars = data.activities.map((name, k) => {
    const label = made("label", at("activities")), radio = made("input", label, {type: "radio", name: "activity", value: k});
    made("span", label).textContent = name;
    const told = made("span", label, {class: "part"}), track = made("span", label, {class: "track", "aria-hidden": "true"});
    radio.addEventListener("change", () => { state.activity = k; draw(); });
    return {label, radio, told, fill: made("span", track, {class: "fill"}), tick: made("span", track, {class: "tick"})};
  });
  channels = data.channels.map((channel, c) => new Channel(at("channels"), channel, data.steps, data.seconds, {
    changed: (points) => {
      for (const {step, value} of points) state.drawn.set(step * data.channels.length + c, value);
      change();
    },
    undone: (steps) => {
      for (const step of steps) state.drawn.delete(step * data.channels.length + c);
      change();
    },
    stroke: (what) => {
      if (what === "begin") state.kept = new Map(state.drawn);
      else { state.drawn = state.kept; change(); }
    },
    told: (text) => { at("readout").textContent = text; },
  }));
  for (let k = 0; k <= 5; k++) made("span", at("axis")).textContent = `${k * data.steps * data.seconds / 5} s`;
  at("about").textContent = data.about;
}

function listen() {
  at("recording").addEventListener("change", (event) => show(Number(event.target.value)));
  at("before").addEventListener("click", () => show(state.recording - 1));
  at("after").addEventListener("click", () => show(state.recording + 1));
  at("reset").addEventListener("click", reset);
  at("channel").addEventListener("change", showSliders);
  for (const name of ["strength", "shift"])
    at(name).addEventListener("input", (event) => {
      for (const c of chosen()) state[name][c] = Number(event.target.value);
      change();
    });
  night.addEventListener("change", draw);
  at("download").addEventListener("click", () => {
    const text = csvOf(data, state.found.series, state.found.values);
    const address = URL.createObjectURL(new Blob(["\ufeff" + text], {type: "text/csv;charset=utf-8"}));
    const link = made("a", document.body, {href: address, download: "explanation.csv"});
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
}

try {
  if (typeof WebAssembly !== "object") throw new Error("this browser has no WebAssembly");
  worker = new Worker("worker.mjs", {type: "module"});
  worker.onerror = (event) => failed(`worker.mjs does not run (${event.message || "it could not be loaded"})`);
  const file = await fetch("data.json");
  if (!file.ok) throw new Error(`data.json: ${file.status} ${file.statusText}`);
  data = await file.json();
  build();
  listen();
  show(0);
} catch (error) {
  failed(error.message);
}
