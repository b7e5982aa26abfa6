// A model with the body "parallel" or "shared-kv" of the package; its memory is
// "learned", "top" or "embedding". Without `head_norm`, there is no norm before the
// head.
class Transformer extends Model {
  constructor(config, random) {
    super(config);
    const { vocab_size: vocabulary, d_model: d, n_heads: heads } = config;
    const { n_layers: L, span, d_ff: inner = 4 * d } = config;
    this.parallel = config.variant === "parallel";
    this.distances = this.parallel ? span + 1 : span; // a parallel step sees itself
    this.inner = inner;
    this.layers = Array.from({ length: L }, (_, l) => `body.layers.${l}`);
    this.declare("token_embedding.weight", [vocabulary, d], () => normal(random));
    this.layers.forEach((name, l) => {
      const relative = `body.relative.${l}`;
      const [width, distances] = [d / heads, this.distances];
      this.declare(`${relative}.key_embedding`, [heads, distances, width], () => 0);
      this.declare(`${relative}.key_bias`, [heads, distances], (i) => {
        const head = Math.floor(i / distances);
        const slope = heads > 1 ? 64 ** (-head / (heads - 1)) : 1;
        const back = distances - 1 - (i % distances);
        return -Math.min(32, slope * back) * Math.sqrt(width);
      });
      this.declare(`${relative}.query_bias`, [heads, width], () => 0);
      const scale = (2 * L) ** -0.5;
      this.norm(`${name}.norm1`, d);
      if (this.parallel) this.keyValue(`${name}.key_value`, random);
      this.linear(`${name}.attention.query`, d, d, random, { bias: false });
      this.linear(`${name}.attention.output`, d, d, random, { scale });
      this.norm(`${name}.norm2`, d);
      this.linear(`${name}.feed_forward.inner`, inner, d, random);
      this.linear(`${name}.feed_forward.outer`, d, inner, random, { scale });
    });
    if (!this.parallel) {
      if (config.memory === "learned") {
        this.declare("body.memory.layer_logits", [L + 1], () => 0);
      }
      this.norm("body.memory.norm", d);
      this.keyValue("body.key_values.0", random);
    }
    if (config.head_norm) this.norm("norm", d);
    this.linear("head", vocabulary, d, random);
    this.build();
  }

  keyValue(name, random) {
    const d = this.config.d_model;
    this.linear(`${name}.key`, d, d, random, { bias: false });
    this.linear(`${name}.value`, d, d, random, { bias: false });
  }

  allocate(rows) {
    const { d_model: d, n_heads: heads } = this.config;
    const array = (width = d) => new Float32Array(rows * width);
    const kept = () => ({ rows: array(), scales: array(1) });
    const cache = () => ({ k: array(), v: array(), dk: array(), dv: array() });
    this.x = this.layers.map(() => array());
    this.x.push(array());
    this.dx = this.x.map(() => array());
    const shared = this.parallel ? null : cache();
    this.kept = this.layers.map(() => ({
      z1: array(), norm1: kept(), q: array(), attended: array(),
      middle: array(), z2: array(), norm2: kept(), hidden: array(this.inner),
      dq: array(), dmiddle: array(), dhidden: array(this.inner),
      weights: new Float32Array(0), cache: shared ?? cache(),
    }));
    Object.assign(this, {
      memory: array(), memoryNorm: kept(), normed: array(), dnormed: array(),
      headInput: array(), headNorm: kept(), dz: array(), dattended: array(),
      dmemory: array(), heads,
    });
    this.allocateOutputs(rows);
  }

  run() {
    const { batch, length, rows, layers, config } = this;
    this.columns = Math.min(length, this.distances); // keys that a query may see
    for (const kept of this.kept) {
      const size = rows * config.n_heads * this.columns;
      if (kept.weights.length < size) kept.weights = new Float32Array(size);
    }
    this.embed(this.x[0]);
    this.mixture = this.parallel ? null : this.layerWeights();
    if (this.parallel) layers.forEach((_, l) => this.layer(l, 0, length));
    for (let t = 0; t < length && !this.parallel; t++) { // one step after another
      for (let l = 0; l < layers.length; l++) this.layer(l, t, t + 1);
      this.remember(t * batch, (t + 1) * batch);
    }
    let top = this.x[layers.length];
    if (config.head_norm) {
      const [w, b] = [this.data("norm.weight"), this.data("norm.bias")];
      normalise(this.headInput, this.headNorm, top, w, b, 0, rows, config.d_model);
      top = this.headInput;
    }
    this.top = top;
    this.apply(this.logits, top, "head", 0, rows);
  }

