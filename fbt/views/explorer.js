// The attention explorer: one file for the book's static pages, JupyterLab and Colab. `render` is what anywidget
// calls; a static page calls it with a model of plain values. Text goes in as text, never as markup.

const SIGNS = { " ": "␣", "\n": "⏎", "\t": "⇥" };
const STRONGEST = 4;

// Weights arrive as bytes, round(255 sqrt(w)), the rows of a lower triangle one after another.
function decode(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return (map, length, query, key) =>
    (bytes[(map * length * (length + 1)) / 2 + (query * (query + 1)) / 2 + key] / 255) ** 2;
}

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function shown(token) {
  return [...token].map((c) => SIGNS[c] ?? c).join("");
}

function percent(weight) {
  return weight < 0.005 ? "under 1 %" : `${Math.round(100 * weight)} %`;
}

// The weights of one query: of a head, or the mean of those that `layer` and `head` leave open (-1).
function row({ at, layers, heads }, length, query, layer, head) {
  const maps = [];
  for (let l = 0; l < layers; l++)
    for (let h = 0; h < heads; h++)
      if ((layer < 0 || layer === l) && (head < 0 || head === h)) maps.push(l * heads + h);
  return Array.from({ length: query + 1 }, (_, key) =>
    maps.reduce((sum, map) => sum + at(map, length, query, key), 0) / maps.length);
}

function inWords(tokens, weights, query) {
  const total = weights.reduce((a, b) => a + b, 0);
  if (total < 0.5) return "no memory to look at yet.";
  const back = weights.reduce((sum, weight, key) => sum + weight * (query - key), 0) / total;
  const strongest = weights
    .map((weight, key) => [weight, key])
    .sort((a, b) => b[0] - a[0])
    .slice(0, STRONGEST)
    .filter(([weight]) => weight >= 0.005)
    .map(([weight, key]) => `“${shown(tokens[key])}” ${key === query ? "itself" : `${query - key} back`}, ${percent(weight)}`);
  return `${back.toFixed(1)} steps back on average, most at ${strongest.join("; ")}.`;
}

let explorers = 0;

function render({ model, el }) {
  const { tokens, panels } = model.get("data");
  const length = tokens.length;
  const id = `fbt-explorer-${(explorers += 1)}-${Math.random().toString(36).slice(2, 8)}`;
  const root = element("div", { class: "fbt-explorer" });
  const views = panels.map((panel) => ({ ...panel, at: decode(panel.weights) }));
  let hovered = -1;

  const value = (name) => model.get(name);
  function choose(changes) {
    for (const [name, chosen] of Object.entries(changes)) model.set(name, chosen);
    model.save_changes();
    draw();
  }

  // Layer and head: one choice for all panels.
  const controls = element("div", { class: "fbt-explorer-controls" });
  for (const [name, count] of [["layer", panels[0].layers], ["head", panels[0].heads]]) {
    const label = element("label", {}, `${name} `);
    const select = element("select", { "data-name": name });
    select.append(element("option", { value: -1 }, "mean of all"));
    for (let i = 0; i < count; i++) select.append(element("option", { value: i }, String(i + 1)));
    select.addEventListener("change", () => choose({ [name]: Number(select.value) }));
    label.append(select);
    controls.append(label);
  }
  root.append(controls);

  // A list box for each panel: one stop of the tab key, arrow keys inside.
  views.forEach((view, number) => {
    const part = element("section", { class: "fbt-explorer-panel" });
    if (view.name) part.append(element("h4", {}, view.name));
    view.list = element("div", { role: "listbox", tabindex: 0, class: "fbt-explorer-text" });
    view.list.setAttribute("aria-label", `${view.name ? `${view.name}: t` : "T"}he text, a character at a time`);
    let word; // lines break between words
    view.spans = tokens.map((token, i) => {
      const span = element("span", { role: "option", id: `${id}-${number}-${i}`, "data-i": i }, shown(token));
      if (!word) view.list.append((word = element("span", { role: "presentation" })));
      word.append(span);
      if (SIGNS[token]) {
        span.classList.add("fbt-blank");
        word = undefined;
      }
      if (token.includes("\n")) view.list.append(element("br"));
      return span;
    });
    view.words = element("p", { class: "fbt-explorer-words", "aria-live": "polite" });
    part.append(view.list, view.words);
    root.append(part);

    const index = (event) => Number(event.target.closest?.("[data-i]")?.dataset.i ?? -1);
    view.list.addEventListener("pointerover", (event) => {
      if (index(event) >= 0 && event.pointerType !== "touch") { hovered = index(event); draw(); }
    });
    view.list.addEventListener("pointerleave", () => { hovered = -1; draw(); });
    view.list.addEventListener("click", (event) => { if (index(event) >= 0) choose({ query: index(event) }); });
    view.list.addEventListener("keydown", (event) => {
      const next = move(event.key, view, value("query"), length);
      if (next === undefined) return;
      event.preventDefault();
      hovered = -1;
      choose({ query: next });
      view.spans[next].scrollIntoView({ block: "nearest" });
    });
  });

  function draw() {
    const query = hovered >= 0 ? hovered : value("query");
    const [layer, head] = [value("layer"), value("head")];
    for (const select of controls.querySelectorAll("select")) select.value = value(select.dataset.name);
    for (const view of views) {
      const weights = row(view, length, query, layer, head);
      view.spans.forEach((span, key) => {
        span.style.setProperty("--weight", key <= query ? Math.sqrt(weights[key]).toFixed(3) : 0);
        span.setAttribute("aria-selected", key === query);
        span.classList.toggle("fbt-later", key > query);
      });
      view.list.setAttribute("aria-activedescendant", view.spans[query].id);
      const which = `${layer < 0 ? "all layers" : `layer ${layer + 1}`}, ${head < 0 ? "all heads" : `head ${head + 1}`}`;
      view.words.textContent =
        `“${shown(tokens[query])}”, step ${query + 1} of ${length} (${which}): ${inWords(tokens, weights, query)}`;
    }
  }

  for (const name of ["query", "layer", "head"]) model.on?.(`change:${name}`, draw);
  el.replaceChildren(root);
  draw();
}

// Where a key leads: along the text, or to the nearest character of the line above or below.
function move(key, view, query, length) {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (key in steps) return Math.min(length - 1, Math.max(0, query + steps[key]));
  if (key === "Home") return 0;
  if (key === "End") return length - 1;
  if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
  const from = view.spans[query].getBoundingClientRect();
  const up = key === "ArrowUp";
  let best = query;
  let distance = Infinity;
  view.spans.forEach((span, i) => {
    const box = span.getBoundingClientRect();
    const rows = up ? from.top - box.top : box.top - from.top;
    const apart = 100 * rows + Math.abs(box.left - from.left);
    if (rows > 2 && apart < distance) [best, distance] = [i, apart];
  });
  return best;
}

export default { render };
