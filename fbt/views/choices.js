// Results of a function, selected with controls. Each combination was computed.

// Ids of a figure and references to them. They get a prefix, because ids must be
// unique in a page, and the style of a figure must not affect others.
const NAMES = /(\bid="|url\(#|href="#)/g;

// The attributes of a figure that decide how large it is drawn, as JSON.
function size(figure) {
  const tag = figure?.match(/<svg[^>]*>/)?.[0];
  if (!tag) return undefined;
  const parts = [...tag.matchAll(/\b(width|height|viewBox)="([^"]*)"/g)];
  return JSON.stringify(Object.fromEntries(parts.map((part) => part.slice(1))));
}

function render({ model, el }) {
  const { controls, results } = model.get("data");
  const root = element("div", { class: "fbt-view-root fbt-choices" });
  const bar = element("div", { class: "fbt-controls" });
  const picture = element("div", { class: "fbt-figure fbt-room" });
  const words = element("div", { class: "fbt-room" });
  const result = element("pre", {
    class: "fbt-result", "aria-live": "polite", tabindex: 0,
  });
  const prefix = `${uniqueId()}-`;

  const inputs = controls.map(({ name, values, slider }) => {
    const label = element("label", {}, `${name.replaceAll("_", " ")} `);
    const input = slider
      ? element("input", { type: "range", min: 0, max: values.length - 1, step: 1 })
      : element("select");
    if (!slider) {
      values.forEach((value, i) =>
        input.append(element("option", { value: i }, shown(String(value)))));
    }
    const output = element("output");
    input.addEventListener("input", () => {
      model.set(name, Number(input.value));
      model.save_changes();
      draw();
    });
    label.append(input, ...(slider ? [" ", output] : []));
    bar.append(label);
    return { name, values, input, output };
  });
  root.append(bar, picture, words);
  words.append(result, ...results.map(({ text }) =>
    element("pre", { class: "fbt-sizer", "aria-hidden": "true" }, text)));
  const sizers = [...new Set(results.map(({ figure }) => size(figure)))]
    .filter(Boolean)
    .map((box) => drawn("svg", { ...JSON.parse(box), class: "fbt-sizer" }));

  function draw() {
    let index = 0; // of the result
    for (const { name, values, input, output } of inputs) {
      const chosen = model.get(name);
      index = index * values.length + chosen;
      input.value = chosen;
      output.textContent = values[chosen];
      if (input.type === "range") {
        input.setAttribute("aria-valuetext", values[chosen]);
      }
    }
    const { text, figure } = results[index];
    result.textContent = text;
    picture.replaceChildren(...sizers);
    if (figure) {
      const unique = figure.replace(NAMES, `$1${prefix}`)
        .replace("*{", `#${prefix}figure *{`);
      const drawing = new DOMParser()
        .parseFromString(unique, "image/svg+xml").documentElement;
      drawing.id = `${prefix}figure`;
      drawing.setAttribute("role", "img");
      drawing.setAttribute("aria-label", text);
      picture.append(drawing);
    }
  }

  el.replaceChildren(root);
  draw();
}

export default { render };
