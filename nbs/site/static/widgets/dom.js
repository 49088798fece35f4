// Small helpers to make elements and controls.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A labelled menu; `options` is a list of [value, words].
export function choose(label, name, options, onchange) {
  const select = make("select", { name }, ...options.map(([value, words]) => make("option", { value }, words)));
  select.addEventListener("change", () => onchange(select.value));
  return [make("label", {}, label, select), select];
}

// A labelled slider that also says its value in words.
export function slide(label, name, { min, max, step, value, words = String }, onchange) {
  const input = make("input", { type: "range", name, min, max, step, value });
  const shown = make("output", {}, words(Number(value)));
  const say = () => {
    shown.textContent = words(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => { say(); onchange(Number(input.value)); });
  say();
  return [make("label", {}, make("span", {}, `${label}: `, shown), input), input];
}

// Put the parts of a widget in place of its still picture.
export function furnish(place, controls, ...parts) {
  place.replaceChildren(make("div", { class: "controls" }, ...controls), ...parts);
}

export function sources(files) {
  return make("p", { class: "sources" }, `From ${files.join(", ")}`);
}

export function interval([, value, low, high, n], digits = 1, unit = " %") {
  const number = value.toFixed(digits) + unit;
  if (low === null || low === undefined) return number;
  return `${number} (${low.toFixed(digits)} to ${high.toFixed(digits)}; n=${n})`;
}
