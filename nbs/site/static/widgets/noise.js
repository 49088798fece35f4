// Texts on the way from noise: the decoder's reading at a time, block after block.
import { choose, furnish, make, slide, sources } from "./dom.js";

// Time -> the reading of each block, each without the finished blocks before it. A step's text holds the text so far.
export function textsAt(trace) {
  const final = new Map(trace.filter((step) => step.t === 0).map((step) => [step.block, step.text]));
  const times = [...new Set(trace.map((step) => step.t))].sort((a, b) => b - a);
  const texts = new Map(times.map((t) => [t, []]));
  for (const step of trace) {
    const past = final.get(step.block - 1) ?? "";
    texts.get(step.t).push(step.text.slice(past.length));
  }
  return texts;
}

// Words of a block at a time, each with whether it is already the final one.
export function settledWords(text, last) {
  const final = last.split(/\s+/).filter(Boolean);
  return text.split(/\s+/).filter(Boolean).map((word, at) => ({ word, settled: final[at] === word }));
}

export function settledShare(texts, t) {
  const pairs = texts.get(t).map((text, block) => [settledWords(text, texts.get(0)[block]), texts.get(0)[block]]);
  const asked = pairs.reduce((sum, [, last]) => sum + last.split(/\s+/).filter(Boolean).length, 0);
  const right = pairs.reduce((sum, [words]) => sum + words.filter(({ settled }) => settled).length, 0);
  return right / Math.max(asked, 1);
}

export function start(place, data) {
  const names = Object.keys(data.models);
  const state = { model: names[0], text: 0, at: 0 };
  const shown = make("div", { class: "text", "aria-live": "polite" });
  const share = make("p", { class: "reading" });
  let texts, times;

  function draw() {
    const t = times[state.at];
    const spans = texts.get(t).flatMap((text, block) =>
      settledWords(text, texts.get(0)[block]).map(({ word, settled }) => make("span", { class: settled ? "settled" : "open" }, `${word} `)));
    shown.replaceChildren(...spans);
    share.textContent = `At t = ${t}, ${(100 * settledShare(texts, t)).toFixed(0)} % of the words are what they will be at the end.`;
  }

  function load() {
    texts = textsAt(data.models[state.model][state.text]);
    times = [...texts.keys()];
    time.max = times.length - 1;
    time.dispatchEvent(new Event("input"));
  }

  const [modelLabel] = choose("Model", "model", names.map((name) => [name, name]), (value) => { state.model = value; load(); });
  const count = data.models[names[0]].length;
  const numbers = Array.from({ length: count }, (_, at) => [at, `text ${at + 1}`]);
  const [textLabel] = choose("Text", "text", numbers, (value) => { state.text = Number(value); load(); });
  const words = (at) => (times ? `t = ${times[at]}` : "");
  const [timeLabel, time] = slide("Time", "time", { min: 0, max: 15, step: 1, value: 0, words }, (value) => { state.at = value; draw(); });
  let running = null;
  const play = make("button", { type: "button", onclick: () => {
    clearInterval(running);
    time.value = 0;
    time.dispatchEvent(new Event("input"));
    running = setInterval(() => {
      if (Number(time.value) >= times.length - 1) return clearInterval(running);
      time.value = Number(time.value) + 1;
      time.dispatchEvent(new Event("input"));
    }, 350);
  } }, "Play");
  furnish(place, [modelLabel, textLabel, timeLabel, play], shown, share, sources(data.sources));
  load();
}
