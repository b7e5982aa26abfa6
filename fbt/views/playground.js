// A playground: models that train in workers of the page, and what they have learned.

const TASKS = {
  cups: {
    title: "the five cups", unit: "swaps", longest: 8, updates: 400, rate: 0.005,
    answers: [..."ABCDE"], chance: 1 / 5, question: "names the right cup",
  },
  parity: {
    title: "parity of bits", unit: "bits", longest: 16, updates: 200, rate: 0.004,
    answers: ["0", "1"], chance: 1 / 2, question: "tells odd from even",
  },
  S3: {
    title: "shuffles of three", unit: "shuffles", longest: 8, updates: 400,
    rate: 0.004,
    answers: ["123", "132", "213", "231", "312", "321"], chance: 1 / 6,
    question: "names the right order",
  },
  copy: {
    title: "copying", unit: "symbols", longest: 8, updates: 600, rate: 0.004,
    answers: [..."abcdefgh"], chance: 1 / 8, question: "repeats the right symbols",
    whole: true, // answers come after the end, so a shorter test is another one
  },
};
const TESTED = [4, 8, 12, 16, 24, 32, 48, 64, 96, 128];
const SEEDS = [1, 2, 3];
const RATES = [0.001, 0.002, 0.004, 0.005, 0.01, 0.02];
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a8a8a"];
// The dashes of the book's figures.
const DASHES = { feedback: [6, 3], parallel: [], LSTM: [2, 2] };
const GAMES = 12; // rows of a grid
const ROW = 8; // height of a row, in CSS pixels
const FOOT = 20; // height of what is below a grid
const LEARNED = 0.95;

function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function selection(name, options, chosen, change) {
  const select = element("select");
  select.append(...options.map(([value, text]) =>
    element("option", { value }, text)));
  select.value = chosen;
  select.addEventListener("change", () => change(select.value));
  const label = element("label", {}, `${name} `);
  label.append(select);
  return { label, select };
}

function button(text, press) {
  const made = element("button", { type: "button" }, text);
  made.addEventListener("click", press);
  return made;
}

function ownColour(node) {
  return getComputedStyle(node).getPropertyValue("--fbt-own").trim();
}

// A canvas as wide as its box. `paint` gets a context in CSS pixels.
function picture(height, paint) {
  const canvas = element("canvas", { role: "img", "aria-label": "nothing yet" });
  canvas.style.height = `${height}px`;
  function draw() {
    const { clientWidth: width } = canvas;
    if (!width) return;
    const dots = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * dots)) {
      canvas.width = Math.round(width * dots);
      canvas.height = Math.round(height * dots);
    }
    const context = canvas.getContext("2d");
    context.setTransform(dots, 0, 0, dots, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    context.font = `12px ${style.fontFamily}`;
    paint(context, width, height, { ink: style.color, own: ownColour(canvas) });
  }
  return { canvas, draw };
}

// One model: its worker, its results and its part of the page.
class Player {
  constructor(kind, playground) {
    Object.assign(this, { kind, playground, depth: 1, run: 0, losses: [] });
    this.grid = picture(ROW * GAMES + FOOT, (...canvas) => this.paintGrid(...canvas));
    this.cloud = picture(150, (...canvas) => this.paintCloud(...canvas));
    this.state = element("p", { class: "fbt-note" });
    const name = element("p", { class: "fbt-player-name" });
    name.append(element("span", { class: "fbt-swatch", "aria-hidden": "true" }));
    if (kind === "parallel") {
      const depths = [1, 2, 3, 4].map((n) => [n, plural(n, "layer")]);
      const { label, select } = selection("parallel,", depths, 1, (value) => {
        this.depth = Number(value);
        this.create();
      });
      select.setAttribute("aria-label", "parallel, layers");
      name.append(label);
    } else {
      name.append(kind === "feedback" ? "feedback, 1 layer" : "LSTM");
    }
    const attributes = { class: `fbt-player fbt-${kind}`, "aria-label": kind };
    this.card = element("section", attributes);
    this.card.append(name, this.state, this.grid.canvas, this.cloud.canvas);
  }

