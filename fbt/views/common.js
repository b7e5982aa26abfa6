// Functions that the views share. The same script serves static pages, JupyterLab and
// Colab: anywidget calls `render`, and so does a page, with a model of plain values.
// Text is inserted as text, never as markup.

// Invisible characters are shown as signs: controls as pictures of their names,
// characters that change the direction of text as code points.
const SIGNS = new Map([[" ", "␣"], ["\n", "⏎"], ["\t", "⇥"], ["\x7f", "␡"]]);
const INVISIBLE = /[\x80-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/;

function withAttributes(node, attributes, text) {
  Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
  node.textContent = text;
  return node;
}

function element(name, attributes = {}, text = "") {
  return withAttributes(document.createElement(name), attributes, text);
}

function sign(character) {
  const code = character.codePointAt(0);
  if (SIGNS.has(character)) return SIGNS.get(character);
  if (code < 32) return String.fromCodePoint(0x2400 + code);
  if (!INVISIBLE.test(character)) return character;
  return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

function shown(token) {
  return [...token].map(sign).join("");
}

function percent(weight) {
  return weight < 0.005 ? "under 1 %" : `${Math.round(100 * weight)} %`;
}

const SVG = "http://www.w3.org/2000/svg";

function drawn(name, attributes = {}, text = "") {
  return withAttributes(document.createElementNS(SVG, name), attributes, text);
}

// A prefix for ids that are unique in the page.
function uniqueId() {
  return `fbt-${Math.random().toString(36).slice(2, 10)}`;
}

// A worker that runs a text, which also works on pages from a disk.
function startWorker(source) {
  const url = URL.createObjectURL(new Blob(['"use strict";\n', source]));
  const worker = new Worker(url);
  URL.revokeObjectURL(url);
  return worker;
}

// A text as a list box: one tab stop, with arrow keys inside. Characters can be
// chosen, or hovered over.
function characters(tokens, label, { chosen, choose, hover }) {
  const id = uniqueId();
  const list = element("div", {
    role: "listbox", tabindex: 0, class: "fbt-text", "aria-label": label,
  });
  let word; // lines break between words
  const spans = tokens.map((token, i) => {
    const attributes = { role: "option", id: `${id}-${i}`, "data-i": i };
    const span = element("span", attributes, shown(token));
    if (!word) list.append((word = element("span", { role: "presentation" })));
    word.append(span);
    if (SIGNS.has(token)) {
      span.classList.add("fbt-blank");
      word = undefined;
    }
    if (token.includes("\n")) list.append(element("br"));
    return span;
  });
  const index = ({ target }) => Number(target.closest?.("[data-i]")?.dataset.i ?? -1);
  list.addEventListener("pointerover", (event) => {
    if (index(event) >= 0 && event.pointerType !== "touch") hover(index(event));
  });
  list.addEventListener("pointerleave", () => hover(-1));
  list.addEventListener("click", (event) => {
    if (index(event) >= 0) choose(index(event));
  });
  list.addEventListener("keydown", (event) => {
    const next = move(event.key, spans, chosen());
    if (next === undefined) return;
    event.preventDefault();
    choose(next);
    spans[next].scrollIntoView({ block: "nearest" });
  });
  return { list, spans };
}

// Mark a character as selected.
function select({ list, spans }, chosen) {
  spans.forEach((span, i) => span.setAttribute("aria-selected", i === chosen));
  list.setAttribute("aria-activedescendant", spans[chosen].id);
}

// The character a key leads to: the next or previous one, or the nearest one in the
// line above or below.
function move(key, spans, query) {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (key in steps) {
    return Math.min(spans.length - 1, Math.max(0, query + steps[key]));
  }
  if (key === "Home") return 0;
  if (key === "End") return spans.length - 1;
  if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
  const from = spans[query].getBoundingClientRect();
  const up = key === "ArrowUp";
  let best = query;
  let distance = Infinity;
  spans.forEach((span, i) => {
    const box = span.getBoundingClientRect();
    const rows = up ? from.top - box.top : box.top - from.top;
    const apart = 100 * rows + Math.abs(box.left - from.left);
    if (rows > 2 && apart < distance) [best, distance] = [i, apart];
  });
  return best;
}
