// The worker of models that read the same tokens: the share that each gives to every
// token at every step, and the memory vector that later steps read, after its norm.
// Needs engine.js.

let readers;

function memoryOf({ memory, memoryGain, memoryBias }) {
  const read = [...memory];
  if (memoryGain) layerNorm(memory, memoryGain, memoryBias, read);
  return read;
}

// Each message has the tokens and, the first time, the packed models.
onmessage = ({ data: { packed, tokens } }) => {
  readers ??= packed.map((model) => new Reader(model.config, unpack(model)));
  const answers = readers.map((reader) => {
    reader.rewind(0);
    return tokens.map((token) => {
      const shares = [...probabilities(reader.step(token))];
      return { shares, memory: memoryOf(reader) };
    });
  });
  postMessage({ tokens, answers });
};
