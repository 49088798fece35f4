// Cola in the browser: type a prompt, watch each block go from noise to text.
import { choose, make, slide, sources } from "./dom.js";

const megabytes = (bytes) => (bytes / 1e6).toFixed(0);

export function start(place, data) {
  const state = { steps: data.steps, guidance: data.guidance, tokens: data.tokens };
  const still = [...place.childNodes];
  const prompt = make("textarea", { name: "prompt", rows: 2, maxlength: 400, spellcheck: "false" });
  prompt.value = "Once upon a time";
  const seed = make("input", { type: "number", name: "seed", min: 0, max: 2 ** 31 - 1, step: 1, value: 0 });
  const text = make("div", { class: "text written", tabindex: 0, role: "region", "aria-label": "The text" });
  const status = make("p", { class: "reading", role: "status" });
  const path = make("ol", { class: "path", "aria-label": "Drafts of the block" });
  let worker = null, blocks = [], began = 0, running = false, run = 0;

  // Drafts of a block that differ from the one before, each with the time at which it appeared.
  function drawPath(block) {
    const drafts = (blocks[block]?.drafts ?? []).filter(({ text: words }, at, all) => at === 0 || words !== all[at - 1].text);
    path.replaceChildren(...drafts.map(({ t, text: words }) => {
      const shown = JSON.stringify(words).slice(1, -1); // ends of line as \n
      return make("li", {}, make("span", { class: "time" }, `t = ${t.toFixed(2)} `), make("code", {}, shown));
    }));
  }

  function drawText(done, draft) {
    text.replaceChildren(make("strong", {}, prompt.value), done, make("span", { class: "open" }, draft.slice(done.length)));
  }

  const textBefore = (block) => blocks[block - 1]?.text ?? "";

  function hear({ data: part }) {
    if (!running || (part.run !== undefined && part.run !== run)) return; // of a text that was stopped
    if (part.kind === "loaded") { began = performance.now(); status.textContent = "Writing."; }
    if (part.kind === "draft") {
      blocks[part.block] ??= { drafts: [] };
      blocks[part.block].drafts.push({ t: part.t, text: part.text.slice(textBefore(part.block).length) });
      drawText(textBefore(part.block), part.text);
      drawPath(part.block);
    }
    if (part.kind === "block") {
      Object.assign(blocks[part.block], { text: part.text, ids: part.ids });
      place.dataset.ids = JSON.stringify(part.ids);
      drawText(part.text, part.text);
    }
    if (part.kind === "end") finish("Done");
    if (part.kind === "fault") { finish("Failed"); status.textContent = `The model cannot run here: ${part.text}`; }
  }

  function finish(word) {
    running = false;
    go.textContent = "Write";
    place.dataset.state = word.toLowerCase();
    const made = blocks.filter((block) => block.text !== undefined);
    const seconds = (performance.now() - began) / 1000;
    status.textContent = `${word}: ${made.at(-1)?.ids.length ?? 0} tokens in ${seconds.toFixed(1)} seconds.`;
    view.max = Math.max(made.length, 1);
    view.value = view.max;
    view.dispatchEvent(new Event("input"));
    viewLabel.classList.toggle("hidden", made.length === 0);
  }

  function write() {
    if (running) {
      worker.postMessage({ kind: "stop" });
      run++;
      drawText(blocks.findLast((block) => block.text !== undefined)?.text ?? "", "");
      return finish("Stopped");
    }
    worker ??= Object.assign(new Worker(new URL("./cola-worker.js", import.meta.url), { type: "module" }), {
      onmessage: hear, onerror: (event) => hear({ data: { kind: "fault", text: event.message ?? "no worker" } }),
    });
    [blocks, running, began, run] = [[], true, performance.now(), run + 1];
    place.dataset.state = "running";
    place.dataset.ids = "[]";
    go.textContent = "Stop";
    status.textContent = "Loading the model.";
    viewLabel.classList.add("hidden");
    path.replaceChildren();
    drawText("", "");
    const { steps, guidance, tokens } = state;
    seed.value = Math.min(Math.max(0, Math.trunc(Number(seed.value))), 2 ** 31 - 1);
    const settings = { prompt: prompt.value, seed: Number(seed.value), steps, guidance, tokens };
    worker.postMessage({ kind: "write", run, folder: data.folder, ...settings });
  }

  const set = (field) => (value) => { state[field] = Number(value); };
  const [stepsLabel, steps] = choose("Solver steps", "steps", Object.keys(data.times).map((count) => [count, count]), set("steps"));
  steps.value = String(data.steps);
  const [guidanceLabel] = slide("Guidance", "guidance", { min: 1, max: 4, step: 0.25, value: data.guidance }, set("guidance"));
  const [tokensLabel] = slide("Tokens", "tokens", { min: 4, max: 64, step: 4, value: data.tokens }, set("tokens"));
  const [viewLabel, view] = slide("Block", "view", { min: 1, max: 1, step: 1, value: 1, words: (at) => `${at}` }, (at) => drawPath(at - 1));
  viewLabel.classList.add("hidden");
  const go = make("button", { type: "button", name: "go", onclick: write }, "Write");
  const size = make("p", { class: "sources" }, `The first text loads ${megabytes(data.bytes)} MB: the model, and the program that runs it in your `
    + "browser. Nothing leaves your machine.");
  place.replaceChildren(
    make("label", { class: "wide" }, "Prompt", prompt),
    make("div", { class: "controls" }, stepsLabel, guidanceLabel, tokensLabel, make("label", {}, "Seed", seed), go),
    status, text, viewLabel, path, size, sources(data.sources));
  text.replaceChildren(...still.filter((node) => node.nodeType === 1).flatMap((node) => [...node.childNodes]));
}
