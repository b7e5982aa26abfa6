// A shell game: the reader follows the ball, then two models follow it.

const CUPS = 5;
const OWN = 8; // swaps of the reader's game
const BEAT = 750; // milliseconds from one swap to the next
const MOVE = 550; // milliseconds of a swap
const WIDE = 100; // of a place in the drawing, whose ground is at GROUND
const GROUND = 132;
const LIFT = 42;
const PAIRS = [];
for (let i = 0; i < CUPS; i++) for (let j = i + 1; j < CUPS; j++) PAIRS.push([i, j]);
const CUP = "M-31 0 L-24 -58 Q-23 -66 -15 -66 H15 Q23 -66 24 -58 L31 0 Z M-27 -13 H27";
const TRAIL = 4; // moves of the memory that stay visible

// A swap exchanges the cups at two places.
function swapped(place, [first, second]) {
  if (place === first) return second;
  return place === second ? first : place;
}

// Swaps as numbers of pairs; none takes back the one before it.
function randomGame(length) {
  const game = [];
  while (game.length < length) {
    const pair = Math.floor(Math.random() * PAIRS.length);
    if (pair !== game.at(-1)) game.push(pair);
  }
  return game;
}

function best(shares) {
  return shares.indexOf(Math.max(...shares));
}

// The cups at their places, which the reader can choose.
function stage(choose) {
  const root = element("div", {
    class: "fbt-stage", role: "group", "aria-label": "the cups",
  });
  const picture = drawn("svg", {
    viewBox: `0 0 ${CUPS * WIDE} ${GROUND + 8}`, "aria-hidden": "true",
  });
  const arc = drawn("path", { class: "fbt-swap" });
  const cups = Array.from({ length: CUPS }, (_, cup) => {
    const group = drawn("g");
    if (cup === 0) group.append(drawn("circle", { cy: -15, r: 13, class: "fbt-ball" }));
    const shape = drawn("path", { d: CUP, class: "fbt-cup" });
    group.append(shape);
    return { group, shape };
  });
  picture.append(arc, ...cups.map(({ group }) => group));
  const buttons = cups.map((_, place) => {
    const button = element("button", {
      type: "button", "aria-label": `place ${place + 1}`, tabindex: place ? -1 : 0,
    }, String(place + 1));
    button.style.gridColumn = place + 1;
    button.addEventListener("click", () => choose(place));
    return button;
  });
  root.append(picture, ...buttons);
  // One tab stop; arrow keys move the focus.
  function focus(place) {
    buttons.forEach((button, i) => { button.tabIndex = i === place ? 0 : -1; });
    buttons[place].focus();
  }
  root.addEventListener("keydown", (event) => {
    const now = buttons.indexOf(event.target);
    const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: CUPS - 1 };
    if (!(event.key in moves) || now < 0) return;
    event.preventDefault();
    focus(Math.min(CUPS - 1, Math.max(0, moves[event.key])));
  });
  const x = (place) => (place + 0.5) * WIDE;
  const at = (place, up = 0) => `translate(${x(place)}px, ${GROUND - up}px)`;

  // Show each cup at its place. `from` are their places before a swap that is shown as
  // a movement: the one that goes right passes behind, the other one in front.
  function show(places, { from, pair, lifted, isGlass }) {
    cups.forEach(({ group, shape }, cup) => {
      group.getAnimations().forEach((animation) => animation.cancel());
      group.style.transform = at(places[cup]);
      shape.style.transform = lifted.includes(cup) ? `translateY(${-LIFT}px)` : "";
      group.classList.toggle("fbt-glass", isGlass && cup === 0);
      if (!from || from[cup] === places[cup]) return;
      const side = places[cup] > from[cup] ? 22 : -6;
      const middle = (from[cup] + places[cup]) / 2;
      if (side < 0) picture.append(group);
      group.animate(
        [{ transform: at(from[cup]), easing: "ease-in" },
          { transform: at(middle, side), easing: "ease-out" },
          { transform: at(places[cup]) }], MOVE);
    });
    arc.setAttribute("d", pair ? arrow(...pair.map(x)) : "");
  }
  // An arc above two cups, with a head at both ends.
  function arrow(left, right) {
    const [y, top] = [GROUND - 72, 14];
    return `M${left} ${y} Q${left} ${top} ${left + 30} ${top} H${right - 30} `
      + `Q${right} ${top} ${right} ${y} M${left - 7} ${y - 9} L${left} ${y} `
      + `L${left + 7} ${y - 9} M${right - 7} ${y - 9} L${right} ${y} `
      + `L${right + 7} ${y - 9}`;
  }
  return { root, buttons, show, focus };
}

