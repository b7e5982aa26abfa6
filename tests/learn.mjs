// Runs the training of fbt/views/learn.js for tests/test_learn.py, in node.
// Reads {source, cases} from stdin and writes a result for each case.

import { readFileSync } from "node:fs";

const NAMES = "{ AdamW, Learner, TASKS, createModel, generator }";
const { source, cases } = JSON.parse(readFileSync(0, "utf-8"));
const { AdamW, Learner, TASKS, createModel, generator } =
  new Function(`"use strict"; ${source}\nreturn ${NAMES};`)();

const plain = (gradients) =>
  Object.fromEntries(Object.entries(gradients).map(([name, g]) => [name, [...g]]));

const RUN = {
  // The losses of updates on given batches, and the gradients of the first.
  train({ config, parameters, batches, rate, clip }) {
    const model = createModel(config, generator(0));
    model.load(Object.fromEntries(
      Object.entries(parameters).map(([name, data]) => [name, { data }])));
    const optimizer = new AdamW(model);
    let gradients;
    const losses = batches.map(({ tokens, labels, batch, length }) => {
      const loss = model.loss(tokens, labels, batch, length);
      gradients ??= plain(model.gradients);
      optimizer.step(rate, clip);
      return loss;
    });
    return { losses, gradients };
  },
  draw({ task, batch, length }) {
    const { words, steps, draw } = TASKS[task];
    const size = batch * steps(length);
    const [tokens, labels] = [new Int32Array(size), new Int32Array(size)];
    draw(generator(1), batch, length, tokens, labels);
    return { words, tokens: [...tokens], labels: [...labels] };
  },
  initial({ config }) {
    const { parameters } = createModel(config, generator(3));
    return Object.fromEntries(Object.entries(parameters).map(
      ([name, { shape, data }]) => [name, { shape, data: [...data] }]));
  },
  // The accuracy at the last step of tests, after training as in the playground.
  learn({ task, seed, model, lengths }) {
    const learner = new Learner({ task, seed, model });
    while (learner.update < learner.updates) learner.step();
    const right = lengths.map((length) => {
      const last = learner.test(length, 200).slice(-200);
      return last.reduce((sum, value) => sum + value, 0) / 200;
    });
    return { right };
  },
};

process.stdout.write(JSON.stringify(cases.map(({ run, ...rest }) => RUN[run](rest))));
