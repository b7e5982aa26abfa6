// The arithmetic of training in a page: products, norms, losses, random numbers.
//
// Activations are Float32Arrays of rows [T B, d], ordered by step: row t B + b. A
// step is then one block of B rows, and a whole text one block of T B rows. `from`
// and `to` are rows. Sums are accumulated in double precision. Products and gradients
// are added to their results.

const IGNORE = -100; // the label of steps without a question
const EPSILON = 1e-5; // of LayerNorm

// y[r] += w x[r], for w [outer, inner]. Blocks of 4 x 4 keep 16 sums in registers.
function multiply(y, x, w, from, to, inner, outer) {
  const lastRow = from + ((to - from) & ~3);
  const lastColumn = outer & ~3;
  for (let r = from; r < lastRow; r += 4) {
    const x0 = r * inner;
    const x1 = x0 + inner;
    const x2 = x1 + inner;
    const x3 = x2 + inner;
    for (let o = 0; o < lastColumn; o += 4) {
      const w0 = o * inner;
      const w1 = w0 + inner;
      const w2 = w1 + inner;
      const w3 = w2 + inner;
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0;
      let b0 = 0, b1 = 0, b2 = 0, b3 = 0;
      let c0 = 0, c1 = 0, c2 = 0, c3 = 0;
      let d0 = 0, d1 = 0, d2 = 0, d3 = 0;
      for (let i = 0; i < inner; i++) {
        const p = w[w0 + i], q = w[w1 + i], s = w[w2 + i], t = w[w3 + i];
        let v = x[x0 + i];
        a0 += v * p; a1 += v * q; a2 += v * s; a3 += v * t;
        v = x[x1 + i];
        b0 += v * p; b1 += v * q; b2 += v * s; b3 += v * t;
        v = x[x2 + i];
        c0 += v * p; c1 += v * q; c2 += v * s; c3 += v * t;
        v = x[x3 + i];
        d0 += v * p; d1 += v * q; d2 += v * s; d3 += v * t;
      }
      let k = r * outer + o;
      y[k] += a0; y[k + 1] += a1; y[k + 2] += a2; y[k + 3] += a3;
      k += outer;
      y[k] += b0; y[k + 1] += b1; y[k + 2] += b2; y[k + 3] += b3;
      k += outer;
      y[k] += c0; y[k + 1] += c1; y[k + 2] += c2; y[k + 3] += c3;
      k += outer;
      y[k] += d0; y[k + 1] += d1; y[k + 2] += d2; y[k + 3] += d3;
    }
  }
  for (let r = from; r < to; r++) { // what is left beside and below the blocks
    for (let o = r < lastRow ? lastColumn : 0; o < outer; o++) {
      let sum = 0;
      for (let i = 0; i < inner; i++) sum += x[r * inner + i] * w[o * inner + i];
      y[r * outer + o] += sum;
    }
  }
}

// g[o, i] += sum over rows of dy[r, o] x[r, i]: the gradient of w in `multiply`.
function multiplyTransposed(g, dy, x, from, to, inner, outer) {
  const lastRow = outer & ~3;
  const lastColumn = inner & ~3;
  for (let start = from; start < to; start += 64) { // rows that fit the cache
    const stop = Math.min(to, start + 64);
    for (let o = 0; o < lastRow; o += 4) {
      for (let i = 0; i < lastColumn; i += 4) {
        let a0 = 0, a1 = 0, a2 = 0, a3 = 0;
        let b0 = 0, b1 = 0, b2 = 0, b3 = 0;
        let c0 = 0, c1 = 0, c2 = 0, c3 = 0;
        let d0 = 0, d1 = 0, d2 = 0, d3 = 0;
        for (let r = start; r < stop; r++) {
          const j = r * outer + o;
          const k = r * inner + i;
          const p = x[k], q = x[k + 1], s = x[k + 2], t = x[k + 3];
          let v = dy[j];
          a0 += v * p; a1 += v * q; a2 += v * s; a3 += v * t;
          v = dy[j + 1];
          b0 += v * p; b1 += v * q; b2 += v * s; b3 += v * t;
          v = dy[j + 2];
          c0 += v * p; c1 += v * q; c2 += v * s; c3 += v * t;
          v = dy[j + 3];
          d0 += v * p; d1 += v * q; d2 += v * s; d3 += v * t;
        }
        let k = o * inner + i;
        g[k] += a0; g[k + 1] += a1; g[k + 2] += a2; g[k + 3] += a3;
        k += inner;
        g[k] += b0; g[k + 1] += b1; g[k + 2] += b2; g[k + 3] += b3;
        k += inner;
        g[k] += c0; g[k + 1] += c1; g[k + 2] += c2; g[k + 3] += c3;
        k += inner;
        g[k] += d0; g[k + 1] += d1; g[k + 2] += d2; g[k + 3] += d3;
      }
    }
    for (let o = 0; o < outer; o++) {
      for (let i = o < lastRow ? lastColumn : 0; i < inner; i++) {
        let sum = 0;
        for (let r = start; r < stop; r++) {
          sum += dy[r * outer + o] * x[r * inner + i];
        }
        g[o * inner + i] += sum;
      }
    }
  }
}

