// ELBO and IWAE over the number of draws K, beside the truth.
import { COLORS, legend, lineChart } from "./chart.js";
import { choose, furnish, make, slide, sources } from "./dom.js";

const nats = (value) => `${value.toFixed(Math.abs(value) < 10 ? 4 : 2)} nats`.replace("-", "−");
const between = (low, high) => (low === undefined || low === null ? "" : ` (${nats(low).replace(" nats", "")} to ${nats(high).replace(" nats", "")})`);

export function start(place, data) {
  const names = Object.keys(data.cases);
  const state = { name: names[0], at: 0 };
  const charts = make("div", {});
  const reading = make("div", { class: "reading", "aria-live": "polite" });

  function draw() {
    const { bounds, truth, about, unit } = data.cases[state.name];
    const [k, value, low, high] = bounds[state.at];
    const flat = (level) => bounds.map(([x]) => [x, level]);
    const curves = { IWAE: bounds, ELBO: flat(bounds[0][1]), truth: flat(truth) };
    const values = bounds.flatMap(([, ...rest]) => rest.slice(0, 3)).filter((number) => number !== null).concat(truth);
    const room = 0.05 * (Math.max(...values) - Math.min(...values));
    const limits = [Math.min(...values) - room, Math.max(...values) + room];
    const chart = lineChart(curves, { title: "Bounds", xLabel: "draws of latents, K", yLabel: unit, log: true, mark: k, limits });
    charts.replaceChildren(chart, legend(["IWAE", "ELBO (K = 1)", "truth"], COLORS));
    const lines = [
      `${about}`,
      `K = ${k}: IWAE ${nats(value)}${between(low, high)}; the truth is ${nats(truth)}, ${nats(Math.abs(truth - value))} ${truth >= value ? "higher" : "lower"}.`,
      `From K = 1, the ELBO, the bound rose by ${nats(value - bounds[0][1])}.`,
    ];
    reading.replaceChildren(...lines.map((line) => make("p", {}, line)));
  }

  const bounds = () => data.cases[state.name].bounds;
  const words = (at) => String(bounds()[Math.min(at, bounds().length - 1)][0]);
  const [caseLabel] = choose("Texts", "case", names.map((name) => [name, name]), (name) => {
    state.name = name;
    dial.max = bounds().length - 1;
    dial.dispatchEvent(new Event("input"));
  });
  const [dialLabel, dial] = slide("K", "k", { min: 0, max: bounds().length - 1, step: 1, value: 0, words }, (at) => { state.at = at; draw(); });
  furnish(place, [caseLabel, dialLabel], charts, reading, sources(data.sources));
  draw();
}
