// The recurrence, one vector at a time: embedding, layers, memory, key and value of
// each step.

const COLUMN = 62;
const CELL = { width: 48, height: 15 };
const ROW = 34;
const LEFT = 80;

function nameOf(layer) {
  return layer ? `layer ${layer}` : "the embedding";
}

function list(items) {
  if (items.length < 2) return items.join("");
  return `${items.slice(0, -1).join(", ")} and ${items.at(-1)}`;
}

function render({ model, el }) {
  const data = model.get("data");
  const { tokens, width, mixture, outputs, memory, keys, values, weights } = data;
  const [steps, layers] = [tokens.length, outputs.length - 1];
  const perStep = layers + 3; // moments per step
  const last = steps * perStep - 1;
  const value = () => model.get("moment");
  function choose(moment) {
    model.set("moment", Math.min(last, Math.max(0, moment)));
    model.save_changes();
    draw();
  }

  const root = element("div", { class: "fbt-view-root fbt-recurrence" });
  const controls = element("div", { class: "fbt-controls" });
  const back = element("button", { type: "button" }, "◀ back");
  const next = element("button", { type: "button" }, "next ▶");
  back.addEventListener("click", () => choose(value() - 1));
  next.addEventListener("click", () => choose(value() + 1));
  const label = element("label", {}, "moment ");
  const slider = element("input", { type: "range", min: 0, max: last, step: 1 });
  const output = element("output");
  slider.addEventListener("input", () => choose(Number(slider.value)));
  label.append(slider, " ", output);
  controls.append(back, next, label);

  // Rows from the top: value, key, memory, layers from the highest, embedding, text.
  const layerRows = outputs.map((vectors, layer) =>
    ({ name: layer ? `layer ${layer}` : "embedding", vectors, at: layer }));
  const rows = [
    { name: "value V", vectors: values, at: perStep - 1 },
    { name: "key K", vectors: keys, at: perStep - 1 },
    { name: "memory m", vectors: memory, at: perStep - 2 },
    ...layerRows.reverse(),
  ];
  const y = (row) => 8 + ROW * row + (row > 2 ? ROW / 2 : 0);
  const layerRow = (layer) => rows.length - 1 - layer;
  const x = (step) => LEFT + COLUMN * step;
  const wide = LEFT + COLUMN * steps - (COLUMN - CELL.width) + 4;
  const high = y(rows.length) + 14;
  const picture = drawn("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img" });
  picture.style.maxWidth = `${1.25 * wide}px`;
  rows.forEach(({ name }, row) =>
    picture.append(drawn("text", { x: 0, y: y(row) + 12 }, name)));
  tokens.forEach((token, step) => picture.append(drawn("text", {
    x: x(step) + CELL.width / 2, y: high - 4,
    "text-anchor": "middle", class: "fbt-token",
  }, shown(token))));

  const cells = rows.map(({ vectors, at }, row) => vectors.map((numbers, step) => {
    const cell = drawn("g", { transform: `translate(${x(step)} ${y(row)})` });
    const barWidth = CELL.width / numbers.length;
    numbers.forEach((number, i) => cell.append(drawn("rect", {
      x: i * barWidth, y: 0, width: barWidth, height: CELL.height,
      class: number < 0 ? "fbt-negative" : "fbt-positive",
      "fill-opacity": Math.abs(number) / 100,
    })));
    cell.append(drawn("rect", { x: 0, y: 0, ...CELL, class: "fbt-frame" }));
    picture.append(cell);
    return { cell, moment: step * perStep + at };
  })).flat();
  const links = drawn("g", { class: "fbt-links" });
  picture.append(links);
  const description = element("p", { class: "fbt-words", "aria-live": "polite" });
  const frame = element("div", { class: "fbt-recurrence-picture" });
  frame.append(picture);
  root.append(controls, frame, description);

  function link(fromStep, fromRow, step, row, weight) {
    const [a, b] = [x(fromStep) + CELL.width / 2, x(step) + CELL.width / 2];
    const isDown = fromRow < row;
    const start = isDown ? y(fromRow) + CELL.height : y(fromRow);
    const end = isDown ? y(row) : y(row) + CELL.height;
    const middle = (start + end) / 2;
    links.append(drawn("path", {
      d: `M${a} ${start} C${a} ${middle} ${b} ${middle} ${b} ${end}`,
      "stroke-width": 0.8 + 4 * weight,
    }));
  }

  function draw() {
    const moment = value();
    const [step, stage] = [Math.floor(moment / perStep), moment % perStep];
    slider.value = moment;
    output.textContent = `${moment + 1} of ${last + 1}`;
    [back.disabled, next.disabled] = [moment === 0, moment === last];
    for (const { cell, moment: own } of cells) {
      const current = own === moment ? "fbt-now" : "";
      cell.setAttribute("class", own > moment ? "fbt-not-yet" : current);
    }
    links.replaceChildren();
    description.textContent = drawLinks(step, stage);
    slider.setAttribute("aria-valuetext", description.textContent);
    picture.setAttribute("aria-label",
      `The vectors of ${steps} steps: keys and values, memories, layers, embeddings. `
      + description.textContent);
  }

  // Draw links to the vectors this moment reads, and return a description of it.
  function drawLinks(step, stage) {
    const here = `Step ${step + 1}, “${shown(tokens[step])}”`;
    if (stage === 0) {
      return `${here}: its embedding arrives, ${width} numbers `
        + `(the first ${outputs[0][0].length} are shown).`;
    }
    if (stage <= layers) {
      const row = layerRow(stage);
      link(step, layerRow(stage - 1), step, row, 0.4);
      const shares = weights[stage - 1][step].slice(0, step).map((w) => w / 1000);
      shares.forEach((share, past) => link(past, 1, step, row, share));
      if (!step) {
        return `${here}: layer ${stage}. `
          + "There is no memory yet, so it skips attention.";
      }
      const reads = shares.map((share, past) => `step ${past + 1} ${percent(share)}`);
      return `${here}: layer ${stage} attends to the keys and values of all earlier `
        + `steps: ${list(reads)}.`;
    }
    if (stage === layers + 1) {
      mixture.forEach((share, layer) => link(step, layerRow(layer), step, 2, share));
      const shares = mixture.map((share, layer) =>
        `${percent(share)} of ${nameOf(layer)}`);
      return `${here}: the memory vector is mixed, ${list(shares)}.`;
    }
    for (const row of [0, 1]) link(step, 2, step, row, 0.4);
    const made = `${here}: its key and value are made from the memory`;
    return step === steps - 1
      ? `${made}. The next step would read them.`
      : `${made}, once for all layers. From here on every layer can reach them.`;
  }

  model.on?.("change:moment", draw);
  el.replaceChildren(root);
  draw();
}

export default { render };