// y[r] = bias, or 0 without one, plus `base[r]` if there is one.
function fill(y, from, to, width, bias, base) {
  if (base) y.set(base.subarray(from * width, to * width), from * width);
  else y.fill(0, from * width, to * width);
  if (!bias) return;
  for (let r = from; r < to; r++) {
    for (let i = 0; i < width; i++) y[r * width + i] += bias[i];
  }
}

// g += the sum of the rows of dy: the gradient of a bias.
function addRows(g, dy, from, to, width) {
  for (let r = from; r < to; r++) {
    for (let i = 0; i < width; i++) g[i] += dy[r * width + i];
  }
}

function transpose(out, w, rows, columns) {
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) out[c * rows + r] = w[r * columns + c];
  }
}

// z = LayerNorm(x); keeps the normalised rows and 1 / deviation for backward.
function normalise(z, kept, x, weight, bias, from, to, width) {
  const { rows, scales } = kept;
  for (let r = from; r < to; r++) {
    const k = r * width;
    let [mean, variance] = [0, 0];
    for (let i = 0; i < width; i++) mean += x[k + i];
    mean /= width;
    for (let i = 0; i < width; i++) variance += (x[k + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / width + EPSILON);
    scales[r] = scale;
    for (let i = 0; i < width; i++) {
      const value = (x[k + i] - mean) * scale;
      rows[k + i] = value;
      z[k + i] = value * weight[i] + bias[i];
    }
  }
}

// dx += the gradient of LayerNorm's input; gw and gb += those of weight and bias.
function normaliseBackward(dx, dz, kept, weight, gw, gb, from, to, width) {
  const { rows, scales } = kept;
  for (let r = from; r < to; r++) {
    const k = r * width;
    let [mean, along] = [0, 0];
    for (let i = 0; i < width; i++) {
      const slope = dz[k + i];
      const value = rows[k + i];
      gw[i] += slope * value;
      gb[i] += slope;
      mean += slope * weight[i];
      along += slope * weight[i] * value;
    }
    mean /= width;
    along /= width;
    for (let i = 0; i < width; i++) {
      dx[k + i] += scales[r] * (dz[k + i] * weight[i] - mean - rows[k + i] * along);
    }
  }
}

// The mean cross-entropy of logits [rows, V] over the rows with a label, in nats.
// Sets `right[r]` to 1 or 0, or to 2 without a label, and `slopes` to the gradient.
function crossEntropy(logits, labels, rows, width, right, slopes) {
  let [loss, count] = [0, 0];
  for (let r = 0; r < rows; r++) count += labels[r] !== IGNORE;
  for (let r = 0; r < rows; r++) {
    const k = r * width;
    const label = labels[r];
    if (label === IGNORE) {
      right[r] = 2;
      if (slopes) slopes.fill(0, k, k + width);
      continue;
    }
    let best = 0;
    for (let i = 1; i < width; i++) if (logits[k + i] > logits[k + best]) best = i;
    const top = logits[k + best];
    let sum = 0;
    for (let i = 0; i < width; i++) sum += Math.exp(logits[k + i] - top);
    loss += Math.log(sum) + top - logits[k + label];
    right[r] = best === label;
    if (!slopes) continue;
    for (let i = 0; i < width; i++) {
      slopes[k + i] = (Math.exp(logits[k + i] - top) / sum - (i === label)) / count;
    }
  }
  return loss / count;
}

// A generator of uniform numbers in [0, 1): xorshift of 128 bits (Marsaglia 2003).
function generator(seed) {
  const s = new Uint32Array([seed + 1, 0x9e3779b9, 0x243f6a88, 0xb7e15162]);
  const next = () => {
    let t = s[0] ^ (s[0] << 11);
    t ^= t >>> 8;
    s.copyWithin(0, 1);
    s[3] = s[2] ^ (s[2] >>> 19) ^ t;
    return s[3] / 2 ** 32;
  };
  for (let i = 0; i < 32; i++) next(); // similar seeds start alike
  return next;
}

function normal(random) {
  const radius = Math.sqrt(-2 * Math.log(1 - random()));
  return radius * Math.cos(2 * Math.PI * random());
}
