// Which times a logit-normal schedule draws, their noise levels, and the score of a model trained so.
import { lineChart } from "./chart.js";
import { furnish, make, slide, sources } from "./dom.js";
import { meanTime, timeDensity } from "./math.js";

const grid = Array.from({ length: 199 }, (_, i) => (i + 1) / 200);

export function start(place, data) {
  const state = { loc: 1, scale: 1 };
  const charts = make("div", { class: "charts" });
  const reading = make("div", { class: "reading", "aria-live": "polite" });

  function say() {
    const { loc, scale } = state;
    const mean = meanTime(loc, scale);
    const lines = [
      `Training sees t = ${mean.toFixed(3)} on average, and logSNR ${(-2 * loc).toFixed(1)} with standard deviation ${(2 * scale).toFixed(1)}.`,
    ];
    const drawn = data.drawn.find(([atLoc, atScale]) => atLoc === loc && atScale === scale);
    if (drawn) lines.push(`20,000 draws of the training's sampler gave a mean of ${drawn[2]} (${drawn[3]} to ${drawn[4]}).`);
    const trained = data.scores.find(([atLoc]) => atLoc === loc);
    if (trained && scale === 1) {
      const [, value, low, high, n] = trained;
      lines.push(`Trained so, a model answers ${(100 * value).toFixed(1)} % of the tasks (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)}; n=${n} seeds).`);
    } else {
      lines.push("No model was trained at this place: scores are known at scale 1 and the dots of the second picture.");
    }
    const [even, low, high, n] = data.uniform;
    lines.push(`Uniform times: ${(100 * even).toFixed(1)} % (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)}; n=${n}).`);
    reading.replaceChildren(...lines.map((line) => make("p", {}, line)));
  }

  function draw() {
    const density = grid.map((t) => [t, timeDensity(t, state.loc, state.scale)]);
    const top = Math.max(4, ...density.map(([, value]) => value));
    const scores = data.scores.map(([loc, value, low, high, n]) => [loc, 100 * value, 100 * low, 100 * high, n]);
    charts.replaceChildren(
      make("div", {}, lineChart({ density }, { title: "Density of t", xLabel: "t (0 data, 1 noise)", yLabel: "", limits: [0, top], dots: false })),
      make("div", {}, lineChart({ "average of the tasks": scores }, { title: "Score by loc", xLabel: "loc", mark: state.loc, limits: [0, 100] })));
    say();
  }

  const locs = data.scores.map(([loc]) => loc);
  const limits = { min: Math.min(...locs), max: Math.max(...locs), step: 0.25, value: 1 };
  const [locLabel] = slide("loc", "loc", limits, (value) => { state.loc = value; draw(); });
  const [scaleLabel] = slide("scale", "scale", { min: 0.25, max: 2, step: 0.25, value: 1 }, (value) => { state.scale = value; draw(); });
  furnish(place, [locLabel, scaleLabel], charts, reading, sources(data.sources));
  draw();
}
