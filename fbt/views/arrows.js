// The missing arrows: the vectors that a vector builds on, in a parallel model and in
// a feedback model, and the rounds in which all can be computed.

const KINDS = ["parallel", "feedback"];
const SIZE = { width: 44, height: 40 }; // of a cell, in CSS pixels
const DOT = 11;
const ROUND = 450; // milliseconds

// Layers and steps of the vectors that a vector reads; layer 0 is the embedding. With
// feedback, every layer reads memory vectors, which are made of all layers.
function reads(kind, layers, layer, step) {
  const found = [];
  if (!layer) return found;
  if (kind === "parallel") {
    for (let past = 0; past <= step; past++) found.push([layer - 1, past]);
    return found;
  }
  for (let past = 0; past < step; past++) {
    for (let l = 0; l <= layers; l++) found.push([l, past]);
  }
  return [...found, [layer - 1, step]];
}

// For each vector what it reads, all it builds on, and its longest chain of layers,
// the first first.
function network(kind, layers, steps) {
  const nodes = Array.from({ length: layers + 1 }, () => []);
  for (let step = 0; step < steps; step++) {
    for (let layer = 0; layer <= layers; layer++) {
      const sources = reads(kind, layers, layer, step).map(([l, s]) => nodes[l][s]);
      const node = { layer, step, sources, ancestors: new Set(sources), chain: [] };
      for (const source of sources) {
        source.ancestors.forEach((ancestor) => node.ancestors.add(ancestor));
        if (source.chain.length >= node.chain.length) node.chain = source.chain;
      }
      node.chain = [...node.chain, node];
      nodes[layer][step] = node;
    }
  }
  return nodes;
}

function vectorName(layer, step) {
  return layer ? `Layer ${layer} at step ${step}` : `The embedding of step ${step}`;
}

function counted(number, name) {
  return `${number} ${name}${number === 1 ? "" : "s"}`;
}

