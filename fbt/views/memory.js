// The memory during training: the mixture of layers, and the composition of each
// memory vector.

const HEIGHT = 60; // of a bar of 100 %, in CSS pixels
const WIDTH = 20;
const BELOW = 10; // for negative shares

function tenths(share) {
  const rounded = Math.round(share / 10);
  return `${rounded < 0 ? "−" : ""}${Math.abs(rounded)} %`;
}

// A stacked bar: positive shares go up from the base line, negative ones down.
function bar(layers) {
  const picture = drawn("svg", {
    width: WIDTH + 2, height: HEIGHT + BELOW, "aria-hidden": "true",
  });
  const rects = layers.map((layer) =>
    drawn("rect", { x: 1, width: WIDTH, class: `fbt-part-${layer % 5}` }));
  picture.append(...rects);
  return {
    picture,
    show(shares) {
      let [up, down] = [HEIGHT, HEIGHT];
      shares.forEach((share, layer) => {
        const height = (HEIGHT * Math.abs(share)) / 1000;
        const y = share >= 0 ? (up -= height) : (down += height) - height;
        rects[layer].setAttribute("y", y);
        rects[layer].setAttribute("height", height);
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
    for (const [name, selected] of Object.entries(changes)) model.set(name, selected);
    model.save_changes();
    draw();
  }

  const controls = element("div", { class: "fbt-controls" });
  const label = element("label", {}, "training step ");
  const slider = element("input", {
    type: "range", min: 0, max: moments.length - 1, step: 1,
  });
  const output = element("output");
  slider.addEventListener("input", () => choose({ moment: Number(slider.value) }));
  label.append(slider, " ", output);
  controls.append(label);

  const hint = element("p", { class: "fbt-hint" },
    "Try this first: pull the slider to the right, and watch the bars of what each "
    + "character leaves in the memory.");

  // The mixture: a horizontal bar and a legend.
  const mixture = element("div", { class: "fbt-mixture", "aria-hidden": "true" });
  const segments = layers.map((layer) =>
    element("span", { class: `fbt-part-${layer % 5}` }));
  mixture.append(...segments);
  const legend = element("ul", { class: "fbt-legend" });
  const numbers = layers.map((layer) => {
    const item = element("li");
    const number = element("span");
    const swatch = element("span", {
      class: `fbt-swatch fbt-part-${layer % 5}`, "aria-hidden": "true",
    });
    item.append(swatch, layer ? `layer ${layer}: ` : "embedding: ", number);
    legend.append(item);
    return number;
  });

  const text = characters(tokens, "The text, with a memory vector per character", {
    chosen: () => value("query"),
    choose: (query) => choose({ query }),
    hover: (query) => { hovered = query; draw(); },
  });
  const bars = text.spans.map((span) => {
    const stacked = bar(layers);
    span.prepend(stacked.picture);
    return stacked;
  });
  const description = element("p", { class: "fbt-words", "aria-live": "polite" });
  root.append(hint, controls, mixture, legend, text.list, description);

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
    bars.forEach((stacked, i) => stacked.show(now.shares[i]));
    select(text, query);
    const shares = now.shares[query].map((share, layer) =>
      `${tenths(share)} ${nameOf(layer)}`);
    description.textContent =
      `“${shown(tokens[query])}”, step ${query + 1} of ${tokens.length}, `
      + `after ${now.step} training steps. `
      + `The parts of its memory vector: ${shares.join(", ")}.`;
  }

  for (const name of ["query", "moment"]) model.on?.(`change:${name}`, draw);
  el.replaceChildren(root);
  draw();
}

export default { render };
