// Latents of real texts on their way from noise, in three directions: turn the picture, move the time, choose a token.
import { COLORS, legend } from "./chart.js";
import { choose, furnish, make, slide, sources, svg } from "./dom.js";

const SIZE = 340, MARGIN = 10;
const TURN = 10; // degrees of an arrow key
const radians = (degrees) => (degrees * Math.PI) / 180;
const quoted = (word) => `“${word.trim() || JSON.stringify(word).slice(1, -1)}”`; // ends of line as \n
const percent = (share) => `${(100 * share).toFixed(0)} %`;

// Turn a point about the upright axis, then tilt it: [to the right, up, towards the eye].
export function turned([x, y, z], turn, tilt) {
  const [a, b] = [radians(turn), radians(tilt)];
  const [right, near] = [Math.cos(a) * x + Math.sin(a) * z, Math.cos(a) * z - Math.sin(a) * x];
  return [right, Math.cos(b) * y - Math.sin(b) * near, Math.sin(b) * y + Math.cos(b) * near];
}

// All latents, each with its text and its place in it.
export function latentsOf(data) {
  return data.texts.flatMap(({ points }, text) => points.map((point, place) => ({ ...point, text, place })));
}

// Share of the latents that read at a step as they do in the end.
export function settledAt(latents, at) {
  return latents.filter(({ words }) => words[at] === words.at(-1)).length / latents.length;
}

