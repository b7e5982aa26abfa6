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

function nameOf(layer) {
  return layer ? `layer ${layer}` : "the embedding";
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

const ASKED = "fbt-live"; // in the session: the reader has asked for the weights

// What is remembered for the session may be forbidden, as in a sandbox.
function remember(value) {
  try {
    if (value) sessionStorage.setItem(ASKED, value);
    return sessionStorage.getItem(ASKED);
  } catch {
    return null;
  }
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

// Load the weights of a model, which are in the page or in a script beside it.
function weightsOf({ packed, key, source }) {
  const found = packed ?? globalThis.fbtModels?.[key];
  if (found) return Promise.resolve(found);
  return new Promise((resolve, reject) => {
    const script = element("script", { src: source });
    script.onload = () => resolve(globalThis.fbtModels[key]);
    script.onerror = () => reject(new Error(`${source} was not found`));
    document.head.append(script);
  });
}

// A function that calls `run` in the next frame, once for all calls until then.
function perFrame(run) {
  let isAsked = false;
  return () => {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      run();
    });
  };
}

// A text as a list box: one tab stop, with arrow keys inside. Characters can be
// chosen, or hovered over, and added and removed at the end. A line of the text is an
// element, so that lines out of sight need not be drawn. A finger is wider than a
// character: it can be drawn along a line until the right one is chosen.
function characters(tokens, label, { chosen, choose, hover }) {
  const id = uniqueId();
  const list = element("div", {
    role: "listbox", tabindex: 0, class: "fbt-text", "aria-label": label,
  });
  const spans = [];
  let line;
  let word; // lines break between words
  function append(token) {
    const i = spans.length;
    const attributes = {
      role: "option", id: `${id}-${i}`, "data-i": i, "aria-selected": false,
    };
    const span = element("span", attributes, shown(token));
    if (!line) list.append((line = element("div", { role: "presentation" })));
    if (!word) line.append((word = element("span", { role: "presentation" })));
    word.append(span);
    if (SIGNS.has(token)) {
      span.classList.add("fbt-blank");
      word = undefined;
    }
    if (token.includes("\n")) line = word = undefined;
    spans.push(span);
  }
  tokens.forEach(append);
  const index = ({ target }) => Number(target.closest?.("[data-i]")?.dataset.i ?? -1);
  list.addEventListener("pointerover", (event) => {
    if (index(event) >= 0 && event.pointerType !== "touch") hover(index(event));
  });
  list.addEventListener("pointerleave", () => hover(-1));
  list.addEventListener("click", (event) => {
    const near = index(event) >= 0 ? index(event) : nearest(spans, event);
    if (near >= 0) choose(near);
  });
  // `touch-action` leaves fingers that move along a line to this, others scroll.
  list.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") return;
    const under = document.elementFromPoint(event.clientX, event.clientY);
    const at = index({ target: under ?? list });
    if (at >= 0 && at !== chosen()) choose(at);
  });
  list.addEventListener("keydown", (event) => {
    const next = move(event.key, spans, chosen());
    if (next === undefined) return;
    event.preventDefault();
    choose(next);
    spans[next].scrollIntoView({ block: "nearest" });
  });
  // Remove the characters from `length` on.
  function truncate(length) {
    for (const span of spans.splice(length)) {
      const [own, whole] = [span.parentNode, span.parentNode.parentNode];
      span.remove();
      if (!own.hasChildNodes()) own.remove();
      if (!whole.hasChildNodes()) whole.remove();
    }
    const last = spans.at(-1);
    const isEnd = !last || last.textContent.includes(SIGNS.get("\n"));
    line = isEnd ? undefined : last.parentNode.parentNode;
    word = isEnd || last.classList.contains("fbt-blank") ? undefined : last.parentNode;
  }
  return { list, spans, append, truncate };
}

// Mark a character as selected.
function select(text, chosen) {
  const span = text.spans[chosen];
  if (text.selected === span) return;
  text.selected?.setAttribute("aria-selected", false);
  text.selected = span;
  span?.setAttribute("aria-selected", true);
  if (span) text.list.setAttribute("aria-activedescendant", span.id);
}

