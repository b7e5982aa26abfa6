// The live model: it reads and writes in the page, in a worker made of WORKER.

const LIKELIEST = 6;
const READ_MOST = 3; // characters named in words
const MOST_SURPRISING = 5; // nats; more is not shaded darker
const LARGEST_GAIN = 2; // nats; more is not drawn longer
const LONGEST = 2000; // characters
const WRITES = 200; // characters
const DELAY = 35; // milliseconds between two written characters
const PIECE = 50; // characters of a row that are built, or shaded, in one frame
const LONG = 500; // characters; a longer text fills its box, and scrolls in it

function quoted(token) {
  return `“${shown(token)}”`;
}

function nats(value) {
  return value.toFixed(2);
}

function mean(values) {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

function labelled(text, ...controls) {
  const label = element("label", {}, `${text} `);
  label.append(...controls);
  return label;
}

// A list of bars with names before and shares after them.
function bars(label) {
  const list = element("ol", { class: "fbt-bars", "aria-label": label });
  return {
    list,
    show(items) {
      list.replaceChildren(...items.map(({ name, share, others = [], mark }) => {
        const item = element("li", mark ? { class: "fbt-marked" } : {});
        const drawnBars = element("span", { class: "fbt-lengths", "aria-hidden": true });
        for (const length of [share, ...others]) {
          const bar = element("span");
          bar.style.setProperty("--share", Math.max(0, length));
          drawnBars.append(bar);
        }
        const numbers = [share, ...others].map(percentOf).join(" · ");
        item.append(element("span", {}, name), drawnBars, element("span", {}, numbers));
        return item;
      }));
    },
  };
}

function percentOf(share) {
  if (Math.abs(share) < 0.005) return "<1 %";
  return `${Math.round(100 * share)} %`.replace("-", "−");
}

function render({ model, el }) {
  const data = model.get("data");
  const vocabulary = [...data.vocabulary];
  const ids = new Map(vocabulary.map((character, id) => [character, id]));
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const state = {
    text: [...data.start.text], // what the models read
    chosen: null, // a step, or null to follow the end of the text
    hovered: -1,
    round: 0,
    writing: false,
    follows: false, // whether the rows scroll to their ends
    wanted: null, // "write" or "step", until the model is there
    look: { step: [...data.start.text].length - 1, seen: data.start.seen },
  };
  const written = []; // characters that are not shown yet
  const updateSoon = perFrame(update);
  let worker = null;
  let weigher = null; // a second worker, while it is of use
  const packed = []; // the weights of the loaded models

  const root = element("div", { class: "fbt-view-root fbt-live" });

  // The text field, and what is done with it.
  const field = element("textarea", {
    rows: 3, maxlength: LONGEST, spellcheck: false, autocapitalize: "off",
    autocomplete: "off",
  });
  field.value = data.start.text;
  const hint = element("p", { class: "fbt-hint" });
  const buttons = Object.fromEntries(
    [["load", ""], ["write", "Write on"], ["step", "One character"]]
      .map(([name, text]) => [name, element("button", { type: "button" }, text)]));
  const temperature = element("input", {
    type: "range", min: 0, max: 1.5, step: 0.1, value: 0.8,
  });
  const heat = element("output", {}, "0.8");
  const topK = element("select");
  for (const k of [0, 1, 3, 5, 10, 20].filter((k) => k < vocabulary.length)) {
    topK.append(element("option", { value: k }, k ? `${k} likeliest` : "all"));
  }
  const seed = element("input", { type: "number", min: 0, max: 9999, value: 1 });
  const controls = element("div", { class: "fbt-controls" });
  controls.append(
    buttons.load, buttons.write, buttons.step,
    labelled("temperature", temperature, " ", heat),
    labelled("draw from", topK), labelled("seed", seed));
  const status = element("p", { class: "fbt-status", role: "status" });
  root.append(hint, labelled("Your text (Ctrl+Enter writes on, Escape pauses)", field),
    controls, status);

  // A row of the text for each model, and one for the difference.
  const rows = data.models.map(({ name }, index) => row(
    `${name}: the text, one character per option`,
    index ? name : `${name}, darker where it was surprised`, {
      values: () => rows[index].surprises,
      look: (surprise) => ["--surprise", surprise / MOST_SURPRISING],
      summary: (surprises) => `${nats(mean(surprises))} nats per character`,
    }));
  const difference = data.models.length > 1 && row(
    "The difference, one character per option",
    "which of the two gave the character a higher chance", {
      values: gainsOf,
      look: (gain) => [gain < 0 ? "--behind" : "--ahead", Math.abs(gain) / LARGEST_GAIN],
      summary: (gains) => {
        const total = gains.reduce((a, b) => a + b, 0);
        return `${data.models[total < 0 ? 1 : 0].name} is ahead by `
          + `${nats(Math.abs(total))} nats over ${gains.length} characters`;
      },
    });
  const twin = element("button", { type: "button", class: "fbt-twin" });
  const all = () => [...rows, ...(difference ? [difference] : [])];

  // `values` has a number for each character that the row is about, `look` a style
  // property and its size from 0 to 1, and `summary` words for the numbers.
  function row(label, title, { values, look, summary }) {
    const section = element("section");
    const name = element("p", { class: "fbt-name" }, title);
    const measure = element("span", { class: "fbt-measure" });
    name.append(" ", measure);
    const made = characters([], label, {
      chosen: () => shownStep(),
      choose: (step) => choose(step),
      hover: (step) => {
        if (shows.value === "gradient") return; // which takes a second
        state.hovered = step;
        ask();
      },
    });
    section.append(name, made.list);
    return {
      ...made, section, measure, values, look, summary,
      surprises: [], isLoaded: false, marked: [],
      shaded: 0, // how many characters are
    };
  }

  rows[0].surprises = data.start.surprises;
  root.append(rows[0].section);
  if (difference) {
    const more = element("div", { class: "fbt-controls" });
    more.append(twin);
    root.append(more, rows[1].section, difference.section);
  }
  const hasTwin = () => Boolean(difference) && rows[1].isLoaded;

  // For fingers, which are wider than a character.
  const walk = element("div", { class: "fbt-controls fbt-walk" });
  for (const [by, text] of [[-1, "◂ previous character"], [1, "next character ▸"]]) {
    const button = element("button", { type: "button" }, text);
    button.addEventListener("click", () => {
      const step = shownStep() + by;
      if (step >= 0 && step < state.text.length) choose(step);
    });
    walk.append(button);
  }
  root.append(walk);

  // What the models saw at the chosen character.
  const panels = element("div", { class: "fbt-panels" });
  const next = bars("The likeliest next characters");
  const shares = data.mixture && bars("Shares of the layers in the memory vector");
  shares?.list.classList.add("fbt-layers");
  const [layer, head] = [["layer", data.layers], ["head", data.heads]].map(
    ([name, count]) => {
      const list = element("select");
      list.append(element("option", { value: -1 }, "mean of all"));
      for (let i = 0; i < count; i++) {
        list.append(element("option", { value: i }, String(i + 1)));
      }
      list.addEventListener("change", ask);
      return list;
    });
  const attention = element("div", { class: "fbt-controls" });
  attention.append(labelled("layer", layer), labelled("head", head));
  const shows = element("select");
  for (const [value, text] of [["attention", "what it attends to"],
    ["gradient", "what its guess depends on"]]) {
    shows.append(element("option", { value }, text));
  }
  const below = element("div", { class: "fbt-controls" });
  below.append(labelled("bars below the text", shows));
  const reads = element("p", { class: "fbt-words" });
  panel("What comes next", next.list);
  if (shares) {
    const mixture = data.mixture.map((share) => percentOf(share)).join(", ");
    panel("What its memory is made of", shares.list, element("p", { class: "fbt-words" },
      `The shares of this step's memory vector. The mixture w of all steps: ${mixture}.`));
  }
  panel("What it reads", ...(data.weighed ? [below] : []), attention, reads);
  root.append(panels);
  const description = element("p", { class: "fbt-words", "aria-live": "polite" });
  root.append(description);

  function panel(title, ...parts) {
    const section = element("section");
    section.append(element("p", { class: "fbt-name" }, title), ...parts);
    panels.append(section);
  }

  // --- Loading ---------------------------------------------------------------------

  function load(index) {
    if (!worker) {
      worker = startWorker(WORKER);
      worker.onmessage = ({ data: message }) => answers[message.kind](message);
      worker.onerror = ({ message }) => answers.failed({ message });
    }
    const asked = index ? twin : buttons.load;
    asked.disabled = true;
    say("Loading the model …");
    weightsOf(data.models[index]).then((weights) => {
      remember("yes");
      packed[index] = weights;
      worker.postMessage({ kind: "load", index, packed: weights });
    }).catch((error) => {
      asked.disabled = false;
      say(`The model could not be loaded: ${error.message}.`);
    });
  }

  const answers = {
    loaded({ index }) {
      rows[index].isLoaded = true;
      if (!index) {
        buttons.load.remove();
        read();
      }
      arrange();
      updateSoon();
      say("");
      if (state.wanted) write(state.wanted);
      state.wanted = null;
    },
    read({ round, index, from, surprises }) {
      if (round !== state.round) return;
      const end = from + surprises.length;
      rows[index].surprises.splice(from, Infinity, ...surprises);
      for (const each of all()) each.shaded = Math.min(each.shaded, from);
      updateSoon();
      if (shownStep() >= from && shownStep() < end) ask();
      if (!state.writing) say("");
    },
    wrote({ round, token }) {
      if (round !== state.round) return;
      written.push(vocabulary[token]);
      if (!isCalm) append();
    },
    done() {
      state.writing = false;
      append();
      say("");
      arrange();
      if (state.look) draw();
    },
    look({ round, step, seen }) {
      if (round !== state.round || step !== shownStep() || !seen[0]) return;
      state.look = { step, seen };
      draw();
    },
    failed({ message }) {
      say(`The model stopped: ${message}.`);
    },
  };

  // --- Reading and writing ---------------------------------------------------------

  // Show what was written: for readers who prefer less motion, all of it at once.
  function append() {
    state.text.push(...written);
    field.value += written.join("");
    written.length = 0;
    state.follows = true;
    updateSoon();
    ask();
  }

  // Read what is in the text field; characters without an id are named.
  function read() {
    const typed = [...field.value];
    const known = typed.filter((character) => ids.has(character));
    const unknown = [...new Set(typed.filter((character) => !ids.has(character)))];
    const before = state.text;
    state.text = known;
    state.chosen = null;
    state.look = null;
    endReach();
    state.writing = false;
    state.follows = false;
    written.length = 0;
    state.round++;
    const change = known.findIndex((character, t) => character !== before[t]);
    const same = change < 0 ? known.length : change;
    for (const each of all()) {
      each.truncate(same);
      each.surprises.length = Math.min(each.surprises.length, same);
      each.shaded = Math.min(each.shaded, same);
      clearReads(each);
    }
    updateSoon();
    left(unknown);
    worker?.postMessage({
      kind: "read", round: state.round, text: known.map((c) => ids.get(c)),
    });
    if (!known.length) clear("Type something, and the model reads it.");
    else if (!rows[0].isLoaded) clear("Load the model, and it reads your text.");
    arrange();
  }

  function left(unknown) {
    const names = unknown.slice(0, 8).map(quoted).join(", ");
    missing.textContent = unknown.length
      ? `Not read: ${names}${unknown.length > 8 ? " and others" : ""}. The model knows `
        + `${vocabulary.length} characters, and these are not among them.`
      : "";
  }
  const missing = element("p", { class: "fbt-missing", role: "status" });
  status.after(missing);

  function write(how) {
    if (state.writing) {
      worker.postMessage({ kind: "pause" });
      return;
    }
    if (!rows[0].isLoaded) {
      state.wanted = how;
      load(0);
      return;
    }
    const space = LONGEST - state.text.length;
    if (!state.text.length || space < 1) return;
    state.writing = true;
    state.chosen = null;
    if (isCalm) say("Writing …");
    worker.postMessage({
      kind: "write",
      count: how === "step" ? 1 : Math.min(WRITES, space),
      temperature: Number(temperature.value),
      topK: Number(topK.value) || vocabulary.length,
      seed: Math.trunc(Number(seed.value)) || 0,
      delay: isCalm ? 0 : DELAY,
    });
    arrange();
  }

  // --- Showing -----------------------------------------------------------------------

  function say(text) {
    const isFull = state.text.length >= LONGEST;
    status.textContent = text || (isFull ? `The text is full: ${LONGEST} characters.` : "");
  }

  function shownStep() {
    if (state.hovered >= 0) return state.hovered;
    return state.chosen ?? state.text.length - 1;
  }

  function choose(step) {
    state.hovered = -1;
    state.chosen = step === state.text.length - 1 ? null : step;
    mark();
    ask();
  }

  function ask() {
    mark();
    if (!rows[0].isLoaded) return;
    const [l, h] = attention.hidden ? [-1, -1] : [layer, head].map(({ value }) => value);
    worker.postMessage({
      kind: "look", step: shownStep(), layer: Number(l), head: Number(h),
    });
  }

  // Outline the selected character.
  function mark() {
    const step = shownStep();
    if (step >= 0) all().forEach((each) => select(each, step));
  }

  // Bring the rows up to the text and what is known of it: a piece in each frame, so
  // that a long text does not block the page.
  function update() {
    const { text, follows } = state;
    const seen = hasTwin() ? all() : [rows[0]];
    const values = seen.map((each) => each.values());
    seen.forEach((each, i) => {
      const { spans, append, look, summary, measure, list } = each;
      const length = Math.min(text.length, spans.length + PIECE);
      while (spans.length < length) append(text[spans.length]);
      const known = values[i].slice(1);
      measure.textContent = known.length ? summary(known) : "";
      const end = Math.min(length, values[i].length, each.shaded + PIECE);
      for (; each.shaded < end; each.shaded++) {
        const [property, size] = look(values[i][each.shaded] ?? 0);
        spans[each.shaded].style.setProperty(property, Math.min(1, size).toFixed(3));
      }
      list.classList.toggle("fbt-long", length > LONG);
      if (follows) list.scrollTop = list.scrollHeight;
    });
    if (follows) field.scrollTop = field.scrollHeight;
    const isBehind = seen.some(({ spans, shaded }, i) =>
      spans.length < text.length || shaded < Math.min(text.length, values[i].length));
    if (isBehind) updateSoon();
    else if (state.look) draw();
    mark();
  }

  // log p of the model - log p of its twin, for the characters that both have read.
  function gainsOf() {
    const [own, others] = rows.map(({ surprises }) => surprises);
    return own.slice(0, others.length).map((nat, t) => (nat === null ? 0 : others[t] - nat));
  }

  // Show what the models saw at the selected character.
  function draw() {
    const { step, seen } = state.look;
    const { chances, shares: made } = seen[0];
    const likely = [...chances.keys()]
      .sort((a, b) => chances[b] - chances[a]).slice(0, LIKELIEST);
    next.show(likely.map((token) => ({
      name: shown(vocabulary[token]), share: chances[token],
      others: seen[1] ? [seen[1].chances[token]] : [],
      mark: vocabulary[token] === state.text[step + 1],
    })));
    if (made) {
      shares?.show([...made].map((share, l) => ({
        name: l ? `layer ${l}` : "embedding", share,
      })));
    }
    if (shows.value === "gradient") {
      showReach(step);
    } else {
      seen.forEach((each, index) => each && underline(rows[index], step, each));
      reads.textContent = `${readsOf(step, seen[0])} The bars below the text show it.`;
    }
    if (!state.writing) describe();
  }

  // Draw bars below the characters that a step attends to.
  function underline(each, step, { weights, own }) {
    clearReads(each);
    const first = step + own - weights.length;
    each.marked = [...weights.keys()].map((j) => first + j);
    each.marked.forEach((t, j) =>
      each.spans[t]?.style.setProperty("--read", Math.sqrt(weights[j]).toFixed(3)));
  }

  // --- Reach by gradient -----------------------------------------------------------

  // Show how much each character matters for the guess after a step, once a worker has
  // computed it. `state.reach` is the latest question, and its answer.
  function showReach(step) {
    const next = state.text[step + 1];
    const { chances } = state.look.seen[0];
    const target = next === undefined
      ? chances.indexOf(Math.max(...chances)) : ids.get(next);
    const first = Math.max(0, step + 1 - data.weighed);
    const tokens = state.text.slice(first, step + 1).map((c) => ids.get(c));
    const models = hasTwin() ? 2 : 1;
    const question = [target, models, step, ...tokens].join();
    if (state.reach?.question === question) {
      if (state.reach.sizes) drawReach();
      return;
    }
    endReach();
    reads.textContent = state.writing
      ? "The gradient is computed when the text is written." : "Computing the gradient …";
    if (state.writing) return;
    state.reach = { question, step, target, first };
    const heard = {
      weighing({ done }) {
        reads.textContent = `Computing the gradient: ${percent(done)}.`;
      },
      weighed({ sizes }) {
        state.reach.sizes = sizes;
        weigher.terminate();
        weigher = null;
        drawReach();
      },
      failed: answers.failed,
    };
    state.reach.timer = setTimeout(() => { // once the reader has stopped moving
      weigher = startWorker(WORKER);
      weigher.onmessage = ({ data: message }) => heard[message.kind](message);
      weigher.onerror = ({ message }) => answers.failed({ message });
      const given = packed.slice(0, models);
      weigher.postMessage({ kind: "weigh", packed: given, tokens, target });
    }, 200);
  }

  // End the computation, if there is one, and remove its bars.
  function endReach() {
    clearTimeout(state.reach?.timer);
    weigher?.terminate();
    weigher = null;
    state.reach = null;
    rows.forEach(clearReads);
  }

  function drawReach() {
    const { step, target, first, sizes } = state.reach;
    const parts = sizes.map((values) => {
      const most = Math.max(...values);
      return values.map((value) => value / most);
    });
    parts.forEach((weights, index) => underline(rows[index], step, { weights, own: 1 }));
    const onAverage = (weights) => {
      const [own, total] = [weights.length - 1, weights.reduce((a, b) => a + b, 0)];
      const sum = weights.reduce((all, weight, j) => all + weight * (own - j), 0);
      return (sum / total).toFixed(1);
    };
    // Attention of all layers and heads lies this far back.
    const looks = state.look.seen[0];
    const read = Float32Array.from([...looks.weights, ...(looks.own ? [] : [0])]);
    const others = parts[1] ? `, ${data.models[1].name} ${onAverage(parts[1])}` : "";
    reads.textContent = `How much log p(${quoted(vocabulary[target])}) depends on each `
      + `character: the size of its gradient, through all layers and memories; a bar is `
      + `relative to the largest. It reaches ${onAverage(parts[0])} characters back on average${others}`
      + `${read.length > 1 ? `; one look of its attention ${onAverage(read)}` : ""}.`
      + (first ? ` It goes back ${data.weighed} characters, which are read anew.` : "");
  }

  function clearReads({ spans, marked }) {
    for (const t of marked) spans[t]?.style.removeProperty("--read");
  }

  function readsOf(step, { weights, own }) {
    if (!weights.length) return "Nothing yet: there is no memory.";
    const most = [...weights.keys()]
      .sort((a, b) => weights[b] - weights[a]).slice(0, READ_MOST)
      .map((j) => {
        const back = weights.length - own - j;
        const where = back ? `${back} back` : "itself";
        const token = state.text[step - back];
        return `${quoted(token)} ${where}, ${percent(weights[j])}`;
      });
    return `Most at ${most.join("; ")}.`;
  }

  function describe() {
    if (!state.look) return;
    const { step, seen } = state.look;
    const surprise = rows[0].surprises[step];
    const best = seen[0].chances.indexOf(Math.max(...seen[0].chances));
    const gain = hasTwin() && gainsOf()[step];
    description.textContent = [
      `Character ${step + 1} of ${state.text.length}, ${quoted(state.text[step])}:`,
      surprise === null || surprise === undefined
        ? "nothing came before it, so there was no guess."
        : `the model gave it ${percent(Math.exp(-surprise))}, a surprise of `
          + `${nats(surprise)} nats.`,
      gain ? `Its twin gave it ${percent(Math.exp(-rows[1].surprises[step]))}.` : "",
      `It expects ${quoted(vocabulary[best])} next, `
        + `${percent(seen[0].chances[best])}.`,
    ].filter(Boolean).join(" ");
  }

  function clear(what) {
    next.show([]);
    shares?.show([]);
    reads.textContent = "";
    description.textContent = what;
  }

  function arrange() {
    const isReady = rows[0].isLoaded;
    root.classList.toggle("fbt-ready", isReady);
    const isFull = state.text.length >= LONGEST;
    const cannot = isReady && !state.writing && (!state.text.length || isFull);
    buttons.write.textContent = state.writing ? "Pause" : "Write on";
    buttons.write.hidden = !isReady;
    buttons.step.hidden = !isReady;
    // A disabled button would lose the focus.
    buttons.write.setAttribute("aria-disabled", cannot);
    buttons.step.setAttribute("aria-disabled", cannot || state.writing);
    if (!difference) return;
    twin.hidden = !isReady || hasTwin();
    for (const { section } of [rows[1], difference]) section.hidden = !hasTwin();
  }

  // --- Events ------------------------------------------------------------------------

  field.addEventListener("input", read);
  shows.addEventListener("change", () => {
    attention.hidden = shows.value === "gradient";
    endReach();
    if (!rows[0].isLoaded && !buttons.load.disabled) load(0);
    ask();
  });
  buttons.load.addEventListener("click", () => load(0));
  twin.addEventListener("click", () => load(1));
  buttons.write.addEventListener("click", () => write("write"));
  buttons.step.addEventListener("click", () => state.writing || write("step"));
  temperature.addEventListener("input", () => {
    heat.textContent = Number(temperature.value).toFixed(1);
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey) write("write");
    if (event.key === "Escape" && state.writing) write("write");
  });

  const [first, second] = data.models;
  buttons.load.textContent = first.size
    ? `Load the model (${megabytes(first.size)})` : "Start the model";
  if (second) {
    twin.textContent = `Compare with ${second.name}`
      + (second.size ? ` (${megabytes(second.size)})` : "");
  }
  hint.textContent = "Try this first: type the beginning of a line, and let the model "
    + "write on.";
  el.replaceChildren(root);
  update();
  arrange();
  if (first.packed || remember()) load(0);
}

export default { render };
