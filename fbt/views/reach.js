// Reach by gradient: how much each character of a text matters for a prediction after
// it. A worker for this alone, so that it can be ended at once. Needs engine.js,
// learn_kernels.js, learn_model.js and learn_transformer.js.

// A transformer whose backward goes to the embeddings, and to no parameter.
class Reach extends Transformer {
  // `tell` is called with the part of the work that is done, from 0 to 1.
  constructor(packed, tell = () => {}) {
    const parameters = unpack(packed);
    const head_norm = "norm.weight" in parameters;
    super({ ...packed.config, head_norm }, () => 0.5); // values are replaced
    this.load(parameters);
    this.tell = tell;
  }

  // The norm of d log p(target) / d embedding of each token [T], for the prediction
  // after the last one. It goes through all layers, and through the memories.
  sizes(tokens, target) {
    const { config: { vocab_size: width, d_model: d } } = this;
    const length = tokens.length;
    const logits = this.forward(tokens, 1, length);
    this.logitSlopes.fill(0);
    const last = logits.subarray((length - 1) * width, length * width);
    probabilities(last).forEach((share, token) => {
      this.logitSlopes[(length - 1) * width + token] = (token === target) - share;
    });
    this.backward();
    return Float32Array.from({ length }, (_, t) =>
      Math.hypot(...this.dx[0].subarray(t * d, (t + 1) * d)));
  }

  remember(from, to) {
    super.remember(from, to);
    this.tell(to / (3 * this.rows)); // backward takes about twice as long
  }

  rememberBackward(from, to) {
    super.rememberBackward(from, to);
    this.tell(1 - (2 * from) / (3 * this.rows));
  }

  addWeightGradients() {}

  embedBackward() {}
}

// Messages of the page to this worker: {kind: "weigh", packed, tokens, target}, with
// the weights of a list of models. It answers with the sizes of each model.
let reaches;

function weigh({ packed, tokens, target }) {
  let told = performance.now();
  reaches ??= packed.map((one, index) => new Reach(one, (done) => {
    if (performance.now() - told < 250) return;
    told = performance.now();
    postMessage({ kind: "weighing", done: (index + done) / packed.length });
  }));
  const sizes = reaches.map((model) => model.sizes(tokens, target));
  postMessage({ kind: "weighed", sizes });
}
