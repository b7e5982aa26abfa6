// The worker of the recurrence: all values that a model computes on a short text, as
// recurrence.py prepares them. Needs engine.js.

let reader;

// Each message has the token ids, how many numbers of a vector to return and, the
// first time, the weights.
onmessage = ({ data: { packed, tokens, count } }) => {
  if (packed) reader = new Reader(packed.config, unpack(packed));
  reader.rewind(0);
  const { d_model: d, n_layers: layers } = reader.config;
  const first = (vector) =>
    Array.from(vector.subarray(0, count), (number) => Math.round(100 * number) / 100);
  const outputs = Array.from({ length: layers + 1 }, () => []);
  const weights = Array.from({ length: layers }, () => []);
  const [memory, keys, values] = [[], [], []];
  tokens.forEach((token, step) => {
    reader.step(token);
    reader.outputs.forEach((vector, layer) => outputs[layer].push(first(vector)));
    memory.push(first(reader.memory));
    keys.push(first(reader.keys[0].subarray(step * d)));
    values.push(first(reader.values[0].subarray(step * d)));
    reader.weights.forEach((heads, layer) => {
      const mean = (past) =>
        heads.reduce((sum, head) => sum + head[past], 0) / heads.length;
      weights[layer].push(tokens.map((_, past) =>
        (past < step ? Math.round(1000 * mean(past)) : 0)));
    });
  });
  const mixture = Array.from(reader.mixture);
  postMessage({ outputs, memory, keys, values, weights, mixture });
};
