// What the same model wrote under each strategy for the first block, with its scores.
import { choose, furnish, interval, make, sources } from "./dom.js";

export function start(place, data) {
  const names = Object.keys(data.names).filter((name) => name in data.texts);
  const measures = Object.keys(data.labels).filter((name) => name in data.texts[names[0]]);
  const state = { name: names[0], measure: measures.includes("grammatical") ? "grammatical" : measures[0], seed: "0" };
  const seeds = Object.keys(data.texts[names[0]][state.measure]).sort();
  const texts = make("div", { "aria-live": "polite" });
  const reading = make("div", { class: "reading" });

  function draw() {
    const score = data.scores[state.name][state.measure];
    const average = data.scores[state.name].average;
    const percent = ([value, low, high, n]) => interval([null, 100 * value, 100 * low, 100 * high, n]);
    reading.replaceChildren(
      make("p", {}, `${data.names[state.name]}, ${data.labels[state.measure]}: ${percent(score)}`),
      make("p", {}, `Average of the eight tasks: ${percent(average)}. The paper's average of three tasks: ${data.paper[state.name]} %`));
    const written = data.texts[state.name][state.measure][state.seed] ?? [];
    texts.replaceChildren(...written.map((text) => make("div", { class: "text" }, text)));
  }

  const set = (field) => (value) => { state[field] = value; draw(); };
  const [nameLabel] = choose("Strategy", "strategy", names.map((name) => [name, data.names[name]]), set("name"));
  const [measureLabel, measure] = choose("Measure", "measure", measures.map((name) => [name, data.labels[name]]), set("measure"));
  const [seedLabel] = choose("Model", "seed", seeds.map((seed) => [seed, `seed ${seed}`]), set("seed"));
  measure.value = state.measure;
  furnish(place, [nameLabel, measureLabel, seedLabel], reading, make("p", {}, "It wrote:"), texts, sources(data.sources));
  draw();
}
