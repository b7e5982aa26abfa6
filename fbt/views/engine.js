// The models of the package in plain JavaScript, one sequence, one step at a time.
//
// A plain script without imports or exports, so that it can be joined with others: in
// a worker that is made of a text, in Node, in a page.
//
// Parameters are an object {name: {shape: [...], data: Float32Array}}. Names, shapes
// and layout are those of the model's `state_dict()` in PyTorch: a weight is
// [out, in], row by row. A config has the fields of `fbt.Config`, with their names:
// vocab_size, variant, d_model, n_heads, n_layers, d_ff, span, activation,
// memory_norm, memory, relative. A final norm is applied if there is one.
//
// Symbols are those of `fbt/language_model.py`: steps t, layers L, heads H of width D,
// width d, span S, memory vector m. Sums are in float64, vectors in float32.

const SMALLEST_VARIANCE = 1e-5; // is added in every layer norm

// Unpack what `fbt.views.packing.pack` wrote: float32, or rows of int8 that follow
// their float16 scales. `data` is base64; every tensor begins at a multiple of 4.
function unpack({ tensors, data }) {
  const { buffer } = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const parameters = {};
  for (const [name, shape, kind, start] of tensors) {
    const size = shape.reduce((a, b) => a * b, 1);
    let values = new Float32Array(size);
    if (kind === "float32") {
      values = new Float32Array(buffer, start, size);
    } else {
      const columns = shape.at(-1);
      const rows = size / columns;
      const scales = new Uint16Array(buffer, start, rows);
      const levels = new Int8Array(buffer, start + 4 * Math.ceil(rows / 2), size);
      for (let row = 0; row < rows; row++) {
        const scale = fromHalf(scales[row]);
        for (let i = row * columns; i < (row + 1) * columns; i++) {
          values[i] = scale * levels[i];
        }
      }
    }
    parameters[name] = { shape, data: values };
  }
  return parameters;
}

// The number whose float16 has these bits; scales are positive and finite.
function fromHalf(bits) {
  const [exponent, fraction] = [bits >> 10, bits & 1023];
  return exponent
    ? (1 + fraction / 1024) * 2 ** (exponent - 15)
    : fraction * 2 ** -24;
}

// out = W x + b for W [rows, columns].
function matVec(W, x, out, b) {
  const columns = x.length;
  const even = columns - (columns % 4);
  for (let row = 0, i = 0; row < out.length; row++) {
    let [a0, a1, a2, a3] = [b ? b[row] : 0, 0, 0, 0];
    let c = 0;
    for (; c < even; c += 4, i += 4) { // four sums that do not wait for each other
      a0 += W[i] * x[c];
      a1 += W[i + 1] * x[c + 1];
      a2 += W[i + 2] * x[c + 2];
      a3 += W[i + 3] * x[c + 3];
    }
    for (; c < columns; c++, i++) a0 += W[i] * x[c];
    out[row] = a0 + a1 + a2 + a3;
  }
}

function layerNorm(x, gain, bias, out) {
  let mean = 0;
  for (const value of x) mean += value;
  mean /= x.length;
  let variance = 0;
  for (const value of x) variance += (value - mean) ** 2;
  const scale = 1 / Math.sqrt(variance / x.length + SMALLEST_VARIANCE);
  for (let i = 0; i < x.length; i++) out[i] = (x[i] - mean) * scale * gain[i] + bias[i];
}

// x (1 + erf(x / sqrt 2)) / 2; the error function by its series of positive terms.
function gelu(x) {
  const z = Math.abs(x) * Math.SQRT1_2;
  if (z > 6) return x > 0 ? x : 0; // erf is 1 in float64
  let [term, sum] = [z, 0];
  for (let n = 1; term > 1e-17 * sum; n++) {
    sum += term;
    term *= (2 * z * z) / (2 * n + 1);
  }
  const erf = Math.sign(x) * (2 / Math.sqrt(Math.PI)) * Math.exp(-z * z) * sum;
  return 0.5 * x * (1 + erf);
}

// The shares of layers 0..L in the memory vector.
function mixtureOf({ memory, n_layers: layers }, parameters) {
  const shares = new Float64Array(layers + 1);
  if (memory === "learned") {
    shares.set(probabilities(parameters["body.memory.layer_logits"].data));
  } else if (memory === "uniform") {
    shares.fill(1 / (layers + 1));
  } else {
    shares[memory === "top" ? layers : 0] = 1;
  }
  return shares;
}

// What `fbt.generation.probabilities` returns: zero outside the k largest logits.
// Temperature 0 gives all to the largest one.
function probabilities(logits, temperature = 1, topK = logits.length) {
  const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]);
  const shares = new Float64Array(logits.length);
  const kept = order.slice(0, temperature === 0 ? 1 : topK);
  let total = 0;
  for (const token of kept) {
    const gap = logits[token] - logits[order[0]];
    total += shares[token] = gap === 0 ? 1 : Math.exp(gap / temperature);
  }
  for (const token of kept) shares[token] /= total;
  return shares;
}

