// The worker of the live model: reads a text with one or two models, continues it, and
// answers what they saw at a step. Needs engine.js; another worker of the same text
// only weighs the characters before a prediction, with reach.js.
//
// Each message has a `kind`. A text has a number, `round`, and answers repeat it, so
// that answers about an earlier text can be told apart.

const SLICE = 20; // milliseconds of work before the next message is looked at
const STEPS = 2 ** 16 - 1; // levels of a stored attention weight

const models = []; // the model, and then its twin: { reader, steps }
let text = []; // token ids
let round = 0;
let writing = null; // { count, temperature, topK, seed, delay }
let timer = null;

const actions = {
  weigh,

  load({ index, packed }) {
    models[index] = { reader: new Reader(packed.config, unpack(packed)), steps: [] };
    postMessage({ kind: "loaded", index });
    start();
  },

  // Read a text; what it shares with the previous one is not read again.
  read(message) {
    const before = text;
    ({ text, round } = message);
    const same = text.findIndex((token, t) => token !== before[t]);
    for (const [index, { reader, steps }] of models.entries()) {
      reader.rewind(same < 0 ? text.length : same);
      steps.length = reader.length;
      report(index, 0);
    }
    writing = null;
    start();
  },

  write(message) {
    writing = message;
    start();
  },

  pause() {
    if (writing) finish();
  },

  // What each model saw at a step.
  look({ step, layer, head }) {
    const seen = models.map(({ steps }) => steps[step] && view(steps[step], layer, head));
    postMessage({ kind: "look", round, step, seen });
  },
};

function start() {
  clearTimeout(timer);
  timer = setTimeout(work);
}

function finish() {
  writing = null;
  postMessage({ kind: "done" });
}

// Work for one slice. Models that are behind the text read; then one character may be
// written.
function work() {
  const first = models.map(({ steps }) => steps.length);
  const end = performance.now() + SLICE;
  let wrote = null;
  while (performance.now() < end && wrote === null) {
    const behind = models
      .filter(({ steps }) => steps.length < text.length)
      .sort((a, b) => a.steps.length - b.steps.length)[0];
    if (behind) advance(behind);
    else if (writing && writing.count) wrote = write();
    else break;
  }
  first.forEach((from, index) => report(index, from));
  if (wrote !== null) postMessage({ kind: "wrote", round, token: wrote });
  if (writing && !writing.count) finish();
  const isBehind = models.some(({ steps }) => steps.length < text.length);
  if (isBehind || writing) timer = setTimeout(work, wrote === null ? 0 : writing?.delay);
}

// Read the next character of the text, and keep what was computed there.
function advance({ reader, steps }) {
  const token = text[steps.length];
  const expected = steps.at(-1)?.logits;
  const logits = reader.step(token).slice();
  const { seen, weights } = reader;
  steps.push({
    logits,
    surprise: expected ? -Math.log(probabilities(expected)[token]) : null,
    seen: [seen, reader.isParallel ? 1 : 0], // how many keys, and whether its own
    weights: weights.map((heads) => heads.map((values) =>
      Uint16Array.from(values.subarray(0, seen), (w) => Math.round(STEPS * w)))),
    shares: reader.isParallel ? null : reader.memoryShares(),
  });
}

function write() {
  const { temperature, topK, seed } = writing;
  const shares = probabilities(models[0].steps.at(-1).logits, temperature, topK);
  const token = draw(shares, uniform(seed, text.length));
  text.push(token);
  writing.count--;
  return token;
}

function report(index, from) {
  const { steps } = models[index];
  if (from && from === steps.length) return;
  const surprises = steps.slice(from).map(({ surprise }) => surprise);
  postMessage({ kind: "read", round, index, from, surprises });
}

// Predictions, the attention over all steps up to this one, and the memory's shares.
// -1 as `layer` or `head` means the mean over all.
function view({ logits, seen: [count, own], weights, shares }, layer, head) {
  const maps = (layer < 0 ? weights : [weights[layer]])
    .flatMap((heads) => (head < 0 ? heads : [heads[head]]));
  const mean = Float32Array.from({ length: count }, (_, j) =>
    maps.reduce((sum, map) => sum + map[j], 0) / (STEPS * maps.length));
  return { chances: probabilities(logits), weights: mean, own, shares };
}

onmessage = ({ data }) => {
  try {
    actions[data.kind](data);
  } catch (error) {
    postMessage({ kind: "failed", message: String(error) });
  }
};
