// The log density of latents by one ODE: what the divergence adds up to, all of it and by random probes, step by step.
import { COLORS, legend, lineChart } from "./chart.js";
import { choose, furnish, make, slide, sources } from "./dom.js";

const total = (values) => values.reduce((sum, value) => sum + value, 0);
const number = (value) => value.toFixed(2).replace("-", "−");
const signed = (value) => `${value < 0 ? "" : "+"}${number(value)}`;

// Divergence added up until each time, of one latent or (null) of all, by the mean of the first probes of a kind.
export function addedUp(data, kind, latent, probes) {
  const parts = latent === null ? data.sums[kind] : [data.sums[kind][latent]];
  const mean = (lines, at) => total(lines.map((line) => line[at])) / lines.length;
  return data.times.map((_, at) => total(parts.map((lines) => mean(lines.slice(0, probes), at))));
}

// Log density of the standard normal where the way ends.
export function logNormal(data, latent) {
  return latent === null ? total(data.normal) : data.normal[latent];
}

export function start(place, data) {
  const probes = data.sums.rademacher[0].length;
  const state = { latent: null, kind: "rademacher", probes: 1, at: data.times.length - 1 };
  const charts = make("div", { class: "charts" });
  const reading = make("div", { class: "reading", "aria-live": "polite" });

  function say(exact, guessed) {
    const { at } = state;
    const normal = logNormal(data, state.latent);
    const lines = at === 0 ? ["The way begins here: nothing is added up yet."] : [
      `Step ${at}, from t = ${data.times[at - 1].toFixed(3)} to ${data.times[at].toFixed(3)}: the flow spreads by `
        + `${signed(exact[at] - exact[at - 1])} nats; the probes say ${signed(guessed[at] - guessed[at - 1])}.`,
      `Added up so far: ${signed(exact[at])} nats, by the probes ${signed(guessed[at])}.`,
    ];
    if (at === data.times.length - 1) {
      const [right, near] = [normal + exact[at], normal + guessed[at]];
      lines.push(`At the end: log N(z₁; 0, I) = ${number(normal)}, so log p = ${number(right)} nats; `
        + `by the probes ${number(near)}, off by ${signed(near - right)}.`);
    }
    reading.replaceChildren(...lines.map((line) => make("p", {}, line)));
  }

  function draw() {
    const exact = addedUp(data, "exact", state.latent, 1);
    const guessed = addedUp(data, state.kind, state.latent, state.probes);
    const points = (values) => values.map((value, at) => [data.times[at], value]);
    const mark = data.times[state.at];
    const sums = { exact: points(exact), probes: points(guessed) };
    const errors = { "the probes": points(guessed.map((value, at) => value - exact[at])) };
    const options = { xLabel: "t (1 noise)", yLabel: "nats", mark };
    charts.replaceChildren(
      make("div", {}, lineChart(sums, { title: "Divergence, added up", ...options }), legend(["all", "by probes"])),
      make("div", {}, lineChart(errors, { title: "What the probes are off by", colors: COLORS.slice(1), ...options })));
    say(exact, guessed);
  }

  const set = (field, of = (value) => value) => (value) => { state[field] = of(value); draw(); };
  const tokens = data.tokens.map((token, at) => [at, `${at + 1}: ${JSON.stringify(token).slice(1, -1)}`]);
  const latentOf = (value) => (value === "all" ? null : Number(value));
  const [latentLabel] = choose("Latents", "latent", [["all", "all of the text"], ...tokens], set("latent", latentOf));
  const kinds = [["rademacher", "random signs"], ["gaussian", "normal numbers"]];
  const [kindLabel] = choose("Probes", "kind", kinds, set("kind"));
  const [probesLabel] = slide("Number of probes", "probes", { min: 1, max: probes, step: 1, value: 1 }, set("probes"));
  const words = (at) => `${at}, t = ${data.times[at].toFixed(3)}`;
  const steps = { min: 0, max: data.times.length - 1, step: 1, value: state.at, words };
  const [stepLabel] = slide("Step", "step", steps, set("at"));
  const text = make("div", { class: "text" }, data.text);
  furnish(place, [latentLabel, kindLabel, probesLabel, stepLabel], text, charts, reading, sources(data.sources));
  draw();
}
