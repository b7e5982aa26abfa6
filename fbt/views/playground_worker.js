// The worker of one model in the playground: trains in slices and reports.
//
// Messages to it: {kind: "create", run, options, length, training}, {kind: "train",
// more}, {kind: "pause"}, {kind: "step"} and {kind: "test", length}. It answers with
// reports, at most 16 a second while it trains.

const SLICE = 25; // milliseconds between two looks at the messages
const PAUSE = 62; // milliseconds between two reports
const GAMES = 64; // in a test
const SHOWN = 12; // games that the page shows
const POINTS = 160;

let learner;
let run; // the number of the run, which tells late reports from new ones
let training = false;
let end = 0; // the update after which training stops
let testLength = 0;
let losses = [];
let reported = 0; // times of the last report and the last test
let tested = 0;
let testTime = 0;
const slices = new MessageChannel();
let queued = false; // a slice

function train() {
  if (queued || !training) return;
  queued = true;
  slices.port2.postMessage(0);
}

function report(test) {
  const message = { run, losses, update: learner.update, end, training };
  if (test) {
    const start = performance.now();
    Object.assign(message, examine());
    tested = performance.now();
    testTime = tested - start;
  }
  losses = [];
  reported = performance.now();
  postMessage(message);
}

// What a test shows: the answers of some games, the share of right ones after each
// step, and the states as points.
function examine() {
  const right = learner.test(testLength, GAMES);
  const steps = right.length / GAMES;
  const asked = [...Array(steps).keys()].filter((t) => right[t * GAMES] !== 2);
  const shares = asked.map((t) => {
    const row = right.subarray(t * GAMES, (t + 1) * GAMES);
    return row.reduce((sum, value) => sum + value, 0) / GAMES;
  });
  const cells = new Uint8Array(asked.length * SHOWN);
  asked.forEach((t, column) => {
    for (let g = 0; g < SHOWN; g++) {
      cells[g * asked.length + column] = right[t * GAMES + g];
    }
  });
  const rows = Math.min(right.length, 24 * GAMES);
  const { points, labels } = learner.cloud(rows);
  const every = Math.max(1, Math.floor(rows / POINTS));
  const cloud = [];
  for (let r = 0; r < rows; r += every) {
    cloud.push([points[2 * r], points[2 * r + 1], labels[r]]);
  }
  return { length: testLength, shares, cells, cloud };
}

slices.port1.onmessage = () => {
  queued = false;
  if (!training) return;
  const start = performance.now();
  do losses.push(learner.step());
  while (learner.update < end && performance.now() - start < SLICE);
  training = learner.update < end;
  const now = performance.now();
  if (!training) report(true);
  else if (now - reported > PAUSE) report(now - tested > Math.max(120, 5 * testTime));
  train();
};

const ON = {
  create(message) {
    learner = new Learner(message.options);
    ({ run, training, length: testLength } = message);
    end = learner.updates;
    losses = [];
    report(true);
    train();
  },
  train({ more }) {
    if (learner.update >= end) end = learner.update + more;
    training = true;
    train();
  },
  pause() {
    if (training) {
      training = false;
      report(true);
    }
  },
  step() {
    training = false;
    losses.push(learner.step());
    end = Math.max(end, learner.update);
    report(true);
  },
  test({ length }) {
    testLength = length;
    report(true);
  },
};

onmessage = ({ data }) => ON[data.kind](data);
