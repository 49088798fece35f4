// Filters over the list of all claims, which is on the page already.
import { choose, make } from "./dom.js";

const VERDICTS = [["", "all"], ["R", "reproduced"], ["NR", "not reproduced"], ["U", "undecided"], ["NT", "without a verdict"]];
const SECTIONS = [["", "all"], ["A", "theory"], ["B", "RQ1"], ["C", "RQ2"], ["D", "RQ3"], ["E", "RQ4"], ["F", "discussion"]];

export function start(place) {
  const state = { verdict: new URLSearchParams(location.search).get("verdict") ?? "", section: "", words: "" };
  const claims = [...place.querySelectorAll(".claim")];
  const count = make("p", { class: "reading", role: "status" });

  function fits(claim) {
    return (!state.verdict || claim.dataset.verdict === state.verdict)
      && (!state.section || claim.dataset.section === state.section)
      && claim.textContent.toLowerCase().includes(state.words.toLowerCase());
  }

  function draw() {
    for (const claim of claims) claim.classList.toggle("hidden", !fits(claim));
    for (const group of place.querySelectorAll(".group")) {
      group.classList.toggle("hidden", !group.querySelector(".claim:not(.hidden)"));
    }
    const shown = claims.filter((claim) => !claim.classList.contains("hidden")).length;
    count.textContent = `${shown} of ${claims.length} claims`;
  }

  const set = (field) => (value) => { state[field] = value; draw(); };
  const [verdictLabel, verdict] = choose("Verdict", "verdict", VERDICTS, set("verdict"));
  const [sectionLabel] = choose("Section", "section", SECTIONS, set("section"));
  const search = make("input", { type: "search", name: "words", oninput: () => set("words")(search.value) });
  verdict.value = state.verdict;
  const controls = make("div", { class: "controls" }, verdictLabel, sectionLabel, make("label", {}, "Words", search));
  place.prepend(make("div", { class: "widget" }, controls, count));
  draw();
  if (location.hash) document.querySelector(location.hash)?.setAttribute("open", "");
}
