r"""Sweeps: guess all memories, compute all steps side by side, and guess again.

The memories of a feedback body are the one solution of

$$ m = F(m, x), $$

where $F$ computes every step with the memories of the steps before it. A sweep
replaces the guess $m$ by $F(m, x)$; the first guess is the memory that the embeddings
alone would make. What a sweep reads of earlier steps has been through one link of the
chain less than its result, so k sweeps follow at most k links. After T sweeps the
result is exact.

A sweep over g groups takes steps 0, g, 2g, ... first, then 1, g + 1, ..., and each
group reads what the groups before it have just made (Gauss-Seidel). It has g stages
that wait for each other. One group is Jacobi's method.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

import fbt
from fbt.feedback import FeedbackBody


def first_guess(body: FeedbackBody, x: Tensor) -> Tensor:
    """Return the memory LN(m) of layers that add nothing to x, both [B, T, d]."""
    return body.memory([x] * (len(body.layers) + 1), body.layer_weights())


def one_sweep(body: FeedbackBody, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Compute all steps at once; step t reads the given memory of t - S to t - 1.

    Args:
        body: a body with any number of caches.
        x: embeddings [B, T, d].
        memory: the guess of the normalised memory LN(m), [B, T, d].

    Returns:
        The top layer's outputs and the new memory, both [B, T, d].
    """
    # No step reads the last memory, and step 0 reads none.
    caches = [project(memory[:, :-1]) for project in body.key_values]
    h, outputs = x, [x]
    for l, layer in enumerate(body.layers):
        relative = body.relative[l % len(body.relative)]
        steps = [layer(h[:, :1], None, None, relative)[0]]
        if x.shape[1] > 1:
            steps.append(layer(h[:, 1:], *caches[l % len(caches)], relative)[0])
        h = torch.cat(steps, dim=1)
        outputs.append(h)
    return h, body.memory(outputs, body.layer_weights())


def sweeps(body: FeedbackBody, x: Tensor, groups: int = 1) -> Iterator[Tensor]:
    """Yield the top layer's outputs [B, T, d] after each sweep, without end.

    Autograd differentiates through all sweeps. After k sweeps the first k g steps are
    exact.

    Args:
        body: a body with any number of caches.
        x: embeddings [B, T, d].
        groups: g, the groups of a sweep. All steps are computed for each group, and
            only those of the group are kept: this is plain, not fast.
    """
    memory, top = first_guess(body, x), x
    group_of = torch.arange(x.shape[1], device=x.device)[:, None] % groups
    while True:
        for group in range(groups):
            new_top, new_memory = one_sweep(body, x, memory)
            top = torch.where(group_of == group, new_top, top)
            memory = torch.where(group_of == group, new_memory, memory)
        yield top


def after_sweeps(
    body: FeedbackBody, x: Tensor, count: int, groups: int = 1
) -> Tensor:
    """Return the top layer's outputs [B, T, d] after `count` sweeps."""
    results = sweeps(body, x, groups)
    return [next(results) for _ in range(count)][-1]


def with_adjoint(
    body: FeedbackBody, x: Tensor, memory: Tensor, iterations: int
) -> Tensor:
    r"""Return the outputs for the exact memories; backward guesses their gradient.

    Write $g$ for the loss's gradient with respect to the memories that the last sweep
    reads. The exact one, the adjoint $a$, also counts what they do to each other:

    $$ a = g + (\partial F / \partial m)^\top a . $$

    Backward begins with $a = g$ and applies this `iterations` times. It is exact
    after T - 2, as the last memory is never read and the first reads none.

    Args:
        body: a body with any number of caches, without dropout.
        x: embeddings [B, T, d].
        memory: the exact LN(m), [B, T, d].
        iterations: how often backward applies the equation.

    Returns:
        The top layer's outputs [B, T, d].
    """
    memory = one_sweep(body, x, memory.detach())[1]
    leaf = memory.detach().requires_grad_()
    again = one_sweep(body, x, leaf)[1]

    def solve(g: Tensor) -> Tensor:
        a = g
        for _ in range(iterations):
            a = g + torch.autograd.grad(again, leaf, a, retain_graph=True)[0]
        return a

    memory.register_hook(solve)
    return one_sweep(body, x, memory)[0]


def body_of(model: fbt.LanguageModel) -> FeedbackBody:
    """Return the body of a feedback model."""
    return cast(FeedbackBody, model.body)


def logits_after(model: fbt.LanguageModel, tokens: Tensor, count: int) -> Tensor:
    """Return a feedback model's logits [B, T, V] after `count` sweeps."""
    top = after_sweeps(body_of(model), model.token_embedding(tokens), count)
    return model.head(model.norm(top))