// The character next to a point of the text.
function nearest(spans, { clientX, clientY }) {
  let [best, distance] = [-1, Infinity];
  spans.forEach((span, i) => {
    const { left, right, top, bottom } = span.getBoundingClientRect();
    const apart = Math.hypot(
      Math.max(left - clientX, 0, clientX - right),
      Math.max(top - clientY, 0, clientY - bottom));
    if (apart < distance) [best, distance] = [i, apart];
  });
  return best;
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

// Cells in rows and columns as a grid: one tab stop, with arrow keys inside, and a
// drawing behind the cells in which each cell has the given size. `rows` and
// `columns` are the names of both.
function cellGrid(label, rows, columns, size, { chosen, choose, hover }) {
  const root = element("div", {
    role: "grid", class: "fbt-grid", "aria-label": label,
  });
  root.style.setProperty("--columns", columns.length);
  const behind = drawn("svg", {
    viewBox: `0 0 ${columns.length * size.width} ${rows.length * size.height}`,
    preserveAspectRatio: "none", "aria-hidden": "true", class: "fbt-behind",
  });
  behind.style.gridArea = `1 / 2 / ${rows.length + 1} / -1`;
  const place = (node, row, column) => {
    node.style.gridArea = `${row + 1} / ${column + 1}`;
    return node;
  };
  const cells = rows.map((name, row) => {
    const line = element("div", { role: "row" });
    line.append(place(element("div", { role: "rowheader" }, name), row, 0));
    const own = columns.map((column, i) => place(element("div", {
      role: "gridcell", tabindex: -1, "data-at": `${row} ${i}`,
    }), row, i + 1));
    line.append(...own);
    root.append(line);
    return own;
  });
  const foot = element("div", { role: "row" });
  foot.append(place(element("div", { role: "columnheader" }), rows.length, 0));
  columns.forEach((name, i) => foot.append(
    place(element("div", { role: "columnheader" }, name), rows.length, i + 1)));
  root.append(foot, behind);

  const at = ({ target }) =>
    target.closest?.("[data-at]")?.dataset.at.split(" ").map(Number);
  root.addEventListener("click", (event) => at(event) && choose(...at(event)));
  root.addEventListener("pointerover", (event) => {
    if (at(event) && event.pointerType !== "touch") hover(...at(event));
  });
  root.addEventListener("pointerleave", () => hover());
  root.addEventListener("keydown", (event) => {
    const moves = {
      ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
      Home: [0, -columns.length], End: [0, columns.length],
      Enter: [0, 0], " ": [0, 0],
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const limits = [rows.length - 1, columns.length - 1];
    const [row, column] = (at(event) ?? chosen()).map((value, i) =>
      Math.min(limits[i], Math.max(0, value + moves[event.key][i])));
    choose(row, column);
    cells[row][column].focus();
  });
  // Mark the cell that the tab key reaches, and whether it is selected.
  function mark(row, column, isSelected = true) {
    for (const cell of cells.flat()) {
      const isIt = cell === cells[row][column];
      cell.tabIndex = isIt ? 0 : -1;
      cell.setAttribute("aria-selected", isIt && isSelected);
    }
  }
  return { root, cells, behind, mark };
}

// A button that starts and stops calls of `tick`, which returns whether to go on.
// Readers who want less motion get a single call per press.
function player(name, milliseconds, tick) {
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const button = element("button", { type: "button" });
  let timer;
  function stop() {
    clearInterval(timer);
    timer = undefined;
    button.textContent = isStill ? `next ${name} ▶` : "▶ play";
  }
  function step() {
    if (!button.isConnected || !tick()) stop();
  }
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (isStill) return step();
    button.textContent = "❚❚ pause";
    timer = setInterval(step, milliseconds);
    return step();
  });
  stop();
  return { button, stop, isStill, isPlaying: () => timer !== undefined };
}
