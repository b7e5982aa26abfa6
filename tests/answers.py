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
    "6.1": Answers(
        wrong={
            """
def deferred(delta, h, x, W, U):
    rows = delta.flatten(0, 1)
    return rows.T @ h.flatten(0, 1), rows.T @ x.flatten(0, 1), rows.sum(0), delta @ U
""": "Which h",
            """
def deferred(delta, h, x, W, U):
    before = torch.cat([torch.zeros_like(h[:1]), h[:-1]]).flatten(0, 1)
    rows = delta.flatten(0, 1)
    return before.T @ rows, rows.T @ x.flatten(0, 1), rows.sum(0), delta @ U
""": "transposed",
            """
def deferred(delta, h, x, W, U):
    before = torch.cat([torch.zeros_like(h[:1]), h[:-1]]).flatten(0, 1)
    rows = delta.flatten(0, 1)
    return rows.T @ before, rows.T @ x.flatten(0, 1), delta.sum(0), delta @ U
""": "db should be a tensor of the shape [3]",
            """
def deferred(delta, h, x, W, U):
    dW, dU = delta[0].T @ torch.zeros_like(h[0]), 0
    for t in range(len(x)):
        dU = dU + delta[t].T @ x[t]
        dW = dW + delta[t].T @ h[t - 1] if t else dW
    return dW, dU, delta.sum((0, 1)), delta @ U
""": "loop over steps",
        },
        right=[
            """
def deferred(delta, h, x, W, U):
    dW = torch.einsum("tbi,tbj->ij", delta[1:], h[:-1])
    dU = torch.einsum("tbi,tbe->ie", delta, x)
    return [dW, dU, delta.sum((0, 1)), torch.einsum("tbi,ie->tbe", delta, U)]
"""
        ],
    ),
    "6.2": Answers(
        wrong={
            """
def rms_backward(v, x, eps=1e-5):
    r = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    z = r * x
    return r * (v - v.mean(-1, keepdim=True) - z * (v * z).mean(-1, keepdim=True))
""": "a shift of x",
            """
def rms_backward(v, x, eps=1e-5):
    return v * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
""": "How does r change",
            """
def rms_backward(v, x, eps=1e-5):
    z = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return v - z * (v * z).mean(-1, keepdim=True)
""": "factor in each row",
        },
        right=[
            """
def rms_backward(v, x, eps=1e-5):
    size = x.square().mean(-1, keepdim=True) + eps
    along = torch.einsum("...d,...d->...", v, x)[..., None] / x.shape[-1]
    return v / size.sqrt() - x * along / size**1.5
"""
        ],
    ),
    "6.3": Answers(
        wrong={
            """
def numbers_kept(L, d, H, J, recompute):
    always = (L + 3) * d
    return always if recompute else always + L * (7 * d + H * J)
""": "too few for L = 1, d = 64, H = 2, recompute=True",
            """
def numbers_kept(L, d, H, J, recompute):
    always = (L + 4) * d
    return always if recompute else always + L * (4 * d + H * J)
""": "How wide is a?",
            """
def numbers_kept(L, d, H, J, recompute):
    return (L + 4) * d + L * (7 * d + H * J)
""": "too many",
        },
        right=[
            """
def numbers_kept(L, d, H, J, recompute):
    layer = d if recompute else d + d + d + d + 4 * d + H * J
    return d + L * layer + 3 * d
"""
        ],
    ),
    "6.4": Answers(
        wrong={
            """
def key_gradients(step, q, chunk):
    dK = torch.zeros_like(q)
    for t in reversed(range(len(q))):
        dK[:t] += torch.outer(step(t, dK[t])[:t], q[t])
    return dK
""": "push less often",
            """
def key_gradients(step, q, chunk):
    dK = torch.zeros_like(q)
    for first in reversed(range(0, len(q), chunk)):
        steps = range(first, min(len(q), first + chunk))
        ds = torch.stack([step(t, dK[t]) for t in reversed(steps)])
        dK += ds.T @ q[first : first + chunk].flip(0)
    return dK
""": "not complete",
            """
def key_gradients(step, q, chunk):
    dK = torch.zeros_like(q)
    for t in range(len(q)):
        step(t, dK[t])
    return dK
""": "in the order",
        },
        right=[
            """
def key_gradients(step, q, chunk):
    dK, rows = torch.zeros_like(q), {}
    for t in reversed(range(len(q))):
        for later, ds in rows.items():
            dK[t] += ds[t] * q[later]
        rows[t] = step(t, dK[t])
        if t % chunk == 0:
            later = sorted(rows)
            ds = torch.stack([rows[reader][:t] for reader in later])
            dK[:t] += ds.T @ q[later]
            rows = {}
    return dK
"""
        ],
    ),
}