function render({ model, el }) {
  const { steps, layers } = model.get("data");
  const networks = KINDS.map((kind) => network(kind, layers, steps));
  const value = (name) => model.get(name);
  let hovered;

  function choose(changes) {
    for (const [name, chosen] of Object.entries(changes)) model.set(name, chosen);
    model.save_changes();
    draw();
  }
  const nodesNow = () => networks[value("kind")];
  // A vector is computed in the round after all that it reads.
  const roundOf = (node) => node.chain.length - 1;
  const lastRound = (nodes) => roundOf(nodes[layers][steps - 1]);

  const root = element("div", { class: "fbt-view-root fbt-arrows" });
  const hint = element("p", { class: "fbt-hint" },
    "Try this first: choose a circle of layer 1 on the right, then change between "
    + "parallel and feedback. Then press play.");
  const controls = element("div", { class: "fbt-controls" });
  const group = uniqueId();
  const kinds = element("div", {
    role: "radiogroup", class: "fbt-kinds", "aria-label": "kind of model",
  });
  const radios = KINDS.map((kind, i) => {
    const label = element("label", { "data-kind": kind });
    const radio = element("input", { type: "radio", name: group, value: i });
    radio.addEventListener("change", () => {
      play.stop();
      const isPlayed = value("round") >= 0;
      choose({ kind: i, ...(isPlayed ? { round: 0 } : {}) });
    });
    label.append(radio, ` ${kind}`);
    kinds.append(label);
    return radio;
  });
  const label = element("label", {}, "round ");
  const slider = element("input", { type: "range", min: 0, step: 1 });
  const output = element("output");
  slider.addEventListener("input", () => {
    play.stop();
    choose({ round: Number(slider.value) });
  });
  label.append(slider, " ", output);
  const play = player("round", ROUND, () => {
    const last = lastRound(nodesNow());
    const now = value("round");
    const round = now < 0 || now === last ? 0 : now + 1;
    choose({ round });
    return round < last;
  });
  controls.append(kinds, play.button, label);

  const rowOf = (layer) => layers - layer;
  const rows = Array.from({ length: layers + 1 }, (_, row) =>
    (row === layers ? "embedding" : `layer ${layers - row}`));
  const columns = Array.from({ length: steps }, (_, step) => `${step}`);
  const table = cellGrid(
    "Vectors, a row per layer and a column per step", rows, columns, SIZE, {
      chosen: () => place(value("node")),
      choose: (row, step) => {
        hovered = undefined;
        play.stop();
        choose({ node: (layers - row) * steps + step, round: -1 });
      },
      hover: (row, step) => {
        if (play.isPlaying() || value("round") >= 0) return;
        hovered = row === undefined ? undefined : [row, step];
        draw();
      },
    });
  table.root.querySelector("[role=columnheader]").textContent = "step";
  for (const cell of table.cells.flat()) {
    cell.append(element("span", { class: "fbt-dot", "aria-hidden": "true" }));
  }
  const words = element("p", { class: "fbt-words", "aria-live": "polite" });
  root.append(hint, controls, table.root, words);

  function place(node) {
    return [layers - Math.floor(node / steps), node % steps];
  }

  // A line between the edges of two circles, with a head if it is part of a chain.
  function connect(from, to, kind) {
    const [a, b] = [from, to].map(({ layer, step }) =>
      [(step + 0.5) * SIZE.width, (rowOf(layer) + 0.5) * SIZE.height]);
    const angle = Math.atan2(b[1] - a[1], b[0] - a[0]);
    const at = (point, distance, turn = 0) => [
      point[0] + distance * Math.cos(angle + turn),
      point[1] + distance * Math.sin(angle + turn),
    ].map((number) => number.toFixed(1)).join(" ");
    const tip = at(b, -DOT);
    const head = [0.18, -0.18].map((turn) => at(b, -DOT - 7, turn));
    const end = kind === "fbt-chain" ? `M${head[0]} L${tip} L${head[1]}` : "";
    const d = `M${at(a, DOT)} L${tip} ${end}`;
    table.behind.append(drawn("path", { d, class: kind }));
  }

  function draw() {
    const nodes = nodesNow();
    const [kind, round] = [value("kind"), value("round")];
    root.querySelectorAll(".fbt-grid, .fbt-words").forEach((node) => {
      node.dataset.kind = KINDS[kind];
    });
    radios.forEach((radio, i) => { radio.checked = i === kind; });
    const last = lastRound(nodes);
    slider.max = last;
    slider.value = round < 0 ? last : round;
    output.textContent = `${slider.value} of ${last}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    words.setAttribute("aria-live", play.isPlaying() ? "off" : "polite");
    table.behind.replaceChildren();
    const [row, step] = hovered ?? place(value("node"));
    if (round < 0) drawChosen(nodes, nodes[layers - row][step]);
    else drawRound(nodes, round, last);
    table.mark(row, step, round < 0);
  }

  function look(nodes, nameOf) {
    for (const node of nodes.flat()) {
      const cell = table.cells[rowOf(node.layer)][node.step];
      const [name, whose] = [nameOf(node), vectorName(node.layer, node.step)];
      cell.setAttribute("data-look", name);
      cell.setAttribute("aria-label", `${whose}: ${name}`);
    }
  }

  function drawChosen(nodes, node) {
    const [inside, onChain] = [node.ancestors, new Set(node.chain)];
    look(nodes, (other) => {
      if (other === node) return "chosen";
      if (onChain.has(other)) return "on the longest chain";
      return inside.has(other) ? "builds on it" : "not used";
    });
    for (const source of node.sources) connect(source, node, "fbt-read");
    node.chain.slice(1).forEach((to, i) => connect(node.chain[i], to, "fbt-chain"));
    const name = vectorName(node.layer, node.step);
    const other = roundOf(networks[1 - value("kind")][node.layer][node.step]);
    words.textContent = node.layer
      ? `${name} builds on ${counted(inside.size, "other vector")}. The longest `
        + `chain to it has ${counted(roundOf(node), "layer")}, one after another; in `
        + `the ${KINDS[1 - value("kind")]} model ${other}.`
      : `${name} is looked up, and builds on no other vector.`;
  }

  function drawRound(nodes, round, last) {
    look(nodes, (node) => {
      if (roundOf(node) > round) return "not yet";
      return roundOf(node) === round ? "now" : "done";
    });
    const now = nodes.flat().filter((node) => roundOf(node) === round);
    for (const node of now) {
      if (node.layer) connect(nodes[node.layer - 1][node.step], node, "fbt-chain");
    }
    const what = now.length > 1
      ? `${round ? `layer ${now[0].layer}` : "the embeddings"} of all steps at once`
      : `layer ${now[0].layer} at step ${now[0].step}, alone`;
    const end = round < last ? ""
      : ` Done: the parallel model needs ${lastRound(networks[0])} rounds for a `
        + `known text of any length, the feedback model ${layers} for each step.`;
    words.textContent = `Round ${round} of ${last}: ${what}.${end}`;
  }

  for (const name of ["kind", "node", "round"]) model.on?.(`change:${name}`, draw);
  el.replaceChildren(root);
  draw();
}

export default { render };
