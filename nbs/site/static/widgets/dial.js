// A dial of a figure: choose the measure and a curve, move along the x axis, read ours with its interval beside the paper's point.
import { COLORS, legend, lineChart } from "./chart.js";
import { choose, furnish, interval, make, slide, sources } from "./dom.js";

// The point of a curve at x, or the nearest one.
export function nearest(points, x) {
  return points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
}

function xsOf(series) {
  return [...new Set(Object.values(series).flat().map(([x]) => x))].sort((a, b) => a - b);
}

export function start(place, data) {
  const state = { measure: Object.keys(data.ours)[0], curve: "all", at: 0 };
  const charts = make("div", { class: "charts" });
  const reading = make("div", { class: "reading", "aria-live": "polite" });

  const picked = () => {
    const series = data.ours[state.measure];
    return state.curve in series ? { [state.curve]: series[state.curve] } : series;
  };

  function describe(series, x) {
    const lines = Object.entries(series).map(([name, points]) => {
      const point = nearest(points, x);
      return make("p", {}, `${name} at ${data.x} ${point[0]}: ${interval(point)}`);
    });
    const paper = data.paper[state.measure];
    if (paper && data.paper_x === data.x && data.x !== "step") {
      for (const [name, points] of Object.entries(paper)) {
        const point = nearest(points, x);
        lines.push(make("p", {}, `${name}, nearest point, ${data.paper_x} ${point[0]}: ${point[1].toFixed(1)}`));
      }
    }
    return lines;
  }

  function draw() {
    const series = picked();
    const x = xsOf(series)[Math.min(state.at, xsOf(series).length - 1)];
    const paper = data.paper[state.measure];
    const all = [...new Set([...Object.keys(data.ours[state.measure]), ...Object.keys(paper ?? {})])]; // one colour a name
    const colorsOf = (names) => names.map((name) => COLORS[all.indexOf(name) % COLORS.length]);
    const chart = (curves, options) => {
      const colors = colorsOf(Object.keys(curves));
      return make("div", {}, lineChart(curves, { log: data.log, colors, ...options }), legend(Object.keys(curves), colors));
    };
    const parts = [chart(series, { title: "Here", xLabel: data.x, mark: x })];
    if (paper) {
      parts.push(chart(paper, { title: "The paper", xLabel: data.paper_x }));
    } else {
      parts.push(make("p", {}, "The paper shows no curve for this measure."));
    }
    charts.replaceChildren(...parts);
    reading.replaceChildren(...describe(series, x));
  }

  const measures = Object.keys(data.ours).map((name) => [name, data.labels[name]]);
  const [measureLabel] = choose("Measure", "measure", measures, (value) => { state.measure = value; reset(); });
  const curves = Object.keys(data.ours[state.measure]);
  const [curveLabel] = choose("Curve", "curve", [["all", "all"], ...curves.map((name) => [name, name])], (value) => {
    state.curve = value;
    reset();
  });
  const xs = () => xsOf(picked());
  const limits = { min: 0, max: xs().length - 1, step: 1, value: 0, words: (at) => String(xs()[Math.min(at, xs().length - 1)]) };
  const [dialLabel, dial] = slide(data.x, "dial", limits, (value) => { state.at = value; draw(); });

  function reset() {
    dial.max = xs().length - 1;
    dial.value = Math.min(state.at, xs().length - 1);
    dial.dispatchEvent(new Event("input"));
  }

  const controls = [measures.length > 1 ? measureLabel : null, curves.length > 1 ? curveLabel : null, dialLabel];
  furnish(place, controls.filter(Boolean), charts, reading, sources(data.sources));
  draw();
}
