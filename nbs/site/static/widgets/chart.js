// A line chart as SVG: points, 95 % intervals, one marked place on the x axis.
import { make, svg } from "./dom.js";

export const COLORS = ["#1f5fa8", "#c9662c", "#2a8f85", "#8e5ea8", "#a37b00", "#c0392b", "#777777", "#3d8bd1"];
const WIDTH = 360, HEIGHT = 220, LEFT = 40, RIGHT = 10, TOP = 24, BOTTOM = 34;

// Round numbers that divide an interval into about five parts.
export function ticks(low, high) {
  const raw = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((width) => width >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + 1e-9 * step; at += step) found.push(Number(at.toFixed(10)));
  return found;
}

function extent(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return [Math.min(...known), Math.max(...known)];
}

function scaleX(xs, log) {
  const warp = log ? Math.log : (x) => x;
  const [low, high] = extent(xs).map(warp);
  return (x) => LEFT + (WIDTH - LEFT - RIGHT) * (high > low ? (warp(x) - low) / (high - low) : 0.5);
}

// Tick marks of the x axis: the measured places if they are few, else round numbers.
function xMarks(xs, log) {
  const places = [...new Set(xs)].sort((a, b) => a - b);
  if (places.length <= 10) return places;
  const [low, high] = extent(places);
  return log ? places : ticks(low, high);
}

function drawAxes(root, toX, toY, xs, [low, high], { log, xLabel, yLabel, title }) {
  const bottom = HEIGHT - BOTTOM;
  root.append(svg("text", { x: LEFT, y: 14, "font-weight": 600 }, title));
  root.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: bottom, y2: bottom }));
  let free = -Infinity; // where the next label may begin
  for (const x of xMarks(xs, log)) {
    const words = x >= 10000 ? `${x / 1000}k` : String(x > 50 ? Math.round(x) : x);
    const half = 3.5 * words.length;
    const at = Math.min(toX(x), WIDTH - half);
    if (at - half < free) continue;
    free = at + half + 4;
    root.append(svg("text", { x: at, y: bottom + 14, "text-anchor": "middle" }, words));
  }
  root.append(svg("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, xLabel));
  for (const y of ticks(low, high)) {
    root.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: toY(y), y2: toY(y), opacity: 0.25 }));
    root.append(svg("text", { x: LEFT - 5, y: toY(y) + 4, "text-anchor": "end" }, String(y)));
  }
  root.append(svg("text", { x: WIDTH - RIGHT, y: 14, "text-anchor": "end" }, yLabel));
}

function drawSeries(root, points, color, toX, toY) {
  for (const [x, , low, high] of points) {
    if (low === null || low === undefined) continue;
    root.append(svg("line", { x1: toX(x), x2: toX(x), y1: toY(low), y2: toY(high), stroke: color, "stroke-width": 2, opacity: 0.45 }));
  }
  const path = points.map(([x, y], at) => `${at ? "L" : "M"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`).join("");
  root.append(svg("path", { d: path, fill: "none", stroke: color, "stroke-width": 1.8 }));
  for (const [x, y] of points) root.append(svg("circle", { cx: toX(x), cy: toY(y), r: 3, fill: color }));
}

// `series` is an object: name -> list of [x, value, low, high, n]. Values may be cut to `limits`.
export function lineChart(series, { title, xLabel, yLabel = "%", log = false, mark = null, limits = null, colors = COLORS, dots = true }) {
  const all = Object.values(series).flat();
  const xs = all.map(([x]) => x);
  const usesLog = log && Math.min(...xs) > 0;
  const [low, high] = limits ?? extent(all.flatMap(([, ...values]) => values.slice(0, 3)).concat(dots ? [0] : []));
  const room = high > low ? high : low + 1;
  const toX = scaleX(xs, usesLog);
  const toY = (y) => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (Math.min(Math.max(y, low), room) - low) / (room - low);
  const names = Object.keys(series).join(", ");
  const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${yLabel} over ${xLabel}, ${names}` });
  drawAxes(root, toX, toY, xs, [low, room], { log: usesLog, xLabel, yLabel, title });
  if (mark !== null) {
    root.append(svg("line", { class: "mark", x1: toX(mark), x2: toX(mark), y1: TOP, y2: HEIGHT - BOTTOM, stroke: "currentColor", "stroke-dasharray": "3 3" }));
  }
  Object.values(series).forEach((points, at) => {
    if (dots) drawSeries(root, points, colors[at % colors.length], toX, toY);
    else root.append(svg("path", {
      d: points.map(([x, y], i) => `${i ? "L" : "M"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`).join(""),
      fill: "none", stroke: colors[at % colors.length], "stroke-width": 2,
    }));
  });
  return root;
}

// Names of the curves, each with its colour.
export function legend(names, colors = COLORS) {
  const entries = names.map((name, at) => {
    const swatch = make("span", { class: "swatch", style: `background:${colors[at]}` });
    return make("span", {}, swatch, name);
  });
  return make("div", { class: "legend" }, ...entries);
}
