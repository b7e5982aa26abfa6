// Stack against buffer: what both kinds of stacks keep, step by step, and where the
// gradients of their windows go.

const CELL = { width: 26, height: 20, gap: 4 };
const MARGIN = 58; // for the names of rows
const TURN = 900; // milliseconds

// What happens at a moment: first all steps, then backward through those that read.
function momentOf(moment, steps) {
  const isBack = moment >= steps;
  const step = isBack ? 2 * steps - 1 - moment : moment;
  return { isBack, step, copies: (step * (step + 1)) / 2 };
}

function keys(count, width) {
  const bytes = (4 * width * count).toLocaleString("en");
  return `${count.toLocaleString("en")} key${count === 1 ? "" : "s"}, ${bytes} bytes`;
}

function render({ model, el }) {
  const { steps, width, long } = model.get("data");
  const last = 2 * steps - 2;
  const root = element("div", { class: "fbt-view-root fbt-stacks" });
  const hint = element("p", { class: "fbt-hint" },
    "Try this first: press play, and watch what piles up. Backward begins after the "
    + "last step.");
  const controls = element("div", { class: "fbt-controls" });
  const slider = element("input", { type: "range", min: 0, max: last, step: 1 });
  const output = element("output");
  const label = element("label", {}, "moment ");
  label.append(slider, " ", output);
  const now = () => model.get("moment");
  const play = player("moment", TURN, () => {
    const moment = now() === last ? 0 : now() + 1;
    choose(moment);
    return moment < last;
  });
  slider.addEventListener("input", () => {
    play.stop();
    choose(Number(slider.value));
  });
  controls.append(play.button, label);
  const sides = element("div", { class: "fbt-sides" });
  const panels = [["torch.cat", drawCopies], ["a buffer", drawBuffer]].map(
    ([name, draw]) => {
      const section = element("section");
      const kept = element("span", { class: "fbt-kept" });
      const title = element("p", { class: "fbt-name" }, `${name} keeps `);
      title.append(kept);
      const size = [MARGIN + steps * CELL.width + 30, (steps + 1.6) * rowHeight()];
      const svg = drawn("svg", { viewBox: `0 0 ${size.join(" ")}`, "aria-hidden": true });
      section.append(title, svg);
      sides.append(section);
      return { kept, svg, draw };
    });
  const words = element("p", { class: "fbt-words", "aria-live": "polite" });
  const longer = element("p", { class: "fbt-longer" },
    `A key has ${width} numbers. After ${long} steps, torch.cat keeps `
    + `${keys((long * (long - 1)) / 2, width)}; the buffer ${keys(long, width)}. `
    + "Values take as much again.");
  root.append(hint, controls, sides, words, longer);

  function rowHeight() {
    return CELL.height + CELL.gap;
  }

  function choose(moment) {
    model.set("moment", moment);
    model.save_changes();
    draw();
  }

  const x = (column) => MARGIN + column * CELL.width;
  const y = (row) => (row - 1) * rowHeight() + CELL.gap;
  const foot = y(steps + 0.6); // where the items are

  function cell(svg, column, top, kind) {
    svg.append(drawn("rect", {
      x: x(column), y: top, width: CELL.width - CELL.gap, height: CELL.height, rx: 2,
      class: kind,
    }));
  }

  function name(svg, top, text) {
    svg.append(drawn("text", { x: MARGIN - 8, y: top + 15, "text-anchor": "end" }, text));
  }

  function arrow(svg, from, to) {
    const [[a, b], [c, d]] = [from, to];
    const angle = Math.atan2(d - b, c - a);
    const tip = [0.5, -0.5].map((turn) =>
      `${c - 6 * Math.cos(angle + turn)} ${d - 6 * Math.sin(angle + turn)}`);
    const path = `M${a} ${b} L${c} ${d} M${tip[0]} L${c} ${d} L${tip[1]}`;
    svg.append(drawn("path", { d: path, class: "fbt-back" }));
  }

  // The window of each step as a tensor of its own, made of copies.
  function drawCopies(svg, { isBack, step }) {
    for (let t = 1; t < steps; t++) {
      name(svg, y(t), `step ${t}`);
      const copy = t === step && !isBack ? "fbt-new" : "fbt-copy";
      for (let j = 0; j < t; j++) cell(svg, j, y(t), t <= step ? copy : "fbt-none");
    }
    name(svg, foot, "keys");
    for (let j = 0; j < steps; j++) {
      cell(svg, j, foot, isBack || j <= step ? "fbt-item" : "fbt-none");
    }
    for (let j = 0; isBack && j < step; j++) {
      const middle = x(j) + (CELL.width - CELL.gap) / 2;
      arrow(svg, [middle, y(step) + CELL.height], [middle, foot]);
    }
  }

  // One row of items, and the part of it that each step sees.
  function drawBuffer(svg, { isBack, step }) {
    const right = (t) => x(t) - CELL.gap;
    for (let t = 1; t < steps; t++) {
      name(svg, y(t), `step ${t}`);
      const [top, low] = [y(t) + 5, y(t) + 14];
      const path = `M${x(0)} ${top} V${low} H${right(t)} V${top}`;
      const kind = t === step ? "fbt-now" : t < step ? "" : "fbt-gone";
      svg.append(drawn("path", { d: path, class: kind }));
    }
    name(svg, foot, "buffer");
    for (let j = 0; j < steps; j++) {
      const isNew = !isBack && j === step;
      cell(svg, j, foot,
        isNew ? "fbt-new" : isBack || j < step ? "fbt-item" : "fbt-none");
    }
    if (!isBack) return;
    const middle = x(step - 1) + (CELL.width - CELL.gap) / 2;
    arrow(svg, [middle, y(step) + 14], [middle, foot]);
    const start = x(0) + 10;
    if (step > 1) arrow(svg, [start, y(step) + 2], [start, y(step - 1) + 18]);
  }

  function tell({ isBack, step }) {
    if (!step) return "Step 0 writes its key, and reads nothing.";
    if (!isBack) {
      return `Step ${step}: torch.cat copies all ${step} earlier keys into a new window`
        + `${step > 1 ? `, ${step - 1} of them once more` : ""}. The buffer hands out a `
        + "window of its rows, then gets one new row.";
    }
    return `Backward, step ${step}: with torch.cat, the window's gradient is cut into `
      + `${step}, a piece for each key. With the buffer, key ${step - 1} is complete `
      + "and goes back to its step"
      + `${step > 1 ? "; the rest joins the gradient of the window before" : ""}.`;
  }

  function draw() {
    const moment = momentOf(now(), steps);
    slider.value = now();
    output.textContent = `${moment.isBack ? "backward, " : ""}step ${moment.step}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    words.setAttribute("aria-live", play.isPlaying() ? "off" : "polite");
    panels.forEach(({ kept, svg, draw: show }, i) => {
      svg.replaceChildren();
      show(svg, moment);
      kept.textContent = keys(i ? steps : moment.copies, width);
    });
    words.textContent = tell(moment);
  }

  model.on?.("change:moment", draw);
  el.replaceChildren(root);
  draw();
}

export default { render };