  // The mixture w [L + 1] of the memory vector.
  layerWeights() {
    const count = this.layers.length + 1;
    const { memory } = this.config;
    if (memory === "learned") {
      const logits = this.data("body.memory.layer_logits");
      const top = Math.max(...logits);
      const exps = Array.from(logits, (logit) => Math.exp(logit - top));
      const sum = exps.reduce((a, b) => a + b);
      return exps.map((value) => value / sum);
    }
    return Array.from({ length: count }, (_, l) =>
      Number(l === (memory === "top" ? count - 1 : 0)));
  }

  // Layer l on steps first..last.
  layer(l, first, last) {
    const { batch, config: { d_model: d } } = this;
    const [from, to] = [first * batch, last * batch];
    const [name, s] = [this.layers[l], this.kept[l]];
    const read = this.parallel || first > 0; // step 0 has no memory
    if (read) {
      const w = this.data(`${name}.norm1.weight`);
      const b = this.data(`${name}.norm1.bias`);
      normalise(s.z1, s.norm1, this.x[l], w, b, from, to, d);
      if (this.parallel) {
        this.apply(s.cache.k, s.z1, `${name}.key_value.key`, from, to);
        this.apply(s.cache.v, s.z1, `${name}.key_value.value`, from, to);
      }
      this.apply(s.q, s.z1, `${name}.attention.query`, from, to);
      for (let t = first; t < last; t++) this.attend(l, t);
      const output = `${name}.attention.output`;
      this.apply(s.middle, s.attended, output, from, to, this.x[l]);
    } else {
      fill(s.middle, from, to, d, null, this.x[l]);
    }
    const w = this.data(`${name}.norm2.weight`);
    const b = this.data(`${name}.norm2.bias`);
    normalise(s.z2, s.norm2, s.middle, w, b, from, to, d);
    this.apply(s.hidden, s.z2, `${name}.feed_forward.inner`, from, to);
    for (let i = from * this.inner; i < to * this.inner; i++) {
      if (s.hidden[i] < 0) s.hidden[i] = 0;
    }
    const outer = `${name}.feed_forward.outer`;
    this.apply(this.x[l + 1], s.hidden, outer, from, to, s.middle);
  }

  // Mix the outputs of rows from..to into memory vectors, and project these.
  remember(from, to) {
    const { memory, normed, mixture, config: { d_model: d } } = this;
    const name = "body.memory.norm";
    const { k, v } = this.kept[0].cache;
    memory.fill(0, from * d, to * d);
    mixture.forEach((share, l) => {
      if (!share) return;
      const x = this.x[l];
      for (let i = from * d; i < to * d; i++) memory[i] += share * x[i];
    });
    const [w, b] = [this.data(`${name}.weight`), this.data(`${name}.bias`)];
    normalise(normed, this.memoryNorm, memory, w, b, from, to, d);
    this.apply(k, normed, "body.key_values.0.key", from, to);
    this.apply(v, normed, "body.key_values.0.value", from, to);
  }

  // The keys that step t sees: the first, the last, and the row of the tables E and s
  // that belongs to key 0. The last row belongs to the last key.
  seen(t) {
    const last = this.parallel ? t : t - 1;
    const first = Math.max(0, last + 1 - this.distances);
    return { first, last, offset: this.distances - 1 - last };
  }

  attend(l, t) {
    const { batch, columns, distances } = this;
    const { d_model: d, n_heads: heads } = this.config;
    const { q, attended, weights, cache: { k, v } } = this.kept[l];
    const relative = `body.relative.${l}`;
    const E = this.data(`${relative}.key_embedding`);
    const s = this.data(`${relative}.key_bias`);
    const u = this.data(`${relative}.query_bias`);
    const { first, last, offset } = this.seen(t);
    const D = d / heads;
    const scale = D ** -0.5;
    for (let b = 0; b < batch; b++) {
      for (let h = 0; h < heads; h++) {
        const here = (t * batch + b) * d + h * D;
        const p = ((t * batch + b) * heads + h) * columns - first;
        let top = -Infinity;
        for (let j = first; j <= last; j++) {
          const key = (j * batch + b) * d + h * D;
          const row = h * distances + offset + j;
          let score = s[row];
          for (let c = 0; c < D; c++) {
            const query = q[here + c];
            score += (query + u[h * D + c]) * k[key + c] + query * E[row * D + c];
          }
          weights[p + j] = score * scale;
          if (weights[p + j] > top) top = weights[p + j];
        }
        let sum = 0;
        for (let j = first; j <= last; j++) {
          sum += weights[p + j] = Math.exp(weights[p + j] - top);
        }
        for (let c = 0; c < D; c++) attended[here + c] = 0;
        for (let j = first; j <= last; j++) {
          const weight = weights[p + j] /= sum;
          const value = (j * batch + b) * d + h * D;
          for (let c = 0; c < D; c++) attended[here + c] += weight * v[value + c];
        }
      }
    }
  }

