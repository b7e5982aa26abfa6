// Training in a page: AdamW, tasks, and a model in training.

function createModel(config, random) {
  return config.variant === "lstm"
    ? new Lstm(config, random) : new Transformer(config, random);
}

// AdamW as torch's. As in `fbt.train`, only matrices of linear layers decay.
class AdamW {
  constructor(model) {
    const rates = { beta1: 0.9, beta2: 0.99, decay: 0.01, epsilon: 1e-8 };
    Object.assign(this, rates, { model, steps: 0 });
    this.means = new Float32Array(model.values.length);
    this.squares = new Float32Array(model.values.length);
  }

  // Clip the norm of all gradients, then change the parameters.
  step(rate, clip = 1) {
    const { means, squares, beta1, beta2, epsilon } = this;
    const { values, slopes, decays } = this.model;
    let norm = 0;
    for (let i = 0; i < slopes.length; i++) norm += slopes[i] * slopes[i];
    const factor = Math.min(1, clip / (Math.sqrt(norm) + 1e-6));
    this.steps += 1;
    const size = rate / (1 - beta1 ** this.steps);
    const correction = Math.sqrt(1 - beta2 ** this.steps);
    const kept = 1 - rate * this.decay;
    for (let i = 0; i < values.length; i++) {
      const slope = slopes[i] * factor;
      const mean = means[i] = beta1 * means[i] + (1 - beta1) * slope;
      const square = squares[i] = beta2 * squares[i] + (1 - beta2) * slope * slope;
      const change = (size * mean) / (Math.sqrt(square) / correction + epsilon);
      values[i] = (decays[i] ? kept : 1) * values[i] - change;
    }
  }
}

// Tasks, as `fbt.tasks` defines them.

const LETTERS = "ABCDE";

// A task whose answer is a state that each token changes.
function tracking(words, tokens, first, start, after) {
  return {
    words,
    steps: (length) => length,
    draw(random, batch, length, out, labels) {
      for (let b = 0; b < batch; b++) {
        let state = start;
        for (let t = 0; t < length; t++) {
          const token = Math.floor(random() * tokens);
          state = after(state, token);
          out[t * batch + b] = first + token;
          labels[t * batch + b] = state;
        }
      }
    },
  };
}

function cups() {
  const swaps = [];
  for (let i = 0; i < 5; i++) for (let j = i + 1; j < 5; j++) swaps.push([i, j]);
  const names = swaps.map(([i, j]) => LETTERS[i] + LETTERS[j]);
  return tracking([...LETTERS, ...names], 10, 5, 0, (ball, swap) => {
    const [i, j] = swaps[swap];
    if (ball === i) return j;
    return ball === j ? i : ball;
  });
}

function permutations() {
  const words = ["123", "132", "213", "231", "312", "321"];
  return tracking(words, 6, 0, 0, (state, next) => {
    const images = [...words[state]].map((position) => words[next][position - 1]);
    return words.indexOf(images.join(""));
  });
}

function copying(symbols = 8) {
  return {
    words: [..."abcdefgh?"],
    steps: (length) => 2 * length,
    draw(random, batch, length, out, labels) {
      for (let b = 0; b < batch; b++) {
        for (let t = 0; t < length; t++) {
          const symbol = Math.floor(random() * symbols);
          const blank = (t + length) * batch + b;
          out[t * batch + b] = labels[blank] = symbol;
          labels[t * batch + b] = IGNORE;
          out[blank] = symbols;
        }
      }
    },
  };
}

// Each with the training that suits it: lengths in order, and the peak learning rate.
const TASKS = {
  cups: { ...cups(), heads: 1, updates: 400, lengths: [2, 4, 8], rate: 5e-3 },
  parity: {
    ...tracking(["0", "1"], 2, 0, 0, (state, bit) => state ^ bit),
    heads: 2, updates: 200, lengths: [8, 16], rate: 4e-3,
  },
  S3: { ...permutations(), heads: 2, updates: 400, lengths: [2, 4, 8], rate: 4e-3 },
  copy: { ...copying(), heads: 2, updates: 600, lengths: [2, 4, 8], rate: 4e-3 },
};