export function start(place, data) {
  const latents = latentsOf(data);
  const kinds = [...new Set(latents.map(({ kind }) => kind))].sort();
  const reach = Math.max(...latents.flatMap(({ path }) => path.map((point) => Math.hypot(...point))));
  const state = { at: 0, chosen: 0, turn: 30, tilt: 20, zoom: 1.2 };
  const picture = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, class: "space", role: "application", tabindex: 0 });
  const page = make("div", { class: "text" });
  const reading = make("div", { class: "reading", "aria-live": "polite" });

  function spot(point) {
    const [right, up, near] = turned(point, state.turn, state.tilt);
    const scale = (state.zoom * (SIZE / 2 - MARGIN)) / reach;
    return [SIZE / 2 + scale * right, SIZE / 2 - scale * up, near / reach];
  }

  function drawAxes() {
    return [0, 1, 2].flatMap((axis) => {
      const ends = [-0.8, 0.8].map((share) => spot([0, 1, 2].map((at) => (at === axis ? share * reach : 0))));
      const [[x1, y1], [x2, y2]] = ends;
      const line = svg("line", { class: "axis", x1, y1, x2, y2, opacity: 0.4 });
      return [line, svg("text", { x: x2 + 4, y: y2 + 4 }, `${axis + 1}`)];
    });
  }

  // The way of the chosen latent: what lies behind it solid, what is to come dashed.
  function drawWay({ path }) {
    const flat = (point) => spot(point).slice(0, 2).map((value) => value.toFixed(1)).join(",");
    const look = { fill: "none", stroke: "currentColor", "stroke-width": 1.2 };
    const line = (way, dash) => svg("polyline", { points: way.map(flat).join(" "), "stroke-dasharray": dash, ...look });
    return [line(path.slice(0, state.at + 1), "none"), line(path.slice(state.at), "2 3")];
  }

  function drawLatents() {
    const { text } = latents[state.chosen];
    const dot = ({ latent, index, spot: [cx, cy, near] }) => svg("circle", {
      cx, cy, r: (latent.text === text ? 5 : 3.5) + near, opacity: latent.text === text ? 0.95 : 0.45,
      fill: COLORS[kinds.indexOf(latent.kind)], "data-latent": index,
      stroke: index === state.chosen ? "currentColor" : "none", "stroke-width": 2,
    });
    const placed = latents.map((latent, index) => ({ latent, index, spot: spot(latent.path[state.at]) }));
    return placed.sort((a, b) => a.spot[2] - b.spot[2]).map(dot);
  }

  function drawWord({ path, words }) {
    const [x, y] = spot(path[state.at]);
    const side = x > SIZE / 2 ? { x: x - 9, "text-anchor": "end" } : { x: x + 9 };
    return svg("text", { ...side, y: y - 6, "font-weight": 600 }, quoted(words[state.at]));
  }

  // The text as the decoder reads it now: settled words bold, the chosen one marked.
  function drawText({ text }) {
    page.replaceChildren(...latents.flatMap(({ text: own, words }, index) => {
      if (own !== text) return [];
      const settled = words[state.at] === words.at(-1) ? "settled" : "open";
      return [make(index === state.chosen ? "mark" : "span", { class: settled }, words[state.at])];
    }));
  }

  function say({ text, place: at, kind, words }) {
    const t = data.times[state.at];
    const lines = [
      `Text ${text + 1}, token ${at + 1}: at t = ${t.toFixed(2)} the decoder reads ${quoted(words[state.at])}, `
        + `in the end ${quoted(words.at(-1))} (${kind}).`,
      `Of all ${latents.length} latents ${percent(settledAt(latents, state.at))} read as they will in the end.`,
      `The three directions show ${percent(data.shares[state.at])} of what the latents differ by at this time; `
        + `of round noise they would show ${percent(3 / data.channels)}.`,
    ];
    reading.replaceChildren(...lines.map((line) => make("p", {}, line)));
  }

  function draw() {
    const chosen = latents[state.chosen];
    const about = `${latents.length} latents in three directions at t = ${data.times[state.at].toFixed(2)}`;
    picture.setAttribute("aria-label", `${about}; arrow keys turn the picture`);
    picture.replaceChildren(...drawAxes(), ...drawWay(chosen), ...drawLatents(), drawWord(chosen));
    drawText(chosen);
    say(chosen);
  }

  function pick(index) {
    const { text, place: at } = latents[index];
    token.replaceChildren(...data.texts[text].points.map(({ words }, which) =>
      make("option", { value: which }, `${which + 1}: ${quoted(words.at(-1))}`)));
    [texts.value, token.value, state.chosen] = [String(text), String(at), index];
    draw();
  }

  const indexOf = (text, at) => latents.findIndex((latent) => latent.text === text && latent.place === at);
  const move = (slider, value) => { slider.value = value; slider.dispatchEvent(new Event("input")); };
  const wrapped = (degrees) => ((degrees + 540) % 360) - 180;
  const rotate = (turn, tilt) => { move(turnDial, wrapped(state.turn + turn)); move(tiltDial, state.tilt + tilt); };

  const numbers = data.texts.map((_, at) => [at, `text ${at + 1}`]);
  const [textLabel, texts] = choose("Text", "text", numbers, (value) => pick(indexOf(Number(value), 0)));
  const beside = (at) => pick(indexOf(latents[state.chosen].text, Number(at)));
  const [tokenLabel, token] = choose("Token", "token", [], beside);
  const set = (field) => (value) => { state[field] = value; draw(); };
  const angle = (most, value) => ({ min: -most, max: most, step: 1, value, words: (degrees) => `${degrees}°` });
  const [turnLabel, turnDial] = slide("Turn", "turn", angle(180, state.turn), set("turn"));
  const [tiltLabel, tiltDial] = slide("Tilt", "tilt", angle(90, state.tilt), set("tilt"));
  const zooms = { min: 1, max: 4, step: 0.2, value: state.zoom, words: (times) => `${times} times` };
  const [zoomLabel] = slide("Zoom", "zoom", zooms, set("zoom"));
  const when = (at) => `t = ${data.times[at].toFixed(2)}`;
  const ends = { min: 0, max: data.times.length - 1, step: 1, value: 0, words: when };
  const [timeLabel, time] = slide("Time", "time", ends, set("at"));
  let running = null;
  const play = make("button", { type: "button", onclick: () => {
    clearInterval(running);
    move(time, 0);
    running = setInterval(() => {
      if (state.at + 1 < data.times.length) move(time, state.at + 1);
      else clearInterval(running);
    }, 150);
  } }, "Play");

  const keys = { ArrowLeft: [-TURN, 0], ArrowRight: [TURN, 0], ArrowUp: [0, TURN], ArrowDown: [0, -TURN] };
  picture.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    rotate(...keys[event.key]);
  });
  let held = null; // where a pointer went down, and on which latent
  picture.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, y: event.clientY, latent: event.target.dataset.latent, moved: false };
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", (event) => {
    if (!held) return;
    const [dx, dy] = [event.clientX - held.x, event.clientY - held.y].map((pixels) => Math.round(pixels / 2));
    if (!dx && !dy) return;
    Object.assign(held, { x: held.x + 2 * dx, y: held.y + 2 * dy, moved: true });
    rotate(dx, dy);
  });
  picture.addEventListener("pointerup", () => {
    if (held && !held.moved && held.latent !== undefined) pick(Number(held.latent));
    held = null;
  });
  picture.addEventListener("pointercancel", () => { held = null; });

  const controls = [timeLabel, play, textLabel, tokenLabel, turnLabel, tiltLabel, zoomLabel];
  furnish(place, controls, picture, legend(kinds), page, reading, sources(data.sources));
  pick(0);
}
