// Attention over a text: what each character attends to, by layer and head.

const STRONGEST = 4;

// Decode weights: levels round(255 sqrt(w)) as characters, row by row of each map; only
// the lower triangle if they are causal.
function decode({ weights, causal }, length) {
  const levels = new Uint8Array(weights.length);
  for (let i = 0; i < weights.length; i++) {
    const code = weights.charCodeAt(i);
    levels[i] = code < 256 ? code - 61 : code - 256;
  }
  const size = causal ? (length * (length + 1)) / 2 : length ** 2;
  return (map, query, key) => {
    const start = causal ? (query * (query + 1)) / 2 : query * length;
    return (levels[map * size + start + key] / 255) ** 2;
  };
}

// The weights of one query; -1 as `layer` or `head` means the average over all.
function row({ at, causal, layers, heads }, length, query, layer, head) {
  const maps = [];
  for (let l = 0; l < layers; l++) {
    for (let h = 0; h < heads; h++) {
      const isShown = (layer < 0 || layer === l) && (head < 0 || head === h);
      if (isShown) maps.push(l * heads + h);
    }
  }
  return Array.from({ length: causal ? query + 1 : length }, (_, key) =>
    maps.reduce((sum, map) => sum + at(map, query, key), 0) / maps.length);
}

function position(key, query) {
  if (key === query) return "itself";
  return key < query ? `${query - key} back` : `${key - query} ahead`;
}

function describe(tokens, weights, query, causal) {
  const total = weights.reduce((a, b) => a + b, 0);
  if (total < 0.5) return "no memory to look at yet.";
  const moved = weights.map((weight, key) => weight * Math.abs(query - key));
  const distance = moved.reduce((a, b) => a + b, 0) / total;
  const strongest = weights
    .map((weight, key) => [weight, key])
    .sort((a, b) => b[0] - a[0])
    .slice(0, STRONGEST)
    .filter(([weight]) => weight >= 0.005)
    .map(([weight, key]) =>
      `“${shown(tokens[key])}” ${position(key, query)}, ${percent(weight)}`);
  return `${distance.toFixed(1)} steps ${causal ? "back" : "away"} on average, `
    + `most at ${strongest.join("; ")}.`;
}

function render({ model, el }) {
  const { tokens, panels } = model.get("data");
  const length = tokens.length;
  const root = element("div", { class: "fbt-view-root fbt-explorer" });
  const views = panels.map((panel) => ({ ...panel, at: decode(panel, length) }));
  let hovered = -1;

  const value = (name) => model.get(name);
  function choose(changes) {
    for (const [name, chosen] of Object.entries(changes)) model.set(name, chosen);
    model.save_changes();
    draw();
  }

  // Layer and head: one choice for all panels.
  const controls = element("div", { class: "fbt-controls" });
  const counts = [["layer", panels[0].layers], ["head", panels[0].heads]];
  for (const [name, count] of counts) {
    const label = element("label", {}, `${name} `);
    const list = element("select", { "data-name": name });
    list.append(element("option", { value: -1 }, "mean of all"));
    for (let i = 0; i < count; i++) {
      list.append(element("option", { value: i }, String(i + 1)));
    }
    list.addEventListener("change", () => choose({ [name]: Number(list.value) }));
    label.append(list);
    controls.append(label);
  }
  const hint = element("p", { class: "fbt-hint" },
    "Try this first: point at a character, or tap it, or walk with the arrow keys. "
    + "The higher the bar under another one, the more it reads from there.");
  root.append(hint, controls);

  // A list box per panel. What it says stands above, where a tap cannot push it off a
  // small screen.
  views.forEach((view) => {
    const section = element("section", {
      class: "fbt-explorer-panel", "data-kind": view.name,
    });
    if (view.name) section.append(element("p", { class: "fbt-name" }, view.name));
    const title = view.name ? `${view.name}: the text` : "The text";
    const label = `${title}, one character per option`;
    Object.assign(view, characters(tokens, label, {
      chosen: () => value("query"),
      choose: (query) => { hovered = -1; choose({ query }); },
      hover: (query) => { hovered = query; draw(); },
    }));
    view.description = element("p", { class: "fbt-words", "aria-live": "polite" });
    section.append(view.description, view.list);
    root.append(section);
  });

  function draw() {
    const query = hovered >= 0 ? hovered : value("query");
    const [layer, head] = [value("layer"), value("head")];
    for (const list of controls.querySelectorAll("select")) {
      list.value = value(list.dataset.name);
    }
    for (const view of views) {
      const weights = row(view, length, query, layer, head);
      view.spans.forEach((span, key) => {
        const heat = Math.sqrt(weights[key] ?? 0).toFixed(3);
        span.style.setProperty("--weight", heat);
        span.classList.toggle("fbt-later", key >= weights.length);
      });
      select(view, query);
      const selection = [
        layer < 0 ? "all layers" : `layer ${layer + 1}`,
        head < 0 ? "all heads" : `head ${head + 1}`,
      ].join(", ");
      view.description.textContent =
        `“${shown(tokens[query])}”, step ${query + 1} of ${length} `
        + `(${selection}): ${describe(tokens, weights, query, view.causal)}`;
    }
  }

  for (const name of ["query", "layer", "head"]) model.on?.(`change:${name}`, draw);
  el.replaceChildren(root);
  draw();
}

export default { render };