  // From dattended: dq of step t, and what its keys and values and the tables get.
  attendBackward(l, t) {
    const { batch, columns, distances, dattended, gradients } = this;
    const { d_model: d, n_heads: heads } = this.config;
    const { q, dq, weights, cache: { k, v, dk, dv } } = this.kept[l];
    const relative = `body.relative.${l}`;
    const E = this.data(`${relative}.key_embedding`);
    const u = this.data(`${relative}.query_bias`);
    const dE = gradients[`${relative}.key_embedding`];
    const ds = gradients[`${relative}.key_bias`];
    const du = gradients[`${relative}.query_bias`];
    const { first, last, offset } = this.seen(t);
    const D = d / heads;
    const scale = D ** -0.5;
    for (let b = 0; b < batch; b++) {
      for (let h = 0; h < heads; h++) {
        const here = (t * batch + b) * d + h * D;
        const p = ((t * batch + b) * heads + h) * columns - first;
        let mean = 0; // of the weights' gradients, which are the products with values
        for (let c = 0; c < D; c++) {
          mean += dattended[here + c] * this.kept[l].attended[here + c];
        }
        for (let c = 0; c < D; c++) dq[here + c] = 0;
        for (let j = first; j <= last; j++) {
          const key = (j * batch + b) * d + h * D;
          const row = h * distances + offset + j;
          const weight = weights[p + j];
          let slope = 0;
          for (let c = 0; c < D; c++) {
            const given = dattended[here + c];
            slope += given * v[key + c];
            dv[key + c] += weight * given;
          }
          slope = weight * (slope - mean) * scale;
          ds[row] += slope;
          for (let c = 0; c < D; c++) {
            const query = q[here + c];
            dq[here + c] += slope * (k[key + c] + E[row * D + c]);
            dk[key + c] += slope * (query + u[h * D + c]);
            dE[row * D + c] += slope * query;
            du[h * D + c] += slope * k[key + c];
          }
        }
      }
    }
  }

  runBackward() {
    const { rows, layers, length, batch, config, gradients } = this;
    const d = config.d_model;
    for (const dx of this.dx) dx.fill(0, 0, rows * d);
    for (const { cache } of this.kept) {
      cache.dk.fill(0, 0, rows * d);
      cache.dv.fill(0, 0, rows * d);
    }
    this.mixtureSlopes = new Float64Array(layers.length + 1);
    const dtop = this.dx[layers.length];
    if (config.head_norm) {
      this.dz.fill(0, 0, rows * d);
      this.applyBackward(this.dz, this.logitSlopes, "head", 0, rows);
      const [gw, gb] = [gradients["norm.weight"], gradients["norm.bias"]];
      const w = this.data("norm.weight");
      normaliseBackward(dtop, this.dz, this.headNorm, w, gw, gb, 0, rows, d);
    } else {
      this.applyBackward(dtop, this.logitSlopes, "head", 0, rows);
    }
    if (this.parallel) {
      for (let l = layers.length - 1; l >= 0; l--) this.layerBackward(l, 0, length);
    } else {
      for (let t = length - 1; t >= 0; t--) {
        if (t < length - 1) this.rememberBackward(t * batch, (t + 1) * batch);
        for (let l = layers.length - 1; l >= 0; l--) this.layerBackward(l, t, t + 1);
      }
    }
    this.embedBackward(this.dx[0]);
    this.addWeightGradients();
  }

