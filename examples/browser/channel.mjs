// One channel of the heat map: the shares as colours, the signal on top, which is drawn with pointer or keys.
import {colourOf, line, signed, sum, textOf} from "./series.mjs";

export class Channel {
  /** `changed(points)` is called with what was drawn, `undone(steps)` with what goes back to the recording. */
  constructor(parent, channel, steps, seconds, {changed, undone, told, stroke}) {
    Object.assign(this, {channel, steps, seconds, changed, undone, tell: told, stroke, step: 0});
    const row = made("div", parent, {class: "channel"}), name = made("div", row, {class: "name"});
    made("b", name).textContent = channel.name;
    made("span", name).textContent = `±${channel.limit} ${channel.unit}`;
    this.share = made("span", name);
    this.plot = made("div", row, {class: "plot", tabindex: "0", role: "slider", "aria-label": `${channel.name} in ${channel.unit}`,
      "aria-valuemin": -channel.limit, "aria-valuemax": channel.limit, "aria-orientation": "vertical",
      "aria-describedby": "help"});
    this.canvas = made("canvas", this.plot, {width: steps, height: 1});
    const svg = made("svg", this.plot, {viewBox: `0 ${-channel.limit} ${steps} ${2 * channel.limit}`,
      preserveAspectRatio: "none", "aria-hidden": "true"});
    made("line", svg, {class: "zero", x1: 0, x2: steps, y1: 0, y2: 0});
    this.before = made("polyline", svg, {class: "recorded"});
    this.curve = made("polyline", svg, {class: "series"});
    this.cursor = made("div", this.plot, {class: "cursor", hidden: ""});
    this.listen();
  }

  listen() {
    const on = (name, handle) => this.plot.addEventListener(name, handle);
    let last = null, waiting = null;
    on("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.plot.setPointerCapture(event.pointerId);
      this.stroke("begin");
      last = this.pointAt(event);
      // A finger may be about to scroll.
      if (event.pointerType === "touch") waiting = last;
      else this.changed([last]);
      this.goTo(last.step);
    });
    on("pointermove", (event) => {
      const point = this.pointAt(event);
      this.goTo(point.step);
      if (!last) return;
      this.changed([...(waiting ? [waiting] : []), ...line(last, point)]);
      last = point;
      waiting = null;
    });
    on("pointerup", () => {
      if (waiting) this.changed([waiting]);
      last = waiting = null;
    });
    on("pointercancel", () => {
      if (last) this.stroke("cancel");
      last = waiting = null;
    });
    on("focus", () => this.goTo(this.step));
    on("blur", () => { this.cursor.hidden = true; });
    on("keydown", (event) => {
      const {limit} = this.channel, by = {ArrowUp: 1, ArrowDown: -1, PageUp: 5, PageDown: -5}[event.key];
      const to = {ArrowLeft: this.step - 1, ArrowRight: this.step + 1, Home: 0, End: this.steps - 1}[event.key];
      if (by) this.changed([{step: this.step, value: this.within(this.series[this.step] + by * limit / 20)}]);
      else if (event.key === "Delete" || event.key === "Backspace") this.undone([this.step]);
      else if (to === undefined) return;
      event.preventDefault();
      this.goTo(to === undefined ? this.step : Math.max(0, Math.min(this.steps - 1, to)));
    });
  }

  within(value) {
    return Math.max(-this.channel.limit, Math.min(this.channel.limit, value));
  }

  pointAt(event) {
    const edge = this.plot.getBoundingClientRect(), part = (event.clientX - edge.left) / edge.width;
    return {step: Math.max(0, Math.min(this.steps - 1, Math.floor(part * this.steps))),
      value: this.within((1 - 2 * (event.clientY - edge.top) / edge.height) * this.channel.limit)};
  }

  goTo(step) {
    this.step = step;
    Object.assign(this.cursor.style, {left: `${100 * step / this.steps}%`, width: `${100 / this.steps}%`});
    this.cursor.hidden = document.activeElement !== this.plot;
    this.say();
    this.tell(this.text());
  }

  text() {
    const {name, unit} = this.channel, share = this.shares ? `, share ${signed(this.shares[this.step])}` : "";
    return `${name} at ${(this.step * this.seconds).toFixed(1)} s: ${textOf(this.series[this.step])} ${unit}${share}`;
  }

  say() {
    this.plot.setAttribute("aria-valuenow", textOf(this.series[this.step]));
    this.plot.setAttribute("aria-valuetext", this.text());
  }

  /** Show a signal, and as a dashed line the one that was recorded. */
  drawSignal(series, recorded) {
    this.series = series;
    // Steps are as wide as cells; a curve goes through their middles.
    const points = (values) => values.map((value, t) => `${t + .5},${-value}`).join(" ");
    this.curve.setAttribute("points", points(series));
    this.before.setAttribute("points", series.some((value, t) => value !== recorded[t]) ? points(recorded) : "");
    this.say();
  }

  drawShares(shares, limit, dark) {
    this.shares = shares;
    this.share.textContent = `sum ${signed(sum(shares))}`;
    paint(this.canvas, shares, limit, dark);
    this.say();
  }
}

/** Colour a row of pixels by shares. */
export function paint(canvas, shares, limit, dark) {
  const context = canvas.getContext("2d"), image = context.createImageData(shares.length, 1);
  shares.forEach((share, t) => image.data.set([...colourOf(share, limit, dark), 255], 4 * t));
  context.putImageData(image, 0, 0);
}

export function made(tag, parent, attributes) {
  const drawn = tag === "svg" || parent.namespaceURI.endsWith("svg");
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, String(value));
  return parent.appendChild(element);
}