// The guesses of a model: a bar below each cup.
function guessRow({ name, layers }) {
  const root = element("div", { class: "fbt-guess", "data-kind": name });
  const title = `${name}, ${layers} layer${layers > 1 ? "s" : ""}`;
  const row = element("div", { class: "fbt-bars", role: "img" });
  const cells = Array.from({ length: CUPS }, () => {
    const cell = element("div");
    const [bar, number] = [element("span", { class: "fbt-bar" }), element("span")];
    cell.append(number, bar);
    row.append(cell);
    return { cell, bar, number };
  });
  root.append(element("p", {}, title), row);
  function show(shares) {
    cells.forEach(({ cell, bar, number }, place) => {
      const share = shares?.[place] ?? 0;
      number.textContent = shares ? `${Math.round(100 * share)} %` : "–";
      bar.style.setProperty("--share", share.toFixed(3));
      cell.classList.toggle("fbt-best", Boolean(shares) && best(shares) === place);
    });
    const said = shares?.map((share, place) => `place ${place + 1} ${percent(share)}`);
    row.setAttribute("aria-label", `${title}: ${said?.join(", ") ?? "no guess yet"}`);
  }
  return { root, show };
}

// The memory of the feedback model as a point among those of other games.
function memoryMap({ clouds, projection }) {
  const root = element("div", { class: "fbt-map" });
  const picture = drawn("svg", { viewBox: "-150 -150 300 300", role: "img" });
  const screen = ([x, y]) => [100 * x, -100 * y];
  clouds.forEach((points, place) => {
    const group = drawn("g", { class: "fbt-cloud" });
    for (const point of points) {
      const [cx, cy] = screen(point);
      group.append(drawn("circle", { cx: cx.toFixed(1), cy: cy.toFixed(1), r: 2.2 }));
    }
    const angle = (2 * Math.PI * place) / CUPS; // as in `map_of` of cups.py
    const [x, y] = screen([Math.sin(angle), Math.cos(angle)].map((at) => 1.38 * at));
    group.append(drawn("text", { x, y }, String(place + 1)));
    picture.append(group);
  });
  const trail = Array.from({ length: TRAIL }, (_, age) =>
    drawn("path", { class: "fbt-trail", "stroke-width": 4 - (3.2 * age) / TRAIL }));
  const dot = drawn("circle", { r: 9, class: "fbt-memory" });
  picture.append(...trail, dot);
  root.append(element("p", {}, "memory of the feedback model"), picture);

  function project(memory) {
    return screen([0, 1].map((axis) => memory.reduce(
      (sum, value, i) => sum + value * projection[i][axis],
      projection.at(-1)[axis])));
  }
  // The memories after all swaps so far.
  function show(memories, place) {
    const points = memories.map(project);
    dot.style.display = points.length ? "" : "none";
    if (points.length) {
      const [x, y] = points.at(-1);
      dot.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
    }
    trail.forEach((path, age) => {
      const ends = points.slice(-age - 2, points.length - age);
      path.setAttribute("d", ends.length === 2 ? `M${ends.join(" L")}` : "");
    });
    picture.setAttribute("aria-label", points.length
      ? `The memory is among those of place ${place + 1}` : "No memory yet");
  }
  return { root, show };
}