  layerBackward(l, first, last) {
    const { batch, inner, gradients, dz, config: { d_model: d } } = this;
    const [from, to] = [first * batch, last * batch];
    const [name, s] = [this.layers[l], this.kept[l]];
    const [dx, dout] = [this.dx[l], this.dx[l + 1]];
    s.dhidden.fill(0, from * inner, to * inner);
    this.applyBackward(s.dhidden, dout, `${name}.feed_forward.outer`, from, to);
    for (let i = from * inner; i < to * inner; i++) {
      if (!s.hidden[i]) s.dhidden[i] = 0;
    }
    dz.fill(0, from * d, to * d);
    this.applyBackward(dz, s.dhidden, `${name}.feed_forward.inner`, from, to);
    fill(s.dmiddle, from, to, d, null, dout);
    const norm = (number, out, kept) => {
      const weight = `${name}.norm${number}.weight`;
      const gb = gradients[`${name}.norm${number}.bias`];
      const w = this.data(weight);
      normaliseBackward(out, dz, kept, w, gradients[weight], gb, from, to, d);
    };
    norm(2, s.dmiddle, s.norm2);
    for (let i = from * d; i < to * d; i++) dx[i] += s.dmiddle[i];
    if (!this.parallel && first === 0) return;
    this.dattended.fill(0, from * d, to * d);
    const output = `${name}.attention.output`;
    this.applyBackward(this.dattended, s.dmiddle, output, from, to);
    for (let t = last - 1; t >= first; t--) this.attendBackward(l, t);
    dz.fill(0, from * d, to * d);
    this.applyBackward(dz, s.dq, `${name}.attention.query`, from, to);
    if (this.parallel) {
      this.applyBackward(dz, s.cache.dk, `${name}.key_value.key`, from, to);
      this.applyBackward(dz, s.cache.dv, `${name}.key_value.value`, from, to);
    }
    norm(1, dx, s.norm1);
  }

  rememberBackward(from, to) {
    const { dnormed, dmemory, gradients, mixture, config: { d_model: d } } = this;
    const { dk, dv } = this.kept[0].cache;
    dnormed.fill(0, from * d, to * d);
    dmemory.fill(0, from * d, to * d);
    this.applyBackward(dnormed, dk, "body.key_values.0.key", from, to);
    this.applyBackward(dnormed, dv, "body.key_values.0.value", from, to);
    const name = "body.memory.norm";
    const [gw, gb] = [gradients[`${name}.weight`], gradients[`${name}.bias`]];
    const w = this.data(`${name}.weight`);
    normaliseBackward(dmemory, dnormed, this.memoryNorm, w, gw, gb, from, to, d);
    mixture.forEach((share, l) => {
      const [x, dx] = [this.x[l], this.dx[l]];
      let sum = 0;
      for (let i = from * d; i < to * d; i++) {
        sum += dmemory[i] * x[i];
        dx[i] += share * dmemory[i];
      }
      this.mixtureSlopes[l] += sum;
    });
  }

  // The gradients of matrices and biases, from all steps at once.
  addWeightGradients() {
    const { rows, batch, layers, mixture, mixtureSlopes } = this;
    const read = this.parallel ? 0 : batch; // the first row that reads
    layers.forEach((name, l) => {
      const s = this.kept[l];
      const dout = this.dx[l + 1];
      this.addGradients(dout, s.hidden, `${name}.feed_forward.outer`, 0, rows);
      this.addGradients(s.dhidden, s.z2, `${name}.feed_forward.inner`, 0, rows);
      const output = `${name}.attention.output`;
      this.addGradients(s.dmiddle, s.attended, output, read, rows);
      this.addGradients(s.dq, s.z1, `${name}.attention.query`, read, rows);
      if (!this.parallel) return;
      this.addGradients(s.cache.dk, s.z1, `${name}.key_value.key`, 0, rows);
      this.addGradients(s.cache.dv, s.z1, `${name}.key_value.value`, 0, rows);
    });
    if (!this.parallel) {
      const { dk, dv } = this.kept[0].cache;
      this.addGradients(dk, this.normed, "body.key_values.0.key", 0, rows);
      this.addGradients(dv, this.normed, "body.key_values.0.value", 0, rows);
      const logits = this.gradients["body.memory.layer_logits"];
      const mean = mixture.reduce((sum, w, l) => sum + w * mixtureSlopes[l], 0);
      for (let l = 0; logits && l < mixture.length; l++) {
        logits[l] += mixture[l] * (mixtureSlopes[l] - mean);
      }
    }
    this.addGradients(this.logitSlopes, this.top, "head", 0, rows);
  }

  // The vectors that later steps read: memories, or the top layer's outputs.
  get states() {
    return this.parallel ? this.x[this.layers.length] : this.normed;
  }
}
