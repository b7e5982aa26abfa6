// What the views share. One script serves static pages, JupyterLab and Colab: `render` is what anywidget calls; a page
// calls it with a model of plain values. Text goes in as text, never as markup.

// What cannot be seen gets a sign: controls a picture of their name, and what turns lines around its number.
const SIGNS = new Map([[" ", "␣"], ["\n", "⏎"], ["\t", "⇥"], ["\x7f", "␡"]]);
const UNSEEN = /[\x80-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/;

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function sign(character) {
  const code = character.codePointAt(0);
  if (SIGNS.has(character)) return SIGNS.get(character);
  if (code < 32) return String.fromCodePoint(0x2400 + code);
  return UNSEEN.test(character) ? `U+${code.toString(16).toUpperCase().padStart(4, "0")}` : character;
}

function shown(token) {
  return [...token].map(sign).join("");
}

function percent(weight) {
  return weight < 0.005 ? "under 1 %" : `${Math.round(100 * weight)} %`;
}

const SVG = "http://www.w3.org/2000/svg";

function drawn(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// The beginning of names that nothing else on the page has.
function uniqueId() {
  return `fbt-${Math.random().toString(36).slice(2, 10)}`;
}

// A text as a list box: one stop of the tab key, arrow keys inside; a character is chosen, or looked at in passing.
function characters(tokens, label, { chosen, choose, hover }) {
  const id = uniqueId();
  const list = element("div", { role: "listbox", tabindex: 0, class: "fbt-text", "aria-label": label });
  let word; // lines break between words
  const spans = tokens.map((token, i) => {
    const span = element("span", { role: "option", id: `${id}-${i}`, "data-i": i }, shown(token));
    if (!word) list.append((word = element("span", { role: "presentation" })));
    word.append(span);
    if (SIGNS.has(token)) {
      span.classList.add("fbt-blank");
      word = undefined;
    }
    if (token.includes("\n")) list.append(element("br"));
    return span;
  });
  const index = (event) => Number(event.target.closest?.("[data-i]")?.dataset.i ?? -1);
  list.addEventListener("pointerover", (event) => {
    if (index(event) >= 0 && event.pointerType !== "touch") hover(index(event));
  });
  list.addEventListener("pointerleave", () => hover(-1));
  list.addEventListener("click", (event) => { if (index(event) >= 0) choose(index(event)); });
  list.addEventListener("keydown", (event) => {
    const next = move(event.key, spans, chosen());
    if (next === undefined) return;
    event.preventDefault();
    choose(next);
    spans[next].scrollIntoView({ block: "nearest" });
  });
  return { list, spans };
}

// Say which character is looked at.
function select({ list, spans }, chosen) {
  spans.forEach((span, i) => span.setAttribute("aria-selected", i === chosen));
  list.setAttribute("aria-activedescendant", spans[chosen].id);
}

// Where a key leads: along the text, or to the nearest character of the line above or below.
function move(key, spans, query) {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (key in steps) return Math.min(spans.length - 1, Math.max(0, query + steps[key]));
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