  get name() {
    return this.kind === "parallel"
      ? `parallel attention of ${plural(this.depth, "layer")}` : this.kind;
  }

  send(message) {
    this.worker?.postMessage(message);
  }

  // Start a new model from the settings of the playground.
  create() {
    if (!this.worker) {
      try {
        this.worker = startWorker(WORKER);
      } catch {
        this.playground.fail();
        return;
      }
      this.worker.onmessage = ({ data }) => this.receive(data);
      this.worker.onerror = () => this.playground.fail();
    }
    const { settings, task, running } = this.playground;
    const variant = { feedback: "shared-kv", parallel: "parallel", LSTM: "lstm" };
    const model = {
      variant: variant[this.kind], n_layers: this.depth, span: settings.span,
      memory: settings.memory,
    };
    const rate = this.kind === "LSTM" ? 2 * settings.rate : settings.rate;
    this.run += 1;
    Object.assign(this, { losses: [], result: null, training: running, update: 0 });
    const { seed, longest } = settings;
    const options = { task: settings.task, seed, rate, longest, model };
    const { tested: length } = settings;
    this.send({ kind: "create", run: this.run, options, length, training: running });
    this.end = task.updates;
  }

  receive(data) {
    if (data.run !== this.run) return; // of a model before a reset
    const { playground } = this;
    this.losses.push(...data.losses);
    Object.assign(this, { update: data.update, end: data.end });
    // A report may be under way when the reader pauses.
    this.training = data.training && playground.running;
    if (data.shares) this.result = data;
    playground.heard(this);
  }

  // The share of right answers after so many steps of the last test.
  share(length) {
    const { shares } = this.result;
    if (this.playground.task.whole) {
      return shares.reduce((sum, share) => sum + share, 0) / shares.length;
    }
    return shares[Math.min(length, shares.length) - 1];
  }

  describe() {
    const { task: { unit, whole }, longest } = this.playground;
    if (!this.result) {
      this.state.textContent = "starting";
      return;
    }
    const { length } = this.result;
    const trained = whole ? length : Math.min(longest, length);
    const shares = [...new Set([trained, length])]
      .map((value) => `after ${value} ${unit} ${percent(this.share(value))}`);
    this.state.replaceChildren(
      `update ${this.update} of ${this.end}`, element("br"),
      `right ${shares.join(", ")}`);
    const result = `${this.name}: ${shares.join(", ")} right`;
    this.grid.canvas.setAttribute("aria-label", `${GAMES} games as rows. ${result}`);
    const points = this.kind === "feedback" ? "Memory vectors" : "Outputs";
    this.cloud.canvas.setAttribute("aria-label", `${points} as points. ${result}`);
  }

  paintGrid(context, width, height, { ink, own }) {
    if (!this.result) return;
    const { cells, length } = this.result;
    const columns = cells.length / GAMES;
    const size = [width / columns, ROW];
    const gap = Math.min(1, size[0] / 4);
    for (let game = 0; game < GAMES; game++) {
      for (let column = 0; column < columns; column++) {
        const [x, y] = [column * size[0], game * size[1]];
        const right = cells[game * columns + column];
        context.fillStyle = right ? own : ink;
        context.globalAlpha = right ? 1 : 0.4;
        if (right) context.fillRect(x, y, size[0] - gap, size[1] - 1);
        else context.fillRect(x + size[0] / 2 - 0.75, y + size[1] / 2 - 1, 1.5, 1.5);
      }
    }
    context.globalAlpha = 1;
    context.fillStyle = ink;
    const { longest: trained, task: { whole } } = this.playground;
    context.textBaseline = "bottom";
    if (trained < length && !whole) {
      const x = (trained * width) / length;
      context.fillRect(x - gap / 2 - 1, 0, 2, ROW * GAMES + 3);
      const half = context.measureText("training").width / 2;
      context.textAlign = "center";
      context.fillText("training", Math.max(half, x / 2), height);
    }
    context.textAlign = "right";
    context.fillText(String(length), width, height);
  }