// The token at which the running sum of probabilities passes u, from [0, 1).
function draw(shares, u) {
  let sum = 0;
  let last = 0;
  for (let token = 0; token < shares.length; token++) {
    if (shares[token] === 0) continue;
    sum += shares[token];
    last = token;
    if (u < sum) return token;
  }
  return last; // the sum was rounded to less than 1
}

// Number `index` of the random sequence of a seed, from [0, 1) in steps of 2^-32: the
// bits of a counter, mixed as in SplitMix with the constants of MurmurHash3. Since the
// number depends on the index alone, a pause does not change what is drawn after it.
function uniform(seed, index) {
  let z = seed + Math.imul(index + 1, 0x9e3779b9);
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
  return ((z ^ (z >>> 16)) >>> 0) / 2 ** 32;
}

// A model that reads a text. It keeps the keys and values of all steps, not only of
// the span, so that a text can be changed anywhere: `rewind`, then `step` again.
class Reader {
  constructor(config, parameters) {
    const { d_model: d, n_layers: layers, n_heads: heads } = config;
    this.config = config;
    const data = (name) => parameters[name]?.data;
    this.embedding = data("token_embedding.weight");
    this.isParallel = config.variant === "parallel";
    this.caches = config.variant === "shared-kv" ? 1 : layers;
    const isShared = config.relative === "shared";
    this.layers = Array.from({ length: layers }, (_, l) => {
      const own = (name) => data(`body.layers.${l}.${name}`);
      const relative = (name) => data(`body.relative.${isShared ? 0 : l}.${name}`);
      const project = this.isParallel
        ? `body.layers.${l}.key_value` : `body.key_values.${l % this.caches}`;
      return {
        gain1: own("norm1.weight"), bias1: own("norm1.bias"),
        query: own("attention.query.weight"),
        output: own("attention.output.weight"),
        outputBias: own("attention.output.bias"),
        gain2: own("norm2.weight"), bias2: own("norm2.bias"),
        inner: own("feed_forward.inner.weight"),
        innerBias: own("feed_forward.inner.bias"),
        outer: own("feed_forward.outer.weight"),
        outerBias: own("feed_forward.outer.bias"),
        E: relative("key_embedding"), s: relative("key_bias"), u: relative("query_bias"),
        key: data(`${project}.key.weight`), value: data(`${project}.value.weight`),
      };
    });
    this.mixture = this.isParallel ? null : mixtureOf(config, parameters);
    this.memoryGain = data("body.memory.norm.weight");
    this.memoryBias = data("body.memory.norm.bias");
    this.gain = data("norm.weight");
    this.bias = data("norm.bias");
    this.head = data("head.weight");
    this.headBias = data("head.bias");
    // Embedding and outputs of the layers at the latest step, [L + 1, d], and m.
    this.outputs = Array.from({ length: layers + 1 }, () => new Float32Array(d));
    this.memory = new Float32Array(d);
    this.logits = new Float32Array(config.vocab_size);
    this.rows = config.span + (this.isParallel ? 1 : 0); // of the relative tables
    // Weights [L, H] of the latest step over the `seen` newest keys, the newest last.
    this.weights = Array.from({ length: layers }, () =>
      Array.from({ length: heads }, () => new Float32Array(this.rows)));
    this.z = new Float32Array(d);
    this.q = new Float32Array(d);
    this.attended = new Float32Array(d);
    this.added = new Float32Array(d);
    this.hidden = new Float32Array(config.d_ff);
    this.scores = new Float64Array(this.rows);
    this.keys = Array.from({ length: this.caches }, () => new Float32Array(64 * d));
    this.values = Array.from({ length: this.caches }, () => new Float32Array(64 * d));
    this.length = 0;
    this.seen = 0;
  }

  // Forget the steps from `length` on.
  rewind(length) {
    this.length = Math.min(this.length, length);
  }

  // Read one more token. Returns the logits of the next one, which the following call
  // overwrites, as it does `weights`, `outputs` and `memory`.
  step(token) {
    const { config: { d_model: d, n_layers: layers }, length: t } = this;
    this.reserve(t + 1);
    this.outputs[0].set(this.embedding.subarray(token * d, (token + 1) * d));
    this.seen = Math.min(this.isParallel ? t + 1 : t, this.rows);
    for (let l = 0; l < layers; l++) this.runLayer(l);
    if (!this.isParallel) this.remember();
    let top = this.outputs[layers];
    if (this.gain) {
      layerNorm(top, this.gain, this.bias, this.z);
      top = this.z;
    }
    matVec(this.head, top, this.logits, this.headBias);
    this.length = t + 1;
    return this.logits;
  }

