// What needs no page: the changed series, colours, text. A series is flat: step after step, all channels of each.
const RED = [255, 0, 81], BLUE = [0, 139, 251], WHITE = [255, 255, 255], BLACK = [20, 22, 26];

/** The series as the sliders say: each channel stronger about its mean, and later; what was drawn stays. */
export function changed(recorded, channels, strength, shift, drawn) {
  const steps = recorded.length / channels, series = new Float32Array(recorded.length);
  for (let c = 0; c < channels; c++) {
    let mean = 0;
    for (let t = 0; t < steps; t++) mean += recorded[t * channels + c] / steps;
    for (let t = 0; t < steps; t++) {
      const from = Math.max(0, Math.min(steps - 1, t - shift[c])), value = recorded[from * channels + c];
      series[t * channels + c] = strength[c] === 1 ? value : mean + strength[c] * (value - mean);
    }
  }
  for (const [place, value] of drawn) series[place] = value;
  return series;
}

/** Steps and values on the way of a pointer, so that a quick one leaves no gap; without where it began. */
export function line(from, to) {
  const count = Math.max(1, Math.abs(to.step - from.step));
  return Array.from({length: count}, (_, k) => {
    const part = (k + 1) / count;
    return {step: from.step + Math.round(part * (to.step - from.step)), value: from.value + part * (to.value - from.value)};
  });
}

export function sum(numbers) {
  return numbers.reduce((a, b) => a + b, 0);
}

/** Shares of one output, of values that have all outputs of each cell. */
export function sharesOf(values, output, outputs) {
  return Float64Array.from({length: values.length / outputs}, (_, at) => values[at * outputs + output]);
}

/** Colour of a share: from blue by the page's ground to red. */
export function colourOf(value, limit, dark) {
  const ground = dark ? BLACK : WHITE, end = value < 0 ? BLUE : RED;
  const part = limit > 0 ? Math.min(1, Math.abs(value) / limit) : 0;
  return ground.map((each, k) => Math.round(each + part * (end[k] - each)));
}

export function textOf(number, digits = 4) {
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return number.toExponential(2);
  return String(Number(number.toPrecision(digits)));
}

export function signed(number, digits = 4) {
  return (number > 0 ? "+" : "") + textOf(number, digits);
}

export function percent(part) {
  return `${(100 * part).toFixed(1)}%`;
}

/** All cells as CSV: value, and the share in each output. */
export function csvOf(data, series, values) {
  const outputs = data.activities.length, channels = data.channels.length;
  const lines = [["seconds", "channel", "unit", "value", ...data.activities.map((name) => `share of ${name}`)]];
  series.forEach((value, at) => {
    const {name, unit} = data.channels[at % channels], seconds = Math.floor(at / channels) * data.seconds;
    lines.push([seconds.toFixed(1), name, unit, value, ...values.slice(at * outputs, (at + 1) * outputs)]);
  });
  return lines.map((each) => each.join(",")).join("\r\n") + "\r\n";
}