  paintCloud(context, width, height, { ink, own }) {
    if (!this.result) return;
    const { cloud } = this.result;
    const { answers } = this.playground.task;
    // Fill the box with most points; those far out lie on its edge.
    const reach = (axis) => {
      const sizes = cloud.map((point) => Math.abs(point[axis])).sort((a, b) => a - b);
      return sizes[Math.floor(0.97 * (sizes.length - 1))] || 1;
    };
    const [wide, high] = [width / 2 - 8, height / 2 - 8];
    const [scaleX, scaleY] = [wide / reach(0), high / reach(1)];
    const inside = (value, limit) => Math.max(-limit, Math.min(limit, value));
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = context.font.replace("12px", "bold 11px");
    const plain = own === "CanvasText";
    for (const [x, y, label] of cloud) {
      context.fillStyle = plain || label < 0 ? ink : COLOURS[label % COLOURS.length];
      const px = width / 2 + inside(scaleX * x, wide);
      const py = height / 2 - inside(scaleY * y, high);
      if (label < 0) context.fillRect(px - 1, py - 1, 2, 2);
      else context.fillText(answers[label], px, py);
    }
  }

  draw() {
    this.describe();
    this.grid.draw();
    this.cloud.draw();
  }
}

class Room {
  constructor(root, { task, tested, lstm }) {
    this.root = root;
    this.running = false;
    this.settings = { task, seed: SEEDS[0], span: 64, memory: "learned" };
    this.tests = tested;
    Object.assign(this.settings, this.usual());
    this.players = Object.keys(DASHES).map((kind) => new Player(kind, this));
    this.hidden = new Set(lstm ? [] : ["LSTM"]);
    this.chart = picture(110, (...canvas) => this.paintChart(...canvas));
    this.words = element("p", { class: "fbt-words", "aria-live": "polite" });
    this.still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.drawn = 0;
    this.drawTime = 0;
    this.pending = new Set(); // parts to draw
    this.build();
  }

  get task() {
    return TASKS[this.settings.task];
  }

  get longest() {
    return this.settings.longest;
  }

  get shown() {
    return this.players.filter(({ kind }) => !this.hidden.has(kind));
  }

  // The settings that suit the task.
  usual() {
    const { rate, longest, whole } = TASKS[this.settings.task];
    return { rate, longest, tested: whole ? longest : this.tests };
  }

  build() {
    const { settings } = this;
    const set = (name) => (value) => {
      settings[name] = Number.isNaN(Number(value)) ? value : Number(value);
      this.reset();
    };
    this.trainButton = button("Train", () => this.toggle());
    this.trainButton.classList.add("fbt-main");
    const titles = Object.entries(TASKS).map(([name, { title }]) => [name, title]);
    const tasks = selection("task", titles, settings.task, (value) => {
      Object.assign(settings, { task: value });
      Object.assign(settings, this.usual());
      rates.select.value = settings.rate;
      lengths.select.value = settings.longest;
      this.slider.value = TESTED.indexOf(settings.tested);
      this.reset();
    });
    const numbers = (values) => values.map((value) => [value, value]);
    const seeds = selection("seed", numbers(SEEDS), settings.seed, set("seed"));
    const rates = selection("learning rate", numbers(RATES), settings.rate,
      set("rate"));
    const lengths = selection("longest in training", numbers([4, 8, 16]),
      settings.longest, set("longest"));
    const spans = selection("span", numbers([1, 2, 4, 16, 64]), settings.span,
      set("span"));
    const memories = selection("memory", [
      ["learned", "learned mixture"], ["top", "top layer"],
      ["embedding", "embedding: feedback off"],
    ], settings.memory, set("memory"));

    const bar = element("div", { class: "fbt-controls" });
    bar.append(this.trainButton, button("Step", () => this.step()),
      button("Reset", () => this.reset()), tasks.label, seeds.label);
    const lstm = element("input", { type: "checkbox" });
    lstm.checked = !this.hidden.has("LSTM");
    lstm.addEventListener("change", () => this.showLstm(lstm.checked));
    const lstmLabel = element("label");
    lstmLabel.append(lstm, " also an LSTM");
    const more = element("details");
    const others = element("div", { class: "fbt-controls" });
    others.append(rates.label, lengths.label, spans.label, memories.label, lstmLabel);
    more.append(element("summary", {}, "More"), others);

    const slider = element("input", {
      type: "range", min: 0, max: TESTED.length - 1, step: 1,
      value: TESTED.indexOf(settings.tested),
    });
    this.tested = element("output");
    slider.addEventListener("input", () => {
      settings.tested = TESTED[slider.value];
      this.name();
      this.shown.forEach((player) =>
        player.send({ kind: "test", length: settings.tested }));
    });
    this.slider = slider;
    const sliderLabel = element("label", { class: "fbt-controls" }, "test length ");
    sliderLabel.append(slider, this.tested);

    this.cards = element("div", { class: "fbt-players" });
    const curves = element("div", { class: "fbt-curves" });
    curves.append(this.chart.canvas);
    this.hint = element("p", { class: "fbt-note" });
    const first = element("p", { class: "fbt-hint" },
      "Try this first: press Train, and watch which grid fills. Then make the tests "
      + "longer than any game of the training.");
    this.root.append(first, bar, this.cards, sliderLabel, this.words, curves,
      this.hint, more);
    this.place();
    this.name();
  }

