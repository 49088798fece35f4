// node equations.mjs MODULES SITE: sets every equation of the pages below SITE with the KaTeX that npm put into MODULES.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, site] = process.argv.slice(2);
const { default: katex } = await import(pathToFileURL(resolve(modules, "katex/dist/katex.mjs")));
const SOURCE = /<(span|div) class="math-source">([\s\S]*?)<\/\1>/g;
const NAMED = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&amp;": "&" };
const done = new Map();
let faults = 0;

function set(tag, escaped) {
  const latex = escaped.replace(/&(?:lt|gt|quot|amp|#x27);/g, (entity) => NAMED[entity]);
  const html = katex.renderToString(latex, { displayMode: tag === "div", strict: "ignore" });
  return `<${tag} class="math">${html}</${tag}>`;
}

function once(whole, tag, escaped) {
  if (!done.has(whole)) done.set(whole, set(tag, escaped));
  return done.get(whole);
}

for (const entry of readdirSync(site, { recursive: true })) {
  if (!entry.endsWith(".html")) continue;
  const path = join(site, entry);
  const text = readFileSync(path, "utf8");
  try {
    const changed = text.replace(SOURCE, once);
    if (changed !== text) writeFileSync(path, changed);
  } catch (error) {
    faults += 1;
    console.error(`${entry}: ${error.message}`);
  }
}
process.exit(faults ? 1 : 0);
