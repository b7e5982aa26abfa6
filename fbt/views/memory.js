// The memory while a model learns: which layers are mixed, and what each memory vector is made of.

const HEIGHT = 44; // of a bar of 100 %, in CSS pixels
const BELOW = 8; // for what points away from the memory vector

function part(layer) {
  return layer ? `layer ${layer}` : "the embedding";
}

function tenths(share) {
  return `${(share / 10).toFixed(0).replace("-", "−")} %`;
}

// A bar in parts: those above zero upward from the base line, the others down from it.
function bar(layers) {
  const picture = drawn("svg", { width: 11, height: HEIGHT + BELOW, "aria-hidden": "true" });
  const parts = layers.map((layer) => drawn("rect", { x: 1, width: 9, class: `fbt-part-${layer % 5}` }));
  picture.append(...parts);
  return {
    picture,
    show(shares) {
      let [up, down] = [HEIGHT, HEIGHT];
      shares.forEach((share, layer) => {
        const height = (HEIGHT * Math.abs(share)) / 1000;
        parts[layer].setAttribute("y", share >= 0 ? (up -= height) : (down += height) - height);
        parts[layer].setAttribute("height", height);
      });
    },
  };
}

function render({ model, el }) {
  const { tokens, moments } = model.get("data");
  const layers = moments[0].mixture.map((_, layer) => layer);
  const root = element("div", { class: "fbt-view-root fbt-memory" });
  let hovered = -1;
  const value = (name) => model.get(name);
  function choose(changes) {
    hovered = -1;
    for (const [name, chosen] of Object.entries(changes)) model.set(name, chosen);
    model.save_changes();
    draw();
  }

  const controls = element("div", { class: "fbt-controls" });
  const label = element("label", {}, "training step ");
  const slider = element("input", { type: "range", min: 0, max: moments.length - 1, step: 1 });
  const output = element("output");
  slider.addEventListener("input", () => choose({ moment: Number(slider.value) }));
  label.append(slider, " ", output);
  controls.append(label);

  // The mixture: a bar across, and its numbers.
  const mixture = element("div", { class: "fbt-mixture", "aria-hidden": "true" });
  const segments = layers.map((layer) => element("span", { class: `fbt-part-${layer % 5}` }));
  mixture.append(...segments);
  const legend = element("ul", { class: "fbt-legend" });
  const numbers = layers.map((layer) => {
    const item = element("li");
    const number = element("span");
    item.append(element("span", { class: `fbt-swatch fbt-part-${layer % 5}`, "aria-hidden": "true" }),
      layer ? `layer ${layer}: ` : "embedding: ", number);
    legend.append(item);
    return number;
  });

  const text = characters(tokens, "The text, a memory vector a character", {
    chosen: () => value("query"),
    choose: (query) => choose({ query }),
    hover: (query) => { hovered = query; draw(); },
  });
  const bars = text.spans.map((span) => {
    const made = bar(layers);
    span.prepend(made.picture);
    return made;
  });
  const words = element("p", { class: "fbt-words", "aria-live": "polite" });
  root.append(controls, mixture, legend, text.list, words);

  function draw() {
    const query = hovered >= 0 ? hovered : value("query");
    const now = moments[value("moment")];
    slider.value = value("moment");
    output.textContent = now.step;
    slider.setAttribute("aria-valuetext", `training step ${now.step}`);
    layers.forEach((layer) => {
      segments[layer].style.flexGrow = now.mixture[layer];
      numbers[layer].textContent = tenths(now.mixture[layer]);
    });
    bars.forEach((made, i) => made.show(now.shares[i]));
    select(text, query);
    const parts = now.shares[query].map((share, layer) => `${part(layer)} ${tenths(share)}`);
    words.textContent = `“${shown(tokens[query])}”, step ${query + 1} of ${tokens.length}, after ${now.step} `
      + `training steps. The parts of its memory vector: ${parts.join(", ")}.`;
  }

  for (const name of ["query", "moment"]) model.on?.(`change:${name}`, draw);
  el.replaceChildren(root);
  draw();
}

export default { render };
