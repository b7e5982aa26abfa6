// One layer of torch's LSTM between the embedding and the head.
class Lstm extends Model {
  constructor(config, random) {
    super(config);
    const { vocab_size: vocabulary, d_model: d } = config;
    const uniform = () => d ** -0.5 * (2 * random() - 1);
    this.declare("token_embedding.weight", [vocabulary, d], () => normal(random));
    for (const kind of ["ih", "hh"]) {
      this.declare(`lstm.weight_${kind}_l0`, [4 * d, d], uniform);
      this.declare(`lstm.bias_${kind}_l0`, [4 * d], uniform);
    }
    this.linear("head", vocabulary, d, random);
    this.build();
  }

  allocate(rows) {
    const d = this.config.d_model;
    const array = (width = d) => new Float32Array(rows * width);
    Object.assign(this, {
      x: array(), h: array(), cell: array(), gates: array(4 * d),
      dx: array(), dh: array(), dcell: array(), dgates: array(4 * d),
    });
    this.allocateOutputs(rows);
  }

  run() {
    const { x, h, gates, rows, batch, length, config: { d_model: d } } = this;
    this.embed(x);
    const other = this.data("lstm.bias_hh_l0");
    const bias = this.data("lstm.bias_ih_l0").map((b, i) => b + other[i]);
    fill(gates, 0, rows, 4 * d, bias);
    multiply(gates, x, this.data("lstm.weight_ih_l0"), 0, rows, d, 4 * d);
    const w = this.data("lstm.weight_hh_l0");
    for (let t = 0; t < length; t++) {
      const now = gates.subarray(t * batch * 4 * d);
      if (t) multiply(now, h.subarray((t - 1) * batch * d), w, 0, batch, d, 4 * d);
      for (let r = t * batch; r < (t + 1) * batch; r++) this.update(r, t > 0);
    }
    this.apply(this.logits, h, "head", 0, rows);
  }

  // The new cell and output of row r, from its gates before their activations.
  update(r, continues) {
    const { h, cell, gates, batch, config: { d_model: d } } = this;
    for (let i = 0; i < d; i++) {
      const k = r * 4 * d + i;
      const input = gates[k] = 1 / (1 + Math.exp(-gates[k]));
      const forget = gates[k + d] = 1 / (1 + Math.exp(-gates[k + d]));
      const fresh = gates[k + 2 * d] = Math.tanh(gates[k + 2 * d]);
      const output = gates[k + 3 * d] = 1 / (1 + Math.exp(-gates[k + 3 * d]));
      const old = continues ? cell[(r - batch) * d + i] : 0;
      cell[r * d + i] = forget * old + input * fresh;
      h[r * d + i] = output * Math.tanh(cell[r * d + i]);
    }
  }

  runBackward() {
    const { x, dx, h, dh, dcell, dgates, rows, batch, length, gradients } = this;
    const d = this.config.d_model;
    for (const array of [dx, dh, dcell]) array.fill(0, 0, rows * d);
    this.applyBackward(dh, this.logitSlopes, "head", 0, rows);
    const w = this.transposed["lstm.weight_hh_l0"];
    for (let t = length - 1; t >= 0; t--) {
      for (let r = t * batch; r < (t + 1) * batch; r++) this.updateBackward(r, t > 0);
      const now = dgates.subarray(t * batch * 4 * d);
      if (t) multiply(dh.subarray((t - 1) * batch * d), now, w, 0, batch, 4 * d, d);
    }
    multiply(dx, dgates, this.transposed["lstm.weight_ih_l0"], 0, rows, 4 * d, d);
    this.embedBackward(dx);
    multiplyTransposed(gradients["lstm.weight_ih_l0"], dgates, x, 0, rows, d, 4 * d);
    const later = dgates.subarray(batch * 4 * d); // each beside the step before it
    const recurrent = gradients["lstm.weight_hh_l0"];
    multiplyTransposed(recurrent, later, h, 0, rows - batch, d, 4 * d);
    for (const kind of ["ih", "hh"]) {
      addRows(gradients[`lstm.bias_${kind}_l0`], dgates, 0, rows, 4 * d);
    }
    this.addGradients(this.logitSlopes, h, "head", 0, rows);
  }

  updateBackward(r, continues) {
    const { cell, gates, dh, dcell, dgates, batch, config: { d_model: d } } = this;
    for (let i = 0; i < d; i++) {
      const k = r * 4 * d + i;
      const n = r * d + i;
      const [input, forget] = [gates[k], gates[k + d]];
      const [fresh, output] = [gates[k + 2 * d], gates[k + 3 * d]];
      const bent = Math.tanh(cell[n]);
      const slope = dcell[n] + dh[n] * output * (1 - bent * bent);
      const old = continues ? cell[n - batch * d] : 0;
      dgates[k] = slope * fresh * input * (1 - input);
      dgates[k + d] = slope * old * forget * (1 - forget);
      dgates[k + 2 * d] = slope * input * (1 - fresh * fresh);
      dgates[k + 3 * d] = dh[n] * bent * output * (1 - output);
      if (continues) dcell[n - batch * d] = slope * forget;
    }
  }

  get states() {
    return this.h;
  }
}
