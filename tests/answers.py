"""Answers to the book's exercises that readers may give, beside the printed solutions.

For each exercise: answers that its check must reject, of different kinds and each with
a word that its hint must contain, and answers that it must accept although they differ
from the solution. Each answer replaces the whole stub.
"""

from typing import NamedTuple


class Answers(NamedTuple):
    """Answers to an exercise.

    Attributes:
        wrong: answers to reject, each with a part of the hint that it must get.
        right: answers to accept.
    """

    wrong: dict[str, str]
    right: list[str]


ANSWERS = {
    "1.1": Answers(
        wrong={
            "result_of_zero = 0\nresult_of_long = 21": "What share",
            "result_of_zero = 14\nresult_of_long = 42": "Which key",
        },
        right=["result_of_zero = 14.0\nresult_of_long = 21.0"],
    ),
    "1.2": Answers(
        wrong={
            """
def span_weights(scores, span):
    distance = torch.arange(len(scores))[:, None] - torch.arange(len(scores))
    weights = torch.softmax(scores, dim=-1)
    return weights * ((distance >= 0) & (distance <= span))
""": "have taken a share",
            """
def span_weights(scores, span):
    distance = torch.arange(len(scores))[:, None] - torch.arange(len(scores))
    weights = torch.softmax(scores, dim=-1)
    weights = weights * ((distance >= 0) & (distance <= span))
    return weights / weights.sum(-1, keepdim=True)
""": "changes the past",
            """
def span_weights(scores, span):
    distance = torch.arange(len(scores))[:, None] - torch.arange(len(scores))
    hidden = (distance < 0) | (distance >= span)
    return torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
""": "t - 2",
        },
        right=[
            """
def span_weights(scores, span):
    ones = torch.ones_like(scores)
    visible = ones.tril() * ones.triu(-span)
    return torch.softmax(scores + visible.log(), dim=-1)
"""
        ],
    ),
    "1.3": Answers(
        wrong={
            """
class TwoHeads(Layer):
    def attend(self, x, memory, age):
        z = (self.query(self.norm1(x)), self.key(memory), self.value(memory))
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in z)
        scores = q @ k.mT / x.shape[-1] ** 0.5 - age
        o = torch.softmax(scores, dim=-1) @ v
        return self.output(o.transpose(1, 2).flatten(2))
""": "How wide",
            """
class TwoHeads(Layer):
    def attend(self, x, memory, age):
        z = (self.query(self.norm1(x)), self.key(memory), self.value(memory))
        q, k, v = (part.unflatten(-1, (-1, 2)).movedim(-1, 1) for part in z)
        scores = q @ k.mT / q.shape[-1] ** 0.5 - age
        o = torch.softmax(scores, dim=-1) @ v
        return self.output(o.movedim(1, -1).flatten(2))
""": "Head 0",
        },
        right=[
            """
class TwoHeads(Layer):
    def attend(self, x, memory, age):
        z = (self.query(self.norm1(x)), self.key(memory), self.value(memory))
        heads = []
        for q, k, v in zip(*(part.chunk(2, dim=-1) for part in z)):
            scores = torch.einsum("btd,bjd->btj", q, k) / q.shape[-1] ** 0.5
            heads.append(torch.softmax(scores - age, dim=-1) @ v)
        return self.output(torch.cat(heads, dim=-1))
"""
        ],
    ),
    "1.4": Answers(
        wrong={
            "def absorb_bias(b, E, s, u):\n    return s, u + b": "q meets E too",
            """
def absorb_bias(b, E, s, u):
    return s + (E @ b[..., None])[..., 0], u
""": "Which other term",
            "def absorb_bias(b, E, s, u):\n    return s, u": "Which terms",
        },
        right=[
            """
def absorb_bias(b, E, s, u):
    return (E * b[:, None]).sum(-1) + s, b + u
"""
        ],
    ),
    "1.5": Answers(
        wrong={
            """
def depends(l, t, l2, t2, span):
    return l > l2 and 0 <= t - t2 <= span * (l - l2)
""": "layer 0, step 0 depends",
            """
def depends(l, t, l2, t2, span):
    return (l, t) == (l2, t2) or (l > l2 and 0 <= t - t2 <= span)
""": "pairs",
        },
        right=[
            """
def depends(l, t, l2, t2, span):
    if l == l2:
        return t == t2
    reachable = {t2}
    for _ in range(l - l2):
        reachable = {r + back for r in reachable for back in range(span + 1)}
    return l > l2 and t in reachable
"""
        ],
    ),
    "2.1": Answers(
        wrong={
            """
def without_loop(model, x):
    return tops(model, x)
""": "this runs the loop",
            """
def without_loop(model, x):
    for layer in model.layers:
        x = all_steps(layer, x, model.norm(x))
    return x
""": "What is m_t",
            """
def without_loop(model, x):
    return all_steps(model.layers[0], x, model.norm(x))
""": "the model has two",
            """
def without_loop(model, x):
    memory = x
    for layer in model.layers:
        x = all_steps(layer, x, memory)
    return x
""": "norm",
        },
        right=[
            """
def without_loop(model, x):
    memory, age = model.norm(x), strict_age(x.shape[1])
    for layer in model.layers:
        read = layer.attend(x[:, 1:], memory, age[1:])
        y = torch.cat([x[:, :1], x[:, 1:] + read], dim=1)
        x = y + layer.think(y)
    return x
"""
        ],
    ),
    "2.2": Answers(
        wrong={
            "earliest = dict(parallel=5, learned=0, top=0, embedding=5, blocks=8)": "embedding",
            "earliest = dict(parallel=5, learned=0, top=0, embedding=None, blocks=None)": "3 right",
            "earliest = dict(parallel=7, learned=5, top=0, embedding=7, blocks=0)": "parallel, learned, blocks",
        },
        right=[
            "earliest.update(parallel=5, learned=0, top=0, embedding=7, blocks=8)"
        ],
    ),
    "2.3": Answers(
        wrong={
            'idle = {"query", "key", "norm1", "value"}': "value",
            'idle = {"query"}': "2 more",
            'idle = {"queries"}': "no part",
        },
        right=['idle = ["query", "key", "norm1"]'],
    ),
    "2.4": Answers(
        wrong={
            """
def sweep(model, x, memories):
    steps = model.run(x)
    return tops(model, x), torch.cat([model.mix(o) for o in steps], dim=1)
""": "this runs the loop",
            """
def sweep(model, x, memories):
    outputs = [x]
    for layer in model.layers:
        outputs.append(all_steps(layer, outputs[-1], memories))
    return outputs[-1], model.mix(outputs)
""": "Norm?",
            """
def sweep(model, x, memories):
    memory, y = model.norm(memories), x
    for layer in model.layers:
        y = all_steps(layer, y, memory)
    return y, y
""": "memory 'learned'",
            """
def sweep(model, x, memories):
    memory, outputs = model.norm(memories), [x]
    for layer in model.layers:
        outputs.append(all_steps(layer, outputs[-1], memory))
    shares = torch.softmax(model.logits, dim=0)
    return outputs[-1], sum(outputs) / 3 if memories.any() else model.mix(outputs)
""": "wrong in",
        },
        right=[
            """
def sweep(model, x, memories):
    outputs = [x]
    for layer in model.layers:
        outputs.append(all_steps(layer, outputs[-1], model.norm(memories)))
    shares = torch.softmax(model.logits, dim=0)
    return outputs[-1], torch.stack(outputs, dim=-1) @ shares
"""
        ],
    ),
    "5.1": Answers(
        wrong={
            """
def unigram_loss(train_tokens, val_tokens, vocab_size):
    counts = torch.bincount(train_tokens, minlength=vocab_size).double()
    return -(counts / counts.sum()).log()[val_tokens].mean()
""": "Add one",
            """
def unigram_loss(train_tokens, val_tokens, vocab_size):
    counts = torch.bincount(train_tokens, minlength=vocab_size) + 1.0
    return -(counts / counts.sum()).log().mean()
""": "over the vocabulary",
            """
def unigram_loss(train_tokens, val_tokens, vocab_size):
    counts = torch.bincount(train_tokens, minlength=vocab_size) + 1.0
    p = counts / counts.sum()
    return -(p * p.log()).sum()
""": "over the training text",
            """
def unigram_loss(train_tokens, val_tokens, vocab_size):
    counts = torch.bincount(train_tokens, minlength=vocab_size) + 1.0
    return -(counts / counts.sum()).log2()[val_tokens].mean()
""": "bits",
        },
        right=[
            """
def unigram_loss(train_tokens, val_tokens, vocab_size):
    p = [(train_tokens == c).sum().item() + 1 for c in range(vocab_size)]
    total, surprise = sum(p), 0.0
    for c, count in enumerate(p):
        surprise -= (val_tokens == c).sum().item() * math.log(count / total)
    return surprise / len(val_tokens)
"""
        ],
    ),
    "5.2": Answers(
        wrong={
            """
def learning_rate(step, *, lr, warmup, steps, min_ratio):
    if step < warmup:
        return lr * step / warmup
    progress = (step - warmup) / (steps - warmup)
    return lr * (min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2)
""": "must not be wasted",
            """
def learning_rate(step, *, lr, warmup, steps, min_ratio):
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return lr * (1 + math.cos(math.pi * progress)) / 2
""": "below lr * min_ratio",
            """
def learning_rate(step, *, lr, warmup, steps, min_ratio):
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = step / steps
    return lr * (min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2)
""": "the fall",
            """
def learning_rate(step, *, lr, warmup, steps, min_ratio):
    if step < warmup:
        return lr * (step + 1) / warmup
""": "gets None",
        },
        right=[
            """
def learning_rate(step, *, lr, warmup, steps, min_ratio):
    angle = max(0, step - warmup) / (steps - warmup) * math.pi / 2
    fall = min_ratio + (1 - min_ratio) * math.cos(angle) ** 2
    return lr * min((step + 1) / warmup, fall) if step < warmup else lr * fall
"""
        ],
    ),
    "5.3": Answers(
        wrong={
            """
def carried_loss(model, windows):
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
""": "empty memory",
            """
def carried_loss(model, windows):
    state, total = None, 0.0
    for window in windows:
        logits, state = model(window[None, :-1], state, return_state=True)
        total += F.cross_entropy(logits[0], window[1:]).item()
    return total
""": "Return the mean",
            """
def carried_loss(model, windows):
    state, total = None, 0.0
    for window in windows:
        logits, state = model(window[None], state, return_state=True)
        total += F.cross_entropy(logits[0, :-1], window[1:]).item()
    return total / len(windows)
""": "step by step",
        },
        right=[
            """
def carried_loss(model, windows):
    stream = torch.cat([windows[:, :-1].flatten(), windows[-1, -1:]])
    return F.cross_entropy(model(stream[None, :-1])[0], stream[1:])
"""
        ],
    ),
}