const BATCH = 32;

// The learning rate: ten updates of warm-up, a linear decay over the last 40 %. It
// ends above zero, so that a reader can train on.
function rateAt(update, updates, peak) {
  const left = (1 - update / updates) / 0.4;
  return peak * Math.min(1, (update + 1) / 10, Math.max(0.1, left));
}

// A model in training. Runs with the same seed and task see the same batches.
class Learner {
  constructor({ task, seed, rate, longest, model }) {
    this.task = TASKS[task];
    const usual = this.task.lengths.at(-1);
    this.lengths = this.task.lengths.map((length) =>
      Math.max(1, Math.round((length * (longest ?? usual)) / usual)));
    this.updates = this.task.updates;
    this.rate = rate ?? this.task.rate;
    this.update = 0;
    this.batches = generator(2 * seed + 1);
    this.model = createModel({
      vocab_size: this.task.words.length, variant: "shared-kv", d_model: 32,
      n_heads: this.task.heads, n_layers: 1, span: 64, memory: "learned", ...model,
    }, generator(2 * seed));
    this.optimizer = new AdamW(this.model);
  }

  draw(random, batch, length) {
    const size = batch * this.task.steps(length);
    if (!this.tokens || this.tokens.length < size) {
      this.tokens = new Int32Array(size);
      this.labels = new Int32Array(size);
    }
    this.task.draw(random, batch, length, this.tokens, this.labels);
  }

  // Train on one batch; return its loss in nats.
  step() {
    const stage = Math.floor((this.update * this.lengths.length) / this.updates);
    const length = this.lengths[Math.min(stage, this.lengths.length - 1)];
    this.draw(this.batches, BATCH, length);
    const steps = this.task.steps(length);
    const loss = this.model.loss(this.tokens, this.labels, BATCH, steps);
    this.optimizer.step(rateAt(this.update, this.updates, this.rate));
    this.update += 1;
    return loss;
  }

  // Read the same games each time. Returns for each answer whether it is right: 1, 0,
  // or 2 where there is no question; rows are steps.
  test(length, games) {
    this.draw(generator(12345), games, length);
    const steps = this.task.steps(length);
    this.model.loss(this.tokens, this.labels, games, steps, false);
    return this.model.right.slice(0, games * steps);
  }

  // The states of the last test along their two main directions, [rows, 2], and the
  // label of each. Directions start from those before, so that points move smoothly.
  cloud(rows) {
    const d = this.model.config.d_model;
    const { states } = this.model;
    this.directions ??= [new Float64Array(d), new Float64Array(d)].map(
      (direction, n) => direction.map((_, i) => Math.cos((n + 1) * i + n)));
    const mean = new Float64Array(d);
    for (let k = 0; k < rows * d; k++) mean[k % d] += states[k] / rows;
    const points = new Float32Array(2 * rows);
    const project = () => {
      for (let r = 0; r < rows; r++) {
        this.directions.forEach((direction, n) => {
          let sum = 0;
          for (let i = 0; i < d; i++) {
            sum += (states[r * d + i] - mean[i]) * direction[i];
          }
          points[2 * r + n] = sum;
        });
      }
    };
    for (let round = 0; round < 3; round++) { // power iterations
      project();
      this.directions.forEach((direction, n) => {
        direction.fill(0);
        for (let k = 0; k < rows * d; k++) {
          const r = Math.floor(k / d);
          direction[k % d] += points[2 * r + n] * (states[k] - mean[k % d]);
        }
      });
      orthonormalise(...this.directions);
    }
    project();
    return { points, labels: this.labels.slice(0, rows) };
  }
}

function orthonormalise(first, second) {
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const shorten = (a) => {
    const size = Math.sqrt(dot(a, a)) || 1;
    for (let i = 0; i < a.length; i++) a[i] /= size;
  };
  shorten(first);
  const shared = dot(first, second);
  for (let i = 0; i < second.length; i++) second[i] -= shared * first[i];
  shorten(second);
}
