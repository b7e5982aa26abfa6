// The base of the models that train in a page, whose backward is derived by hand.
//
// They are those of the package: parameters have the names, shapes and initial
// distributions of PyTorch's `state_dict`, a config the keys of `fbt.Config`. Symbols
// as there: B sequences, T steps, d width, H heads of width D, S span. All arrays are
// kept from update to update.

// The parameters of a model in one array, and their gradients in another.
class Model {
  constructor(config) {
    this.config = config;
    this.specs = [];
    this.capacity = 0;
  }

  // Declare a parameter; `draw` returns its initial values, one after another.
  declare(name, shape, draw) {
    this.specs.push({ name, shape, draw, size: shape.reduce((a, b) => a * b, 1) });
  }

  // Declare a linear layer, initialised as torch does.
  linear(name, outer, inner, random, { bias = true, scale = 1 } = {}) {
    const bound = inner ** -0.5;
    const uniform = () => bound * (2 * random() - 1);
    this.declare(`${name}.weight`, [outer, inner], () => scale * uniform());
    // Outputs that are added to the residual stream are scaled, and start unbiased.
    if (bias) this.declare(`${name}.bias`, [outer], scale === 1 ? uniform : () => 0);
  }

  norm(name, width) {
    this.declare(`${name}.weight`, [width], () => 1);
    this.declare(`${name}.bias`, [width], () => 0);
  }

  // Allocate and draw the declared parameters.
  build() {
    const size = this.specs.reduce((total, spec) => total + spec.size, 0);
    this.values = new Float32Array(size);
    this.slopes = new Float32Array(size);
    this.decays = new Uint8Array(size); // whether weight decay applies
    this.parameters = {};
    this.gradients = {};
    this.transposed = {};
    let start = 0;
    for (const { name, shape, draw, size: length } of this.specs) {
      const part = (whole) => whole.subarray(start, start + length);
      const data = part(this.values);
      for (let i = 0; i < length; i++) data[i] = draw(i);
      this.parameters[name] = { shape, data };
      this.gradients[name] = part(this.slopes);
      const multiplies = /\.weight/.test(name) && shape.length === 2;
      if (multiplies && name !== "token_embedding.weight") {
        part(this.decays).fill(1);
        this.transposed[name] = new Float32Array(length);
      }
      start += length;
    }
  }

  // Replace the values: {name: {data}}, as `parameters`.
  load(parameters) {
    for (const { name, size } of this.specs) {
      const data = parameters[name]?.data;
      if (data?.length !== size) {
        throw new Error(`${name} must have ${size} values, got ${data?.length}`);
      }
      this.parameters[name].data.set(data);
    }
  }

  data(name) {
    return this.parameters[name].data;
  }

  // y = w x (+ bias) (+ base), rows from..to.
  apply(y, x, name, from, to, base) {
    const { shape: [outer, inner], data } = this.parameters[`${name}.weight`];
    fill(y, from, to, outer, this.parameters[`${name}.bias`]?.data, base);
    multiply(y, x, data, from, to, inner, outer);
  }

  // dx += w^T dy, rows from..to.
  applyBackward(dx, dy, name, from, to) {
    const { shape: [outer, inner] } = this.parameters[`${name}.weight`];
    multiply(dx, dy, this.transposed[`${name}.weight`], from, to, outer, inner);
  }

  // Add the gradients of weight and bias, from rows from..to of dy and x.
  addGradients(dy, x, name, from, to) {
    const { shape: [outer, inner] } = this.parameters[`${name}.weight`];
    const gradient = this.gradients[`${name}.weight`];
    multiplyTransposed(gradient, dy, x, from, to, inner, outer);
    const bias = this.gradients[`${name}.bias`];
    if (bias) addRows(bias, dy, from, to, outer);
  }

  // Embed tokens [T B] into x.
  embed(x) {
    const { tokens, rows, config: { d_model: d } } = this;
    const table = this.data("token_embedding.weight");
    for (let r = 0; r < rows; r++) {
      const k = tokens[r] * d;
      for (let i = 0; i < d; i++) x[r * d + i] = table[k + i];
    }
  }

  embedBackward(dx) {
    const { tokens, rows, config: { d_model: d } } = this;
    const gradient = this.gradients["token_embedding.weight"];
    for (let r = 0; r < rows; r++) {
      const k = tokens[r] * d;
      for (let i = 0; i < d; i++) gradient[k + i] += dx[r * d + i];
    }
  }

  // Compute the logits [T B, V] of tokens [T B].
  forward(tokens, batch, length) {
    this.rows = batch * length;
    Object.assign(this, { tokens, batch, length });
    if (this.rows > this.capacity) {
      this.capacity = this.rows;
      this.allocate(this.rows);
    }
    this.run();
    return this.logits;
  }

  // Compute all gradients from `logitSlopes`, the gradient of the logits.
  backward() {
    this.slopes.fill(0);
    for (const [name, out] of Object.entries(this.transposed)) {
      const { shape: [rows, columns], data } = this.parameters[name];
      transpose(out, data, rows, columns);
    }
    this.runBackward();
  }

  // Compute the loss of labels [T B], and its gradients if `learn`.
  loss(tokens, labels, batch, length, learn = true) {
    this.forward(tokens, batch, length);
    const { logits, rows, right, config: { vocab_size: width } } = this;
    const slopes = learn ? this.logitSlopes : null;
    const loss = crossEntropy(logits, labels, rows, width, right, slopes);
    if (learn) this.backward();
    return loss;
  }

  allocateOutputs(rows) {
    this.logits = new Float32Array(rows * this.config.vocab_size);
    this.logitSlopes = new Float32Array(rows * this.config.vocab_size);
    this.right = new Uint8Array(rows);
  }
}