  place() {
    this.cards.replaceChildren(...this.shown.map(({ card }) => card));
  }

  // Texts that depend on the settings.
  name() {
    const { settings: { tested }, longest, task: { unit } } = this;
    this.tested.textContent = `${tested} ${unit}`;
    this.slider.setAttribute("aria-valuetext", `${tested} ${unit}`);
    this.hint.textContent = `Grids: ${GAMES} tests as rows, ${unit} as columns. A `
      + "right answer fills its cell. The longest sequences in training have "
      + `${longest} ${unit}. Clouds: the memory vectors along their two widest `
      + "directions (of the others: their outputs), each drawn as the right answer. "
      + "Curves: the loss. A seed can fail; try another before you judge a model.";
  }

  showLstm(shown) {
    const player = this.players[2];
    if (shown) this.hidden.delete("LSTM");
    else this.hidden.add("LSTM");
    this.place();
    if (shown) player.create();
    else player.send({ kind: "pause" });
    this.label();
    this.redraw();
  }

  toggle() {
    if (this.running) {
      this.pause();
      return;
    }
    this.begin();
    this.running = true;
    this.isSummed = false;
    this.words.textContent = "Training.";
    const { unfinished, shown } = this;
    (unfinished.length ? unfinished : shown).forEach((player) => {
      player.training = true;
      player.send({ kind: "train", more: this.task.updates / 2 });
    });
    this.label();
  }

  pause() {
    this.running = false;
    this.shown.forEach((player) => {
      player.training = false;
      player.send({ kind: "pause" });
    });
    this.label();
    this.summarise();
  }

  step() {
    this.begin();
    if (this.running) this.pause();
    this.shown.forEach((player) => player.send({ kind: "step" }));
  }

  reset() {
    this.running = false;
    this.begun = true;
    this.label();
    this.name();
    this.isSummed = false;
    this.words.textContent = "";
    this.shown.forEach((player) => player.create());
  }

  // Start the workers, once the view is seen or used.
  begin() {
    if (!this.begun) this.reset();
  }

  get unfinished() {
    return this.shown.filter(({ update, end }) => !(update >= end));
  }

  fail() {
    this.running = false;
    this.label();
    this.words.textContent = "Nothing can train here: the page cannot start workers.";
  }

  label() {
    const start = this.unfinished.length ? "Train" : "Train on";
    this.trainButton.textContent = this.running ? "Pause" : start;
  }

  heard(player) {
    const ended = this.running && this.shown.every(({ training }) => !training);
    if (ended) this.running = false;
    // The last test may be reported after the end of the training.
    if (ended || (this.isSummed && !this.running)) this.summarise();
    this.label();
    // Without motion, pictures change once in a second, and at an end.
    if (this.still && this.running && performance.now() - this.drawn < 1000) return;
    this.redraw(player);
  }

