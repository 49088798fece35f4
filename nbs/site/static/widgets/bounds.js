// ELBO and IWAE over the number of draws K, beside the truth.
import { COLORS, legend, lineChart } from "./chart.js";
import { choose, furnish, make, slide, sources } from "./dom.js";

const number = (value) => value.toFixed(Math.abs(value) < 10 ? 4 : 2).replace("-", "−");
const between = (low, high) => (low === null ? "" : ` (${number(low)} to ${number(high)})`);

export function start(place, data) {
  const names = Object.keys(data.cases);
  const state = { name: names[0], at: 0 };
  const charts = make("div", { class: "single" });
  const reading = make("div", { class: "reading", "aria-live": "polite" });

  function draw() {
    const { bounds, truth, about, unit } = data.cases[state.name];
    const [k, value, low, high] = bounds[state.at];
    const flat = (level) => bounds.map(([x]) => [x, level]);
    const curves = { IWAE: bounds, ELBO: flat(bounds[0][1]), truth: flat(truth) };
    const values = bounds.flatMap(([, ...rest]) => rest.slice(0, 3)).filter((number) => number !== null).concat(truth);
    const room = 0.05 * (Math.max(...values) - Math.min(...values));
    const limits = [Math.min(...values) - room, Math.max(...values) + room];
    const axes = { xLabel: "draws of latents, K", yLabel: unit, log: true, limits };
    const chart = lineChart(curves, { title: "Bounds", mark: k, ...axes });
    charts.replaceChildren(chart, legend(["IWAE", "ELBO (K = 1)", "truth"], COLORS));
    const lines = [
      about,
      `K = ${k}: IWAE ${number(value)}${between(low, high)} nats; the truth is ${number(truth)}, `
        + `${number(Math.abs(truth - value))} nats ${truth >= value ? "higher" : "lower"}.`,
    ];
    if (state.at > 0) lines.push(`Since K = 1, the ELBO, it rose by ${number(value - bounds[0][1])} nats.`);
    reading.replaceChildren(...lines.map((line) => make("p", {}, line)));
  }

  const bounds = () => data.cases[state.name].bounds;
  const last = () => bounds().length - 1;
  const words = (at) => String(bounds()[Math.min(at, last())][0]);
  const [caseLabel] = choose("Texts", "case", names.map((name) => [name, name]), (name) => {
    state.name = name;
    dial.max = last();
    dial.dispatchEvent(new Event("input"));
  });
  const ends = { min: 0, max: last(), step: 1, value: 0, words };
  const [dialLabel, dial] = slide("K", "k", ends, (at) => { state.at = at; draw(); });
  furnish(place, [caseLabel, dialLabel], charts, reading, sources(data.sources));
  draw();
}
