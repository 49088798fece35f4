// The ELBO as a budget: reconstruction, rate and prior KL of a trained model, or of a toy with more and more noise.
import { COLORS, legend, lineChart } from "./chart.js";
import { choose, furnish, make, slide, sources, svg } from "./dom.js";

const PARTS = ["reconstruction", "rate", "prior"];
const NAMES = { reconstruction: "reconstruction", rate: "rate", prior: "prior KL", elbo: "ELBO", truth: "truth" };
const label = (name) => (["rate", "prior"].includes(name) ? `minus ${NAMES[name]}` : NAMES[name]);
const WIDTH = 360, LEFT = 110, ROW = 26;
const number = (value) => value.toFixed(value !== 0 && Math.abs(value) < 0.005 ? 5 : 2).replace("-", "−");

// Where each bar begins and ends: the parts one after the other, then what they give and the truth from zero.
export function barsOf(setting) {
  const bars = [];
  let from = 0;
  for (const name of PARTS) {
    const to = name === "reconstruction" ? from + setting[name][0] : from - setting[name][0];
    bars.push({ name, from, to });
    from = to;
  }
  for (const name of ["elbo", "truth"]) bars.push({ name, from: 0, to: setting[name][0] });
  return bars;
}

function barChart(bars) {
  const low = Math.min(...bars.flatMap(({ from, to }) => [from, to]), -1e-6);
  const high = Math.max(...bars.flatMap(({ from, to }) => [from, to]), 0);
  const toX = (value) => LEFT + ((WIDTH - LEFT - 60) * (value - low)) / (high - low);
  const words = bars.map(({ name, from, to }) => `${label(name)} ${number(to - from)}`).join(", ");
  const viewBox = `0 0 ${WIDTH} ${30 + ROW * bars.length}`;
  const root = svg("svg", { viewBox, role: "img", "aria-label": `In nats: ${words}` });
  root.append(svg("text", { x: 0, y: 14, "font-weight": 600 }, "The budget, nats per text"));
  bars.forEach(({ name, from, to }, at) => {
    const y = 24 + ROW * at;
    const x = toX(Math.min(from, to));
    root.append(svg("text", { x: 0, y: y + 13 }, label(name)));
    root.append(svg("rect", { x, y, width: Math.max(1, Math.abs(toX(to) - toX(from))), height: 17, fill: COLORS[at] }));
    root.append(svg("text", { x: WIDTH, y: y + 13, "text-anchor": "end" }, number(to - from)));
  });
  root.append(svg("line", { class: "axis", x1: toX(0), x2: toX(0), y1: 20, y2: 24 + ROW * bars.length }));
  return root;
}

export function start(place, data) {
  const names = Object.keys(data.cases);
  const state = { name: names[0], at: 0 };
  const charts = make("div", { class: "charts" });
  const reading = make("div", { class: "reading", "aria-live": "polite" });
  const settings = () => data.cases[state.name].settings;

  // The parts, or ELBO and truth, over the dial.
  function overview({ curves, top, log, dial }) {
    const own = settings().filter(({ x }) => x !== null);
    const curve = (name) => own.map(({ x, [name]: [value] }) => [x, Math.abs(value)]);
    const lines = Object.fromEntries(curves.map((name) => [NAMES[name], curve(name)]));
    const highest = top ?? Math.max(...Object.values(lines).flat().map(([, value]) => value));
    const title = `Nats without the sign${top ? `, cut at ${top}` : ""}`;
    const options = { title, xLabel: dial, yLabel: "", log, mark: settings()[state.at].x, limits: [0, highest] };
    const colors = curves.map((name) => COLORS[Object.keys(NAMES).indexOf(name)]);
    return make("div", {}, lineChart(lines, { ...options, colors }), legend(Object.keys(lines), colors));
  }

  function say(setting, about) {
    const value = (name) => {
      const [middle, low, high] = setting[name];
      return low === null ? number(middle) : `${number(middle)} (${number(low)} to ${number(high)})`;
    };
    const sum = setting.reconstruction[0] - setting.rate[0] - setting.prior[0];
    const lines = [
      `${about} ${setting.label}: reconstruction ${value("reconstruction")}, rate ${value("rate")}, `
        + `prior KL ${value("prior")} nats.`,
      `The parts give ${number(sum)}; the ELBO is ${value("elbo")} and the truth ${value("truth")}, `
        + `${number(setting.truth[0] - setting.elbo[0])} higher.`,
    ];
    reading.replaceChildren(...lines.map((line) => make("p", {}, line)));
  }

  function draw() {
    const current = data.cases[state.name];
    const setting = settings()[state.at];
    charts.replaceChildren(make("div", {}, barChart(barsOf(setting))), overview(current));
    say(setting, current.about);
  }

  const words = (at) => settings()[Math.min(at, settings().length - 1)].label;
  const [caseLabel] = choose("Model", "case", names.map((name) => [name, name]), (name) => {
    Object.assign(state, { name, at: 0 });
    dial.max = settings().length - 1;
    dial.value = 0;
    dial.dispatchEvent(new Event("input"));
  });
  const ends = { min: 0, max: settings().length - 1, step: 1, value: 0, words };
  const [dialLabel, dial] = slide("Setting", "dial", ends, (at) => { state.at = at; draw(); });
  furnish(place, [caseLabel, dialLabel], charts, reading, sources(data.sources));
  draw();
}
