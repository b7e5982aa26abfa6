// The recurrence, one vector at a time: embedding, layers, memory, key and value of
// each step.

const SIZE = { width: 60, height: 34 }; // of a cell of the drawing behind the strips
const STRIP = { start: 6, width: 48, height: 16 };
const LINE = 10; // pixels of a line that carries all attention
const MOMENT = 900; // milliseconds

function list(items) {
  if (items.length < 2) return items.join("");
  return `${items.slice(0, -1).join(", ")} and ${items.at(-1)}`;
}

// A vector as a strip: a bar per number, orange above zero and blue below.
function strip(numbers, largest) {
  const picture = drawn("svg", {
    viewBox: `0 0 ${numbers.length} 1`, preserveAspectRatio: "none",
    "aria-hidden": "true", class: "fbt-strip",
  });
  numbers.forEach((number, i) => picture.append(drawn("rect", {
    x: i, y: 0, width: 1, height: 1,
    class: number < 0 ? "fbt-negative" : "fbt-positive",
    "fill-opacity": (Math.abs(number) / (largest || 1)).toFixed(3),
  })));
  return picture;
}

// The loop on one text.
function show(data, model) {
  const { tokens, width, mixture, outputs, memory, keys, values, weights } = data;
  const [steps, layers] = [tokens.length, outputs.length - 1];
  const perStep = layers + 3; // moments per step
  const last = steps * perStep - 1;
  const value = (name) => model.get(name);
  function choose(changes) {
    for (const [name, chosen] of Object.entries(changes)) model.set(name, chosen);
    model.save_changes();
    draw();
  }
  const goTo = (moment) => choose({ moment: Math.min(last, Math.max(0, moment)) });

  const root = element("div");
  const controls = element("div", { class: "fbt-controls" });
  const back = element("button", { type: "button" }, "◀ back");
  const next = element("button", { type: "button" }, "next ▶");
  for (const [button, by] of [[back, -1], [next, 1]]) {
    button.addEventListener("click", () => {
      play.stop();
      goTo(value("moment") + by);
    });
  }
  const play = player("moment", MOMENT, () => {
    goTo(value("moment") === last ? 0 : value("moment") + 1);
    return value("moment") < last;
  });
  const label = element("label", {}, "moment ");
  const slider = element("input", { type: "range", min: 0, max: last, step: 1 });
  const output = element("output");
  slider.addEventListener("input", () => {
    play.stop();
    goTo(Number(slider.value));
  });
  label.append(slider, " ", output);
  controls.append(back, next, ...(play.isStill ? [] : [play.button]), label);

  // Rows from the top: value, key, memory, layers from the highest, embedding.
  const layerRows = outputs.map((vectors, layer) =>
    ({ name: layer ? `layer ${layer}` : "embedding", vectors, at: layer }));
  const rows = [
    { name: "value V", vectors: values, at: perStep - 1 },
    { name: "key K", vectors: keys, at: perStep - 1 },
    { name: "memory m", vectors: memory, at: perStep - 2 },
    ...layerRows.reverse(),
  ];
  const layerRow = (layer) => rows.length - 1 - layer;
  const table = cellGrid(
    "Vectors, a row per kind and a column per step", rows.map(({ name }) => name),
    tokens.map(shown), SIZE, {
      chosen: () => (value("cell") < 0 ? [2, 0] : place(value("cell"))),
      choose: (row, step) => choose({ cell: row * steps + step }),
      hover: () => {},
    });
  table.root.querySelector("[role=columnheader]").textContent = "text";
  rows.forEach(({ vectors }, row) => {
    const largest = Math.max(...vectors.flat().map(Math.abs));
    vectors.forEach((numbers, step) =>
      table.cells[row][step].append(strip(numbers, largest)));
  });

  // Ribbons run behind the strips: a mask leaves out those that are computed.
  const mask = drawn("mask", { id: uniqueId(), maskUnits: "userSpaceOnUse" });
  const all = { x: 0, y: 0, width: "100%", height: "100%" };
  const backdrop = drawn("rect", { ...all, fill: "white" });
  const ribbons = drawn("g", { mask: `url(#${mask.id})` });
  table.behind.append(mask, ribbons);

  const words = element("p", { class: "fbt-words", "aria-live": "polite" });
  const room = element("div", { class: "fbt-room" });
  room.append(words, ...Array.from({ length: last + 1 }, (_, moment) => {
    const text = drawRibbons(Math.floor(moment / perStep), moment % perStep);
    const attributes = { class: "fbt-sizer fbt-words", "aria-hidden": "true" };
    return element("p", attributes, text);
  }));
  const numbers = element("p", { class: "fbt-numbers", "aria-live": "polite" });
  root.append(controls, room, table.root, numbers);

  function place(cell) {
    return [Math.floor(cell / steps), cell % steps];
  }
  function left(step) {
    return step * SIZE.width + STRIP.start;
  }
  function top(row) {
    return row * SIZE.height + (SIZE.height - STRIP.height) / 2;
  }

  // A ribbon straight up, over a part of the width of the strips.
  function ribbon(step, fromRow, row, start, share, name) {
    const y = top(row) + STRIP.height;
    ribbons.append(drawn("rect", {
      x: left(step) + STRIP.width * start, y, height: top(fromRow) - y,
      width: STRIP.width * share, class: `fbt-ribbon ${name}`,
    }));
  }

  // A line from the key of an earlier step down to a layer.
  function line(past, step, row, share) {
    const [a, b] = [past, step].map((s) => left(s) + STRIP.width / 2);
    const [start, end] = [top(1) + STRIP.height, top(row)];
    const middle = start + (SIZE.height - STRIP.height) / 2;
    ribbons.append(drawn("path", {
      d: `M${a} ${start} C${a} ${middle + 12} ${b} ${middle} ${b} ${end}`,
      "stroke-width": 0.6 + LINE * share, class: "fbt-line",
    }));
  }

  function draw() {
    const moment = value("moment");
    const [step, stage] = [Math.floor(moment / perStep), moment % perStep];
    slider.value = moment;
    output.textContent = `${moment + 1} of ${last + 1}`;
    back.setAttribute("aria-disabled", moment === 0);
    next.setAttribute("aria-disabled", moment === last);
    words.setAttribute("aria-live", play.isPlaying() ? "off" : "polite");
    ribbons.replaceChildren();
    mask.replaceChildren(backdrop);
    words.textContent = drawRibbons(step, stage);
    slider.setAttribute("aria-valuetext", words.textContent);
    rows.forEach(({ name, at, vectors }, row) => vectors.forEach((_, column) => {
      const cell = table.cells[row][column];
      const own = column * perStep + at;
      const look = own > moment ? "not yet" : "done";
      if (own <= moment) {
        mask.append(drawn("rect", {
          x: left(column), y: top(row), width: STRIP.width, height: STRIP.height,
        }));
      }
      cell.setAttribute("data-look", own === moment ? "now" : look);
      cell.setAttribute("aria-label",
        `${name} of step ${column + 1}, “${shown(tokens[column])}”: `
        + `${own === moment ? "computed now" : look}`);
    }));
    const [row, column] = value("cell") < 0 ? [2, 0] : place(value("cell"));
    table.mark(row, column, value("cell") >= 0);
    numbers.textContent = value("cell") < 0
      ? "No cell is chosen." : describe(row, column);
  }

  function describe(row, column) {
    const { name, vectors, at } = rows[row];
    const whose = `${name} of step ${column + 1}, “${shown(tokens[column])}”`;
    if (column * perStep + at > value("moment")) return `${whose}: not computed yet.`;
    const texts = vectors[column].map((number) =>
      number.toFixed(2).replace("-", "−").replace(/^−(0.00)$/, "$1"));
    const rest = width > texts.length ? ` (the first of ${width})` : "";
    return `${whose}${rest}: ${texts.join(", ")}.`;
  }

  // Draw what this moment reads, and return a description of it.
  function drawRibbons(step, stage) {
    const here = `Step ${step + 1}, “${shown(tokens[step])}”`;
    if (stage === 0) {
      return `${here}: its embedding arrives, ${width} numbers `
        + `(the first ${outputs[0][0].length} are shown).`;
    }
    if (stage <= layers) {
      const row = layerRow(stage);
      ribbon(step, row + 1, row, 0.35, 0.3, "fbt-plain");
      const shares = weights[stage - 1][step].slice(0, step).map((w) => w / 1000);
      shares.forEach((share, past) => line(past, step, row, share));
      if (!step) {
        return `${here}: layer ${stage}. `
          + "There is no memory yet, so it skips attention.";
      }
      const reads = shares.map((share, past) => `step ${past + 1} ${percent(share)}`);
      return `${here}: layer ${stage} attends to the keys and values of all earlier `
        + `steps: ${list(reads)}.`;
    }
    if (stage === layers + 1) {
      let start = 0;
      mixture.forEach((share, layer) => {
        ribbon(step, layerRow(layer), 2, start, share, `fbt-part-${layer % 5}`);
        start += share;
      });
      const shares = mixture.map((share, layer) =>
        `${percent(share)} of ${nameOf(layer)}`);
      return `${here}: the memory vector is mixed, ${list(shares)}. `
        + "A ribbon is as wide as its share.";
    }
    ribbon(step, 2, 1, 0.05, 0.4, "fbt-plain");
    ribbon(step, 2, 0, 0.55, 0.4, "fbt-plain");
    const made = `${here}: its key and value are made from the memory`;
    return step === steps - 1
      ? `${made}. The next step would read them.`
      : `${made}, once for all layers. From here on every layer can reach them.`;
  }

  draw();
  return { root, draw, stop: play.stop };
}

