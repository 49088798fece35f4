// Loads the model beside the page and writes there, so that the page stays awake.
import { Sampler } from "./sampler.js";
import { Tokenizer } from "./tokenizer.js";

const GRAPHS = ["encode", "decode", "times", "step"];
const place = (name) => new URL(`../${name}`, import.meta.url).href;
let loading = null, current = null; // number of the text that is being written

async function load(folder) {
  const ort = await import(place("ort/ort.wasm.min.mjs"));
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  ort.env.wasm.wasmPaths = place("ort/");
  ort.env.logLevel = "error";
  const file = (name) => fetch(place(`${folder}/${name}`)).then((answer) => {
    if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
    return answer;
  });
  const [model, words] = await Promise.all(["manifest.json", "tokenizer.json"].map((name) => file(name).then((answer) => answer.json())));
  const bytes = await Promise.all(GRAPHS.map((name) => file(`${name}.onnx`).then((answer) => answer.arrayBuffer())));
  const graphs = {};
  for (const [at, name] of GRAPHS.entries()) graphs[name] = await ort.InferenceSession.create(new Uint8Array(bytes[at]));
  return new Sampler(ort, graphs, model, new Tokenizer(words));
}

// What ids add to a prompt, without half a character at the end.
function textOf({ tokenizer, model }, prompt, ids) {
  const before = tokenizer.decode(prompt, model.silent);
  const whole = tokenizer.decode([...prompt, ...ids], model.silent);
  const text = whole.startsWith(before) ? whole.slice(before.length) : tokenizer.decode(ids, model.silent);
  return text.replace(/\ufffd+$/, "");
}

async function write({ folder, run, prompt, ...settings }) {
  current = run;
  const say = (kind, part = {}) => postMessage({ kind, run, ...part });
  loading ??= load(folder);
  const sampler = await loading;
  if (run !== current) return;
  say("loaded");
  const ids = sampler.tokenizer.encode(prompt);
  for await (const part of sampler.write(prompt, settings)) {
    if (run !== current) return;
    say(part.done ? "block" : "draft", { ...part, text: textOf(sampler, ids, part.ids) });
    if (part.done) await new Promise((go) => setTimeout(go)); // lets "stop" come in
  }
  say("end");
}

onmessage = ({ data }) => {
  if (data.kind === "stop") { current = null; return; }
  write(data).catch((error) => { loading = null; postMessage({ kind: "fault", run: data.run, text: String(error) }); });
};
