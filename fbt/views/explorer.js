// Attention over a text: who reads what, by layer and head.

const STRONGEST = 4;

// Weights arrive as bytes, round(255 sqrt(w)), the rows of a lower triangle one after another.
function decode(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return (map, length, query, key) =>
    (bytes[(map * length * (length + 1)) / 2 + (query * (query + 1)) / 2 + key] / 255) ** 2;
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

function render({ model, el }) {
  const { tokens, panels } = model.get("data");
  const length = tokens.length;
  const root = element("div", { class: "fbt-view-root fbt-explorer" });
  const views = panels.map((panel) => ({ ...panel, at: decode(panel.weights) }));
  let hovered = -1;

  const value = (name) => model.get(name);
  function choose(changes) {
    for (const [name, chosen] of Object.entries(changes)) model.set(name, chosen);
    model.save_changes();
    draw();
  }

  // Layer and head: one choice for all panels.
  const controls = element("div", { class: "fbt-controls" });
  for (const [name, count] of [["layer", panels[0].layers], ["head", panels[0].heads]]) {
    const label = element("label", {}, `${name} `);
    const list = element("select", { "data-name": name });
    list.append(element("option", { value: -1 }, "mean of all"));
    for (let i = 0; i < count; i++) list.append(element("option", { value: i }, String(i + 1)));
    list.addEventListener("change", () => choose({ [name]: Number(list.value) }));
    label.append(list);
    controls.append(label);
  }
  root.append(controls);

  // A list box for each panel: one stop of the tab key, arrow keys inside.
  views.forEach((view) => {
    const part = element("section", { class: "fbt-explorer-panel" });
    if (view.name) part.append(element("p", { class: "fbt-name" }, view.name));
    const label = `${view.name ? `${view.name}: t` : "T"}he text, a character at a time`;
    Object.assign(view, characters(tokens, label, {
      chosen: () => value("query"),
      choose: (query) => { hovered = -1; choose({ query }); },
      hover: (query) => { hovered = query; draw(); },
    }));
    view.words = element("p", { class: "fbt-words", "aria-live": "polite" });
    part.append(view.list, view.words);
    root.append(part);
  });

  function draw() {
    const query = hovered >= 0 ? hovered : value("query");
    const [layer, head] = [value("layer"), value("head")];
    for (const list of controls.querySelectorAll("select")) list.value = value(list.dataset.name);
    for (const view of views) {
      const weights = row(view, length, query, layer, head);
      view.spans.forEach((span, key) => {
        span.style.setProperty("--weight", key <= query ? Math.sqrt(weights[key]).toFixed(3) : 0);
        span.classList.toggle("fbt-later", key > query);
      });
      select(view, query);
      const which = `${layer < 0 ? "all layers" : `layer ${layer + 1}`}, ${head < 0 ? "all heads" : `head ${head + 1}`}`;
      view.words.textContent =
        `“${shown(tokens[query])}”, step ${query + 1} of ${length} (${which}): ${inWords(tokens, weights, query)}`;
    }
  }

  for (const name of ["query", "layer", "head"]) model.on?.(`change:${name}`, draw);
  el.replaceChildren(root);
  draw();
}

export default { render };
