// The parity machine: bits to flip, and the memory of a model of four numbers.

function render({ model, el }) {
  const { packed, names, ...data } = model.get("data");
  const bits = [...data.bits].map(Number);
  let worker;
  let before; // the cells before the last flip
  let flipped; // the step of the last flip

  const root = element("div", { class: "fbt-view-root fbt-parity" });
  const table = element("table", { class: "fbt-parity-table" });
  const rows = ["bit", ...names, "odd?"].map((name) => {
    const row = element("tr");
    row.append(element("th", { scope: "row" }, name));
    const cells = bits.map(() => row.appendChild(element("td")));
    table.append(row);
    return cells;
  });
  const buttons = bits.map((_, step) => {
    const button = element("button", { type: "button" });
    button.addEventListener("click", () => flip(step));
    rows[0][step].append(button);
    return button;
  });
  table.addEventListener("keydown", (event) => {
    const to = buttons[buttons.indexOf(event.target)
      + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0)];
    if (to) to.focus();
  });
  const words = element("p", { class: "fbt-words", "aria-live": "polite" });
  root.append(element("p", { class: "fbt-hint" },
    "Try this first: flip the third bit, and see which numbers change."), table, words);

  function flip(step) {
    bits[step] = 1 - bits[step];
    flipped = step;
    read();
  }

  function name() {
    buttons.forEach((button, step) => {
      button.textContent = bits[step];
      button.setAttribute("aria-label", `bit ${step + 1}: ${bits[step]}, flip`);
    });
  }

  // Let the model read the bits; the worker gets its weights the first time.
  function read() {
    name();
    const isFirst = !worker;
    try {
      worker ??= startWorker(WORKER);
    } catch {
      words.textContent = "The page cannot start workers, so nothing is computed.";
      return;
    }
    worker.onmessage = ({ data: { tokens, answers: [steps] } }) => {
      if (`${tokens}` === `${bits}`) draw(steps);
    };
    worker.postMessage({ packed: isFirst ? [packed] : undefined, tokens: bits });
  }

  function draw(steps) {
    const odd = steps.map(({ shares }) => shares[1] > shares[0]);
    const values = [
      ...names.map((_, i) => steps.map(({ memory }) => memory[i])), odd,
    ];
    values.forEach((row, i) => row.forEach((value, step) => {
      const cell = rows[i + 1][step];
      const isTrue = value === true || value > 0;
      const text = typeof value === "number" ? value.toFixed(0) : isTrue ? "yes" : "no";
      cell.textContent = text.replace("-", "−");
      cell.classList.toggle("fbt-on", isTrue);
      cell.classList.toggle("fbt-changed", Boolean(before)
        && (before[i][step] > 0) !== isTrue);
    }));
    const end = `At the end the number of ones is ${odd.at(-1) ? "odd" : "even"}.`;
    words.textContent = before ? `${changes(before[2], values[2])} ${end}` : end;
    before = values;
  }

  function changes(old, now) {
    const steps = now.flatMap((p, step) => (p * old[step] < 0 ? [step + 1] : []));
    const where = steps.length > 1
      ? `steps ${steps[0]} to ${steps.at(-1)}` : `step ${steps[0]}`;
    return `Bit ${flipped + 1} is now ${bits[flipped]}: p changes its sign at ${where}.`;
  }

  el.replaceChildren(root);
  name();
  draw(data.start);
  return () => worker?.terminate();
}

export default { render };