// A field for the reader's own text, which `read` gets as token ids.
function textField({ vocabulary, longest, size }, read) {
  const ids = new Map([...vocabulary].map((character, id) => [character, id]));
  const form = element("form", { class: "fbt-controls" });
  const label = element("label", {}, `your own text, up to ${longest} characters `);
  const field = element("input", {
    type: "text", maxlength: longest, size: longest, spellcheck: false,
    autocapitalize: "off", autocomplete: "off",
  });
  const isFar = size && !remember();
  const name = isFar ? `load the model (${megabytes(size)})` : "read it";
  const button = element("button", { type: "submit" }, name);
  const status = element("output", { class: "fbt-status" });
  label.append(field);
  form.append(label, button, status);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = [...field.value];
    const unknown = [...new Set(text.filter((character) => !ids.has(character)))];
    if (unknown.length) {
      status.textContent = `The model does not know ${list(unknown.map(shown))}.`;
    } else if (text.length) {
      status.textContent = "Reading ...";
      read(text, text.map((character) => ids.get(character)));
    }
  });
  return {
    form,
    say(text) {
      status.textContent = text;
      button.textContent = "read it";
    },
  };
}

function render({ model, el }) {
  const data = model.get("data");
  const root = element("div", { class: "fbt-view-root fbt-recurrence" });
  root.append(element("p", { class: "fbt-hint" },
    "Try this first: press play, or pull the slider. Then choose any cell to see its "
    + "numbers."));
  let now = show(data, model);
  let worker;

  // Compute the loop on a text in a worker, which gets the weights once.
  async function read(field, text, tokens) {
    try {
      const packed = worker ? undefined : await weightsOf(data.model);
      remember("yes");
      worker ??= startWorker(WORKER);
      worker.onmessage = ({ data: values }) => {
        now.stop();
        model.set("moment", 0);
        model.set("cell", -1);
        model.save_changes();
        const { root: old } = now;
        now = show({ ...data, ...values, tokens: text }, model);
        old.replaceWith(now.root);
        field.say("");
      };
      worker.onerror = ({ message }) =>
        field.say(`The text was not read: ${message}`);
      worker.postMessage({ packed, tokens, count: data.outputs[0][0].length });
    } catch (error) {
      field.say(`The model was not loaded: ${error.message}`);
    }
  }
  if (data.model) {
    const field = textField(data.model, (text, tokens) => read(field, text, tokens));
    root.append(field.form);
  }
  root.append(now.root);
  for (const name of ["moment", "cell"]) {
    model.on?.(`change:${name}`, () => now.draw());
  }
  el.replaceChildren(root);
}

export default { render };
