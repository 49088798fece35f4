// Coverage and score of the toy of Appendix F, computed in the page.
import { furnish, make, slide, sources, svg } from "./dom.js";
import { coverage, isGood, modes, priorOf, score, TOY } from "./math.js";

const SIZE = 260, REACH = 6;
const toPixel = (value) => (SIZE * (value + REACH)) / (2 * REACH);

// The plane: good regions as rings, the prior's bumps, the posterior of the gold answer.
function plane(prior, sd) {
  const root = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", "aria-label": "Good regions, bumps of the prior, posterior of the gold answer" });
  const places = modes();
  for (const [x, y] of places) {
    let radius = 0;
    while (radius < 2 && isGood([x + radius, y], places)) radius += 0.02;
    root.append(svg("circle", { cx: toPixel(x), cy: SIZE - toPixel(y), r: (SIZE * radius) / (2 * REACH), fill: "#2a8f85", opacity: 0.3 }));
  }
  prior.means.forEach(([x, y], m) => {
    const strength = Math.min(1, 0.15 + 3 * prior.weights[m]);
    const r = (SIZE * 2 * prior.width) / (2 * REACH);
    root.append(svg("circle", { cx: toPixel(x), cy: SIZE - toPixel(y), r, fill: "none", stroke: "#1f5fa8", "stroke-width": 2, opacity: strength }));
  });
  const [x, y] = places[0];
  root.append(svg("circle", { cx: toPixel(x), cy: SIZE - toPixel(y), r: Math.max(1.5, (SIZE * 2 * sd) / (2 * REACH)), fill: "#c9662c" }));
  return root;
}

export function start(place, data) {
  const state = { dx: 0, width: TOY.width, gold: 1 / 8, sd: 0.35 };
  const picture = make("div");
  const reading = make("div", { class: "reading", "aria-live": "polite" });

  function draw() {
    const prior = priorOf(state);
    const { score: total, reconstruction, gap } = score(prior, state.sd);
    picture.replaceChildren(plane(prior, state.sd));
    const lines = [
      `Coverage: ${(100 * coverage(prior)).toFixed(2)} % of what the prior makes is a good answer.`,
      `Score of the gold answer: ${total.toFixed(3)} nats = reconstruction ${reconstruction.toFixed(3)} less KL ${gap.toFixed(3)}.`,
    ];
    const untouched = state.dx === 0 && state.width === TOY.width && state.gold === 1 / 8;
    const drawn = data.drawn.find(([sd]) => sd === state.sd);
    if (untouched && drawn) lines.push(`The notebook drew ${drawn[1].toFixed(3)} (${drawn[2].toFixed(3)} to ${drawn[3].toFixed(3)}) for it.`);
    reading.replaceChildren(...lines.map((line) => make("p", {}, line)));
  }

  const sds = data.drawn.map(([sd]) => sd).sort((a, b) => b - a);
  const set = (field, of = (value) => value) => (value) => { state[field] = of(value); draw(); };
  const [sdLabel] = slide("posterior's sd", "sd", { min: 0, max: sds.length - 1, step: 1, value: 0, words: (at) => String(sds[at]) }, set("sd", (at) => sds[at]));
  const [widthLabel] = slide("width of the prior's bumps", "width", { min: 0.05, max: 1.5, step: 0.05, value: TOY.width }, set("width"));
  const [moveLabel] = slide("move the prior", "dx", { min: -2, max: 2, step: 0.1, value: 0 }, set("dx"));
  const [goldLabel] = slide("weight of the gold answer", "gold", { min: 0, max: 1, step: 0.125, value: 0.125 }, set("gold"));
  furnish(place, [sdLabel, widthLabel, moveLabel, goldLabel], make("div", { class: "charts" }, picture, reading), sources(data.sources));
  draw();
}