function render({ model, el }) {
  const data = model.get("data");
  let game; // swaps, and the place of each cup after 0, 1, ... of them
  let now = 0; // swaps shown
  let hasModels = false; // the models play, not the reader
  let choice; // of the reader
  let read; // what the models make of the game
  let note = ""; // an answer to a choice that came too early
  let worker;
  let failure = "";

  const root = element("div", { class: "fbt-view-root fbt-cups" });
  const hint = element("p", { class: "fbt-hint" },
    "Try this first: press play and follow the ball. Then let the models play.");
  const controls = element("div", { class: "fbt-controls" });
  const play = player("swap", BEAT, () => {
    if (now === last()) go(0, false);
    else go(now + 1, !play.isStill);
    return now < last();
  });
  const next = pressed("next swap", () => {
    play.stop();
    if (now < last()) go(now + 1, !play.isStill);
  });
  const models = pressed("let the models play", () => {
    play.stop();
    hasModels = true;
    go(0, false);
    ask();
    play.button.click();
  });
  const fresh = pressed("new game", () => {
    play.stop();
    begin(randomGame(data.game.length));
    if (!play.isStill) play.button.click();
  });
  const label = element("label", {}, "swap ");
  const slider = element("input", { type: "range", min: 0, step: 1 });
  const output = element("output");
  slider.addEventListener("input", () => {
    play.stop();
    go(Number(slider.value), false);
  });
  label.append(slider, " ", output);
  controls.append(play.button, ...(play.isStill ? [] : [next]), models, fresh, label);

  const table = stage((place) => {
    note = "";
    if (now < last()) note = now ? "Wait for all swaps." : "Press play first.";
    else choice = place;
    draw();
  });
  root.addEventListener("keydown", (event) => {
    const place = Number(event.key) - 1;
    if (event.target === slider || !table.buttons[place]) return;
    if (!hasModels) table.focus(place);
    table.buttons[place].click();
  });
  const rows = data.players.map(guessRow);
  const map = memoryMap(data);
  const left = element("div");
  const words = element("p", { class: "fbt-words", "aria-live": "polite" });
  left.append(table.root, words, ...rows.map((row) => row.root));
  const body = element("div", { class: "fbt-game" });
  body.append(left, map.root);
  root.append(hint, controls, body, element("p", { class: "fbt-note" },
    "Dashed lines: a blind guess, 20 %. Small dots: memories from other games, seen "
    + "from the side that separates the five places best. Both models learned from "
    + "games of up to 48 swaps."));

  function pressed(name, press) {
    const button = element("button", { type: "button" }, name);
    button.addEventListener("click", press);
    return button;
  }

  function last() {
    return hasModels ? game.pairs.length : OWN;
  }

  function begin(tokens) {
    const places = [[...Array(CUPS).keys()]];
    const pairs = tokens.map((token) => PAIRS[token]);
    for (const pair of pairs) {
      places.push(places.at(-1).map((place) => swapped(place, pair)));
    }
    game = { tokens, pairs, places };
    [hasModels, read] = [false, undefined];
    go(0, false);
  }

  function go(swap, moves) {
    const from = moves && swap === now + 1 ? game.places[now] : undefined;
    [now, choice, note] = [swap, undefined, ""];
    draw(from);
  }

  // Let both models read the game.
  function ask() {
    const packed = worker ? undefined : data.players.map((each) => each.packed);
    try {
      worker ??= startWorker(WORKER);
    } catch {
      failure = " The models cannot play here: the page cannot start workers.";
      return;
    }
    worker.onmessage = ({ data: answer }) => {
      if (`${answer.tokens}` !== `${tokens()}`) return; // of a game before
      const guesses = answer.answers.map((steps) =>
        steps.map(({ shares }) => shares.slice(0, CUPS)));
      const memories = answer.answers[0].map(({ memory }) => memory);
      read = { guesses, memories };
      draw();
    };
    worker.postMessage({ packed, tokens: tokens() });
  }
  const tokens = () => game.tokens.map((pair) => CUPS + pair);
  const ballAt = (swap) => game.places[swap][0];

  function draw(from) {
    const ball = ballAt(now);
    const isRevealed = choice !== undefined;
    const lifted = !now && !hasModels ? [0] : [];
    if (isRevealed) lifted.push(0, game.places[now].indexOf(choice));
    table.show(game.places[now], {
      from, lifted, pair: now && !isRevealed ? game.pairs[now - 1] : undefined,
      isGlass: hasModels,
    });
    table.buttons.forEach((button) => { button.disabled = hasModels; });
    const guesses = hasModels && read && now
      ? read.guesses.map((steps) => steps[now - 1]) : [];
    rows.forEach((row, i) => row.show(guesses[i]));
    map.show(guesses.length ? read.memories.slice(0, now) : [], ball);
    slider.max = last();
    slider.value = now;
    output.textContent = `${now} of ${last()}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    next.setAttribute("aria-disabled", now === last());
    models.classList.toggle("fbt-main", isRevealed);
    words.setAttribute("aria-live", play.isPlaying() ? "off" : "polite");
    words.textContent = note || (hasModels ? saidOf(guesses) : told());
  }

  // What the reader is told in a game of their own.
  function told() {
    if (choice !== undefined) {
      const ball = ballAt(now) + 1;
      return choice + 1 === ball
        ? `Right: the ball is in place ${ball}. Now let the models play.`
        : `Not place ${choice + 1}: the ball is in place ${ball}. You can move back `
          + "with the slider. Or let the models play.";
    }
    if (!now) return "The ball is in place 1.";
    const [first, second] = game.pairs[now - 1].map((place) => place + 1);
    const text = `Swap ${now} of ${last()}: ${first} and ${second} change places.`;
    return now < last() ? text : `${text} Where is the ball now? Choose a cup.`;
  }

  function saidOf(guesses) {
    const ball = `The ball is in place ${ballAt(now) + 1}.`;
    if (!now) return `${ball} The models have not read a swap yet.${failure}`;
    const pair = game.pairs[now - 1].map((place) => place + 1).join(" and ");
    const said = guesses.map((shares, i) => {
      const place = best(shares);
      const name = data.players[i].name;
      return `${name} says ${place + 1}, ${percent(shares[place])}`;
    });
    const end = read && now === last() ? ` ${summary()}` : "";
    const swap = `Swap ${now} of ${last()}: ${pair} change places.`;
    return `${swap} ${ball} ${capital(said.join("; "))}${said.length ? "." : failure}${end}`;
  }

  function summary() {
    const counts = read.guesses.map((steps, i) => {
      const right = steps.filter((shares, t) => best(shares) === ballAt(t + 1));
      return `${data.players[i].name} after ${right.length}`;
    });
    return `Right so far: ${counts.join(", ")} of ${last()} swaps.`;
  }

  const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);
  const still = el.querySelector(".fbt-still");
  el.replaceChildren(root, ...(still ? [still] : []));
  begin(data.game);
  return () => worker?.terminate();
}

export default { render };
