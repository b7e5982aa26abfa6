"""Answers to the book's exercises that readers may give, beside the solutions.

For each exercise: answers of different kinds that its check must reject, each with a
part of its hint, and answers that it must accept although they differ from the
solution. Each answer replaces the whole stub.
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
            "result_of_zero = 14": "still open",
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
            """
class TwoHeads(Layer):
    def attend(self, x, memory, age):
        z = (self.query(self.norm1(x)), self.key(memory), self.value(memory))
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in z)
        o = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v
        return self.output(o.transpose(1, 2).flatten(2))
""": "subtract the age",
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
            """
def without_loop(model, x):
    for layer in model.layers:
        y = all_steps(layer, x, model.norm(x))
    return y
""": "starts from x",
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
            'idle = {"query", "key", "norm1", "value"}': "value",
            'idle = {"query"}': "2 not named",
            'idle = {"query.weight"}': "There are inner, key",
        },
        right=['idle = ["query", "key", "norm1"]'],
    ),
    "2.3": Answers(
        wrong={
            "earliest |= dict(learned=0, top=0, embedding=5)": "embedding",
            "earliest |= dict(parallel=5, learned=0, top=0)": "3 right",
            "earliest |= dict(parallel=7, learned=5, top=0)": "parallel, learned",
        },
        right=[
            "earliest.update(parallel=5, learned=0, top=0, embedding=7, blocks=8)"
        ],
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
""": "through the model's norm",
            """
def sweep(model, x, memories):
    memory, y = model.norm(memories), x
    for layer in model.layers:
        y = all_steps(layer, y, memory)
    return y, y
""": "check the next guess",
            """
def sweep(model, x, memories):
    memory, outputs = model.norm(memories), [x]
    for layer in model.layers:
        outputs.append(all_steps(layer, outputs[-1], memory))
    return outputs[-1], sum(outputs) / 3
""": "not all alike",
            """
def sweep(model, x, memories):
    memory, outputs = model.norm(memories), [x]
    for layer in model.layers:
        outputs.append(all_steps(layer, outputs[-1], memory))
    return outputs[-1], model.norm(model.mix(outputs))
""": "return m itself",
            """
def sweep(model, x, memories):
    outputs = [all_steps(layer, x, model.norm(memories)) for layer in model.layers]
    return outputs[-1], model.mix([x, *outputs])
""": "check the outputs",
        },
        right=[
            """
def sweep(model, x, memories):
    outputs = [x]
    for layer in model.layers:
        outputs.append(all_steps(layer, outputs[-1], model.norm(memories)))
    shares = torch.softmax(model.layer_logits, dim=0)
    return outputs[-1], torch.stack(outputs, dim=-1) @ shares
"""
        ],
    ),
    "3.1": Answers(
        wrong={
            """
def cache_bytes(config, batch_size, length, bytes_per_number=4):
    steps = min(length, config.span)
    return config.n_layers * batch_size * steps * config.d_model * bytes_per_number
""": "is there a key",
            """
def cache_bytes(config, batch_size, length, bytes_per_number=4):
    caches = 1 if config.variant == "shared-kv" else config.n_layers
    return caches * 2 * batch_size * length * config.d_model * bytes_per_number
""": "beyond the span",
            """
def cache_bytes(config, batch_size, length, bytes_per_number=4):
    steps = min(length, config.span)
    numbers = 2 * config.n_layers * batch_size * steps * config.d_model
    return numbers * bytes_per_number
""": "shared-kv, 5 sequences, 4 steps: how many caches",
            """
def cache_bytes(config, batch_size, length, bytes_per_number=4):
    caches = 1 if config.variant == "shared-kv" else config.n_layers
    return caches * 2 * batch_size * min(length, config.span) * config.d_model
""": "bytes, not numbers",
            """
def cache_bytes(config, batch_size, length, bytes_per_number=4):
    caches = 1 if config.variant == "shared-kv" else config.n_layers
    return caches * 2 * min(length, config.span) * config.d_model * bytes_per_number
""": "does every sequence",
            """
def cache_bytes(config, batch_size, length, bytes_per_number=4):
    caches = 1 if config.variant == "shared-kv" else config.n_layers
    numbers = 2 * batch_size * min(length, config.span) * config.d_model
    return caches * numbers * config.n_heads * bytes_per_number
""": "2 heads",
            """
def cache_bytes(config, batch_size, length, bytes_per_number=4):
    return 1000 * length
""": "which sizes matter",
            "def cache_bytes(*args): return 'many'": "Not yet",
            "def cache_bytes(*args): return 0": "which sizes matter",
        },
        right=[
            """
def cache_bytes(config, batch_size, length, bytes_per_number=4):
    caches = {"shared-kv": 1}.get(config.variant, config.n_layers)
    width = config.d_model // config.n_heads
    shape = 2, caches, batch_size, config.n_heads, min(length, config.span), width
    return torch.Size(shape).numel() * bytes_per_number
""",
        ],
    ),
    "3.2": Answers(
        wrong={
            """
def score_endings(model, prompt, endings):
    scores = []
    for ending in endings:
        logs = model(torch.cat([prompt, ending])[None])[0].log_softmax(-1)
        rows = logs[len(prompt) - 1 : -1]
        scores.append(rows.gather(1, ending[:, None]).sum())
    return scores
""": "more than once",
            """
def score_endings(model, prompt, endings):
    logits, state = model(prompt[None], return_state=True)
    scores = []
    for ending in endings:
        rows = logits[:, -1:]
        if len(ending) > 1:
            more, state = model(ending[None, :-1], state, return_state=True)
            rows = torch.cat([rows, more], dim=1)
        logs = rows[0].log_softmax(-1)
        scores.append(logs.gather(1, ending[:, None]).sum())
    return scores
""": "start from the prompt",
            """
def score_endings(model, prompt, endings):
    _, state = model(prompt[None], return_state=True)
    scores = []
    for ending in endings:
        logs = model(ending[None], state)[0, :-1].log_softmax(-1)
        scores.append(logs.gather(1, ending[1:, None]).sum())
    return scores
""": "first tokens",
            """
def score_endings(model, prompt, endings):
    logits, state = model(prompt[None], return_state=True)
    losses = []
    for ending in endings:
        rows = torch.cat([logits[0, -1:], model(ending[None], state)[0, :-1]])
        losses.append(F.cross_entropy(rows, ending, reduction="sum"))
    return losses
""": "a loss",
            """
def score_endings(model, prompt, endings):
    logits, state = model(prompt[None], return_state=True)
    losses = []
    for ending in endings:
        rows = torch.cat([logits[0, -1:], model(ending[None], state)[0, :-1]])
        losses.append(-F.cross_entropy(rows, ending))
    return losses
""": "means",
            """
def score_endings(model, prompt, endings):
    logits, state = model(prompt[None], return_state=True)
    scores = []
    for ending in endings:
        rows = torch.cat([logits[0, -1:], model(ending[None], state)[0, :-1]])
        scores.append(rows.softmax(-1).gather(1, ending[:, None]).prod())
    return scores
""": "probabilities",
            """
def score_endings(model, prompt, endings):
    logits, state = model(prompt[None], return_state=True)
    return [logits[0, -1, ending].sum() for ending in endings]
""": "numbers differ",
            "def score_endings(model, prompt, endings): return [0.0]": "3 numbers",
        },
        right=[
            # All endings in one batch, padded, from one state.
            """
def score_endings(model, prompt, endings):
    logits, state = model(prompt[None], return_state=True)
    count = len(endings)
    padded = nn.utils.rnn.pad_sequence(endings, batch_first=True)
    states = state.map(lambda cache: cache.expand(count, -1, -1, -1))
    first = logits[:, -1:].expand(count, -1, -1)
    rows = torch.cat([first, model(padded, states)[:, :-1]], dim=1)
    logs = rows.log_softmax(-1).gather(2, padded[..., None])[..., 0]
    lengths = torch.tensor([len(ending) for ending in endings])
    return (logs * (torch.arange(logs.shape[1]) < lengths[:, None])).sum(1)
""",
            # Tensors of one element.
            """
def score_endings(model, prompt, endings):
    logits, state = model(prompt[None], return_state=True)
    scores = []
    for ending in endings:
        rows = torch.cat([logits[:, -1:], model(ending[None], state)[:, :-1]], dim=1)
        logs = rows.log_softmax(-1).gather(2, ending[None, :, None])
        scores.append(logs.sum(dim=1)[0])
    return scores
""",
        ],
    ),
    "3.3": Answers(
        wrong={
            "def absorb(k, v, q, o): return k @ q, o @ v": "W_o is right",
            "def absorb(k, v, q, o): return k.T @ q, v @ o": "W_q is right",
            "def absorb(k, v, q, o): return q, o": "begin with W_q",
            "def absorb(k, v, q, o): return k.T @ q": "Not yet",
        },
        right=[
            """
def absorb(W_k, W_v, W_q, W_o):
    query = torch.einsum("dk,dq->kq", W_k, W_q)
    return query, (W_v.T @ W_o.T).T
"""
        ],
    ),
    "4.1": Answers(
        wrong={
            """
def items_copied(steps, span):
    return steps * (steps - 1) // 2
""": "use the span",
            """
def items_copied(steps, span):
    return sum(min(t, span) for t in range(steps + 1))
""": "reads the last item",
            """
def items_copied(steps, span):
    return steps * span
""": "does step t see",
        },
        right=[
            """
def items_copied(steps, span):
    full = min(steps - 1, span)
    return full * (full + 1) // 2 + max(0, steps - 1 - span) * span
"""
        ],
    ),
    "4.2": Answers(
        wrong={
            """
class Slide(torch.autograd.Function):
    @staticmethod
    def forward(ctx, window, item, buffer, t, span):
        buffer[..., t : t + 1, :] = item
        return buffer.data[..., : t + 1, :]

    @staticmethod
    def backward(ctx, grad):
        return grad[..., :-1, :], grad[..., -1:, :], None, None, None
""": "windows still grow",
            """
class Slide:
    @staticmethod
    def apply(window, item, buffer, t, span):
        return torch.cat([window, item], dim=-2)[..., -span:, :]
""": "it copies",
            """
class Slide(torch.autograd.Function):
    @staticmethod
    def forward(ctx, window, item, buffer, t, span):
        ctx.window = window.clone()
        buffer[..., t : t + 1, :] = item
        return buffer.data[..., max(0, t + 1 - span) : t + 1, :]

    @staticmethod
    def backward(ctx, grad):
        dropped = ctx.window.shape[-2] + 1 - grad.shape[-2]
        earlier = F.pad(grad[..., :-1, :], (0, 0, dropped, 0))
        return earlier, grad[..., -1:, :], None, None, None
""": "save no tensor",
            """
class Slide:
    @staticmethod
    def apply(window, item, buffer, t, span):
        buffer.data[..., t : t + 1, :] = item.detach()
        return buffer.data[..., max(0, t + 1 - span) : t + 1, :]
""": "no gradient",
            """
class Slide(torch.autograd.Function):
    @staticmethod
    def forward(ctx, window, item, buffer, t, span):
        buffer[..., t : t + 1, :] = item
        return buffer.data[..., max(0, t + 1 - span) : t + 1, :]

    @staticmethod
    def backward(ctx, grad):
        return grad[..., :-1, :], grad[..., -1:, :], None, None, None
""": "as long as the window was",
            """
class Slide(torch.autograd.Function):
    @staticmethod
    def forward(ctx, window, item, buffer, t, span):
        buffer[..., t : t + 1, :] = item
        ctx.rows = window.shape[-2]
        return buffer.data[..., max(0, t + 1 - span) : t + 1, :]

    @staticmethod
    def backward(ctx, grad):
        dropped = ctx.rows + 1 - grad.shape[-2]
        earlier = F.pad(grad[..., :-1, :], (0, 0, 0, dropped))
        return earlier, grad[..., -1:, :], None, None, None
""": "At which end",
            """
class Slide(torch.autograd.Function):
    @staticmethod
    def forward(ctx, window, item, buffer, t, span):
        buffer[..., t : t + 1, :] = item
        ctx.shape = window.shape
        return buffer.data[..., max(0, t + 1 - span) : t + 1, :]

    @staticmethod
    def backward(ctx, grad):
        earlier = torch.zeros(ctx.shape, dtype=grad.dtype)
        kept = grad.shape[-2] - 1
        earlier[..., ctx.shape[-2] - kept :, :] = grad.data[..., :-1, :]
        return earlier, grad[..., -1:, :], None, None, None
""": "second derivative",
        },
        right=[
            """
class Slide(torch.autograd.Function):
    @staticmethod
    def forward(ctx, window, item, buffer, t, span):
        buffer.data[..., t, :] = item[..., 0, :]
        ctx.full = window.shape[-2] == span
        return buffer.data[..., : t + 1, :][..., -span:, :]

    @staticmethod
    def backward(ctx, grad):
        earlier = grad[..., :-1, :]
        if ctx.full:
            zero = torch.zeros_like(earlier[..., :1, :])
            earlier = torch.cat([zero, earlier], dim=-2)
        return earlier, grad[..., -1:, :], None, None, None
"""
        ],
    ),
    "4.3": Answers(
        wrong={
            """
def trustworthy(make):
    x, weight = normal(2, 3, 13, 4), normal(4, 4)
    results = [loop(x, weight, m(13, 5)) for m in (make, makers["TorchStack"])]
    return torch.allclose(*results)
""": "the usual way",
            """
def trustworthy(make):
    x, weight = normal(2, 3, 13, 4).requires_grad_(), normal(4, 4)
    results = [loop(x, weight, m(13, 3)) for m in (make, makers["TorchStack"])]
    results = [grad(y.sum() + 0 * x.sum(), x)[0] for y in results]
    return torch.equal(*results)
""": "rejects MemoryStack",
            """
def gradient_of(make, length, span):
    x, weight = normal(2, 3, length, 4).requires_grad_(), normal(4, 4)
    one, two = (loop(z, weight, make(length, span)) for z in (x, x.flip(2)))
    return grad(one.square().sum() + two.sum(), x)[0]


def trustworthy(make):
    both = (gradient_of(m, 13, 3) for m in (make, makers["TorchStack"]))
    return torch.allclose(*both)
""": "more than 3 items",
            "def trustworthy(make):\n    return 1": "True or False",
        },
        right=[
            """
def trustworthy(make):
    weight = normal(3, 3).requires_grad_()
    xs = [normal(1, 1, 20, 3, seed=s) for s in (1, 2)]
    sums = []
    for m in (make, makers["TorchStack"]):
        ys = [loop(x, weight, m(20, 6)) for x in xs]
        sums.append(grad(ys[0].sum() + ys[1].square().sum(), weight)[0])
    return bool((sums[0] - sums[1]).abs().max() < 1e-9)
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
""": "cosine begins",
            """
def learning_rate(step, *, lr, warmup, steps, min_ratio):
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup + 1) / (steps - warmup + 1)
    return lr * (min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2)
""": "cosine begins",
            """
def learning_rate(step, *, lr, warmup, steps, min_ratio):
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return lr * (1 - (1 - min_ratio) * progress)
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
    "7.1": Answers(
        wrong={
            "def flip(state):\n    return state": "no answer changed",
            """
def flip(state):
    return fbt.State(tuple(-key for key in state.keys), state.values)
""": "need its key",
            """
def flip(state):
    return fbt.State(state.keys, tuple(0 * value for value in state.values))
""": "answers flipped",
            """
def flip(state):
    return state.keys, tuple(-value for value in state.values)
""": "return fbt.State",
        },
        right=[
            """
def flip(state):
    (value,) = state.values
    return fbt.State(state.keys, (value[..., [0, 1, 3, 2]],))
"""
        ],
    ),
    "7.2": Answers(
        wrong={
            "def best_guess(table, k):\n    return 1 / len(table)": "lamp, 1 move",
            """
def best_guess(table, k):
    n, moves = table.shape
    return moves**k / n
""": "is not a probability",
            """
def best_guess(table, k):
    meet = [column.bincount().max() for column in table.T]
    return (sum(meet) / len(meet) / len(table)).item()
""": "go through all k moves",
            "def best_guess(table, k):\n    return 1 - 0.5**k": "bring two states",
        },
        right=[
            """
import itertools


def best_guess(table, k):
    n, moves = table.shape
    shares = []
    for sequence in itertools.product(range(moves), repeat=k):
        ends = list(range(n))
        for move in sequence:
            ends = [table[state, move].item() for state in ends]
        shares.append(max(ends.count(state) for state in ends) / n)
    return sum(shares) / len(shares)
"""
        ],
    ),
    "7.3": Answers(
        wrong={
            """
def compare(first, second):
    def last(curve, axis):
        return [p[2] for p in curve if p[axis] <= first[-1][axis]][-1]

    return tuple((last(first, axis), last(second, axis)) for axis in (0, 1))
""": "not its last ones",
            """
def compare(first, second):
    ends = max(p[2] for p in first), max(p[2] for p in second)
    return ends, ends
""": "by those tokens",
            """
def compare(first, second):
    def best(curve, axis):
        return max(p[2] for p in curve if p[axis] <= first[-1][axis])

    return tuple((best(first, axis), best(second, axis)) for axis in (1, 0))
""": "tokens come first",
            """
def compare(first, second):
    return (0.9, 0.6), (0.9, 0.95)
""": "best weights",
            """
def compare(first, second):
    return 0.9, 0.6, 0.9, 0.95
""": "two pairs",
        },
        right=[
            """
def compare(first, second):
    budget, pairs = first[-1], []
    for axis in range(2):
        reached = []
        for curve in (first, second):
            best = 0.0
            for point in curve:
                if point[axis] <= budget[axis]:
                    best = max(best, point[2])
            reached.append(best)
        pairs.append(reached)
    return pairs
"""
        ],
    ),
    "7.4": Answers(
        wrong={
            """
def lamp_machine():
    return fbt.LanguageModel(fbt.Config(3, d_model=6, n_heads=1, n_layers=2))
""": "one layer must do",
            """
def lamp_machine():
    sizes = {"d_model": 6, "n_heads": 1, "n_layers": 1}
    model = fbt.LanguageModel(fbt.Config(3, **sizes))
    model.head.weight.data.zero_()
    model.head.bias.data = torch.tensor([1.0, 0.0, 0.0])
    return model
""": "must turn over",
            """
def lamp_machine():
    sizes = {"d_model": 6, "n_heads": 1, "n_layers": 1, "d_ff": 4, "span": 1}
    model = fbt.LanguageModel(fbt.Config(3, memory="top", **sizes))
    layer = model.body.layers[0]
    wait, push, off = [0, 0, -1, 1, -1, 1], [0, 0, 1, -1, -1, 1], [0, 0, -1, 1, 1, -1]
    keep_p = torch.diag(torch.tensor([1, 1, 0, 0, 0, 0]))
    to_p, into_p = torch.zeros(6, 1), torch.tensor([1, 1, -1, 1])
    to_p[:2, 0] = torch.tensor([1.0, -1.0])
    weights = {
        model.token_embedding.weight: [wait, push, off],
        model.body.key_values[0].value.weight: keep_p,
        layer.attention.output.weight: torch.eye(6),
        layer.feed_forward.inner.weight: [
            [-1, 0, 1, 0, 0, 0],
            [1, 0, -1, 0, 0, 0],
            [1, 0, 0, 0, 0, 0],
            [-1, 0, 0, 0, 0, 0],
        ],
        layer.feed_forward.inner.bias: [0, 0, 0, 0],
        layer.feed_forward.outer.weight: to_p * into_p,
        layer.feed_forward.outer.bias: [-1, 1, 0, 0, 0, 0],
        model.head.weight: [[-3, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], [0] * 6],
        model.head.bias: [0, 0, -9],
    }
    for parameter, value in weights.items():
        parameter.data.copy_(torch.as_tensor(value))
    return model
""": "win over either p",
        },
        right=[
            """
def lamp_machine():
    sizes = {"d_model": 6, "n_heads": 1, "n_layers": 1, "d_ff": 4, "span": 1}
    model = fbt.LanguageModel(fbt.Config(3, memory="top", **sizes))
    layer = model.body.layers[0]
    wait, push, off = [0, 0, -1, 1, -1, 1], [0, 0, 1, -1, -1, 1], [0, 0, -1, 1, 1, -1]
    keep_p = torch.diag(torch.tensor([1, 1, 0, 0, 0, 0]))
    to_p, into_p = torch.zeros(6, 1), torch.tensor([1, 1, -1, 1])
    to_p[:2, 0] = torch.tensor([1.0, -1.0])
    weights = {
        model.token_embedding.weight: [wait, push, off],
        model.body.key_values[0].value.weight: keep_p,
        layer.attention.output.weight: torch.eye(6),
        layer.feed_forward.inner.weight: [
            [-1, 0, 1, 0, -1, 0],
            [1, 0, -1, 0, -1, 0],
            [1, 0, 0, 0, 0, 0],
            [-1, 0, 0, 0, 0, 0],
        ],
        layer.feed_forward.inner.bias: [-1, -1, 0, 0],
        layer.feed_forward.outer.weight: to_p * into_p,
        layer.feed_forward.outer.bias: [-1, 1, 0, 0, 0, 0],
        model.head.weight: [[-3, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], [0] * 6],
        model.head.bias: [0, 0, -9],
    }
    for parameter, value in weights.items():
        parameter.data.copy_(torch.as_tensor(value))
    return model
"""
        ],
    ),
}