  // Draw a model's part of the page soon, or all of it.
  redraw(...players) {
    const all = players.length ? players : this.shown;
    [...all, this].forEach((part) => this.pending.add(part));
    if (this.waiting) return;
    this.waiting = true;
    // Slow pictures are drawn less often, so that the page stays quick.
    const wait = this.running ? 8 * this.drawTime : 0;
    setTimeout(() => requestAnimationFrame(() => this.drawNext()), wait);
  }

  // Draw one part per frame.
  drawNext() {
    const [part] = this.pending;
    this.pending.delete(part);
    const start = performance.now();
    if (part === this) this.chart.draw();
    else part.draw();
    this.drawn = performance.now();
    this.drawTime = this.drawn - start;
    this.waiting = false;
    if (!this.pending.size) return;
    this.waiting = true;
    requestAnimationFrame(() => this.drawNext());
  }

  summarise() {
    const { task, settings: { tested, longest } } = this;
    const { unit, question, chance } = task;
    const lines = this.shown.filter(({ result }) => result).map((player) => {
      const share = player.share(tested);
      const done = share >= LEARNED ? "" : player.kind === "parallel"
        ? ": not in these steps" : ": not yet, train on or try another seed";
      return `${player.name} ${question} in ${percent(share)} of the tests${done}`;
    });
    this.isSummed = true;
    const text = `After ${tested} ${unit}, having trained on at most `
      + `${longest}: ${lines.join("; ")}. Chance is ${percent(chance)}.`;
    // The same text again would be read aloud again.
    if (this.words.textContent !== text) this.words.textContent = text;
  }

  // Loss over updates, on a linear axis from 0 to the loss of a guess.
  paintChart(context, width, height, { ink }) {
    const guess = -Math.log(this.task.chance);
    const end = Math.max(...this.shown.map((player) => player.end ?? 1));
    const x = (update) => 34 + ((width - 40) * update) / end;
    const y = (loss) =>
      height - 18 - (height - 30) * Math.min(loss / guess, 1.2);
    context.fillStyle = ink;
    context.textBaseline = "middle";
    context.textAlign = "right";
    context.fillText("0", 26, y(0));
    context.fillText(guess.toFixed(1), 26, y(guess));
    context.fillText(`${end} updates`, width, height - 7);
    context.textAlign = "left";
    context.fillText("loss, nats", 34, height - 7);
    context.globalAlpha = 0.5;
    context.fillRect(34, y(0), width - 40, 1);
    context.fillRect(34, y(guess), width - 40, 1);
    context.globalAlpha = 1;
    context.lineWidth = 2;
    for (const { kind, card, losses } of this.shown) {
      context.strokeStyle = ownColour(card);
      context.setLineDash(DASHES[kind]);
      context.beginPath();
      let smooth = losses[0];
      losses.forEach((loss, update) => {
        smooth += 0.15 * (loss - smooth);
        context.lineTo(x(update), y(smooth));
      });
      context.stroke();
    }
    context.setLineDash([]);
    const final = this.shown.filter(({ losses }) => losses.length)
      .map(({ kind, losses }) => `${kind} ${losses.at(-1).toFixed(2)}`);
    this.chart.canvas.setAttribute("aria-label",
      `The loss over updates; now: ${final.join(", ") || "none yet"}`);
  }
}

function render({ model, el }) {
  const root = element("div", { class: "fbt-view-root fbt-playground" });
  const room = new Room(root, model.get("data"));
  const still = el.querySelector(".fbt-still"); // which is for paper
  el.replaceChildren(root, ...(still ? [still] : []));
  const seen = new IntersectionObserver((entries) => {
    if (entries.some(({ isIntersecting }) => isIntersecting)) {
      seen.disconnect();
      room.begin();
    }
  });
  seen.observe(root);
  const redraw = () => room.redraw();
  new ResizeObserver(redraw).observe(root);
  // Canvases do not follow the theme by themselves.
  new MutationObserver(redraw).observe(document.documentElement, {
    attributes: true, attributeFilter: ["data-theme", "class"],
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  return () => room.players.forEach(({ worker }) => worker?.terminate());
}

export default { render };
