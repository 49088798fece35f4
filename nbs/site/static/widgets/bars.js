// Scores by patch size and parity of the text's length, ours and the paper's.
import { choose, furnish, make, sources, svg } from "./dom.js";

function barChart(title, values, top) {
  const names = Object.keys(values);
  const height = 30 + 26 * names.length;
  const words = names.map((name) => `${name} ${values[name].toFixed(1)} %`).join(", ");
  const root = svg("svg", { viewBox: `0 0 360 ${height}`, role: "img", "aria-label": `${title}: ${words}` });
  root.append(svg("text", { x: 0, y: 14, "font-weight": 600 }, title));
  names.forEach((name, at) => {
    const y = 26 + 26 * at;
    root.append(svg("text", { x: 0, y: y + 13 }, name));
    root.append(svg("rect", { x: 100, y, width: (200 * values[name]) / top, height: 18, fill: ["#1f5fa8", "#c9662c", "#2a8f85"][at % 3] }));
    root.append(svg("text", { x: 106 + (200 * values[name]) / top, y: y + 13 }, `${values[name].toFixed(1)} %`));
  });
  return root;
}

export function start(place, data) {
  const charts = make("div", { class: "charts" });
  const reading = make("p", { class: "reading", "aria-live": "polite" });

  function draw(kind) {
    const pick = (table) => Object.fromEntries(Object.entries(table).map(([name, row]) => [name, row[kind]]));
    const [ours, paper] = [pick(data.ours), pick(data.paper)];
    const top = (values) => Math.max(...Object.values(values), 1);
    charts.replaceChildren(make("div", {}, barChart("Here", ours, top(ours))), make("div", {}, barChart("The paper", paper, top(paper))));
    const lost = ours["patch 1"] - ours["patch 2"];
    reading.textContent = `Here patch 2 scores ${Math.abs(lost).toFixed(1)} points ${lost > 0 ? "less" : "more"} than patch 1 (${kind}).`;
  }

  const [label] = choose("Texts", "kind", data.kinds.map((kind) => [kind, kind]), draw);
  furnish(place, [label], charts, reading, sources(data.sources));
  draw(data.kinds[0]);
}