  reserve(steps) {
    const size = steps * this.config.d_model;
    if (size <= this.keys[0].length) return;
    for (const kind of [this.keys, this.values]) {
      kind.forEach((old, cache) => {
        kind[cache] = new Float32Array(2 * size);
        kind[cache].set(old);
      });
    }
  }

  // Project z to the key and value of the current step.
  store(cache, { key, value }, z) {
    const [start, end] = [this.length, this.length + 1].map((t) => t * z.length);
    matVec(key, z, this.keys[cache].subarray(start, end));
    matVec(value, z, this.values[cache].subarray(start, end));
  }

  runLayer(l) {
    const layer = this.layers[l];
    const { z, added, hidden, config: { activation } } = this;
    const x = this.outputs[l + 1];
    x.set(this.outputs[l]);
    layerNorm(x, layer.gain1, layer.bias1, z);
    if (this.isParallel) this.store(l, layer, z);
    if (this.seen) { // step 0 of a feedback model has no memory, and skips attention
      matVec(layer.query, z, this.q);
      this.attend(l);
      matVec(layer.output, this.attended, added, layer.outputBias);
      for (let i = 0; i < x.length; i++) x[i] += added[i];
    }
    layerNorm(x, layer.gain2, layer.bias2, z);
    matVec(layer.inner, z, hidden, layer.innerBias);
    if (activation === "relu") {
      for (let i = 0; i < hidden.length; i++) if (hidden[i] < 0) hidden[i] = 0;
    } else {
      for (let i = 0; i < hidden.length; i++) hidden[i] = gelu(hidden[i]);
    }
    matVec(layer.outer, hidden, added, layer.outerBias);
    for (let i = 0; i < x.length; i++) x[i] += added[i];
  }

  // Attention of all heads of a layer; the equation is in fbt/attention.py.
  attend(l) {
    const { q, attended, scores, seen, rows, config } = this;
    const { E, s, u } = this.layers[l];
    const { d_model: d, n_heads: heads } = config;
    const D = d / heads;
    const keys = this.keys[l % this.caches];
    const values = this.values[l % this.caches];
    const first = (this.length + (this.isParallel ? 1 : 0) - seen) * d;
    attended.fill(0);
    for (let h = 0; h < heads; h++) {
      const own = h * D;
      let row = h * rows + rows - seen;
      let largest = -Infinity;
      for (let j = 0; j < seen; j++, row++) {
        const [k, e] = [first + j * d + own, row * D];
        let score = s[row];
        for (let i = 0; i < D; i++) {
          const query = q[own + i];
          score += (query + u[own + i]) * keys[k + i] + query * E[e + i];
        }
        scores[j] = score / Math.sqrt(D);
        if (scores[j] > largest) largest = scores[j];
      }
      let total = 0;
      for (let j = 0; j < seen; j++) {
        scores[j] = Math.exp(scores[j] - largest);
        total += scores[j];
      }
      const weights = this.weights[l][h];
      for (let j = 0; j < seen; j++) {
        const weight = scores[j] / total;
        weights[j] = weight;
        const v = first + j * d + own;
        for (let i = 0; i < D; i++) attended[own + i] += weight * values[v + i];
      }
    }
  }

  // Mix the memory vector of the current step, and store its keys and values.
  remember() {
    const { memory, mixture, outputs } = this;
    for (let i = 0; i < memory.length; i++) {
      let sum = 0;
      for (let l = 0; l < mixture.length; l++) sum += mixture[l] * outputs[l][i];
      memory[i] = sum;
    }
    let z = memory;
    if (this.memoryGain) {
      layerNorm(memory, this.memoryGain, this.memoryBias, this.z);
      z = this.z;
    }
    for (let cache = 0; cache < this.caches; cache++) {
      this.store(cache, this.layers[cache], z);
    }
  }

  // The share of the embedding and of each layer in the latest memory vector, as
  // `fbt.views.trace.memory_shares` defines it.
  memoryShares() {
    const { memory, mixture, outputs } = this;
    const mean = (vector) => vector.reduce((a, b) => a + b, 0) / vector.length;
    const center = mean(memory);
    const square = memory.reduce((sum, value) => sum + (value - center) ** 2, 0);
    return outputs.map((output, l) => {
      const below = l ? outputs[l - 1] : new Float32Array(output.length);
      const added = output.map((value, i) => value - below[i]);
      const share = mixture.slice(l).reduce((a, b) => a + b, 0);
      const own = mean(added);
      const along = (v, i) => (v - own) * (memory[i] - center);
      return (share * added.reduce((sum, v, i) => sum + along(v, i), 0)) / square;
    });
  }
}
