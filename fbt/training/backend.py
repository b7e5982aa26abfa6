"""Which backend computes a run: chosen when the run begins, kept when it is resumed.

Backends round differently. A run that changed its backend would continue with other
numbers, so what "auto" stands for is decided once and written into the checkpoint.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from fbt import engines
from fbt._modes import without_gradients
from fbt._text import one_line
from fbt.config import Backend
from fbt.evaluation_copy import evaluation_copy
from fbt.language_model import LanguageModel
from fbt.shared_kv import SharedKVBody


def choose_backend(
    model: LanguageModel, setting: Backend, recorded: Backend | None
) -> Backend:
    """Return the name of the backend that a run uses from now on.

    Args:
        model: the model to train, in its dtype and on its device.
        setting: the backend in the recipe of the run, "auto" or a name.
        recorded: the backend in the checkpoint of a resumed run. None if the run
            begins, or if its checkpoint does not record a backend.

    Returns:
        One of `model.body.backends`. If `recorded` cannot be used here, the run
        continues with another backend, and a RuntimeWarning gives the reason.

    Raises:
        ValueError: if a run is to begin with a backend that cannot be used here.
    """
    name = setting if recorded is None else recorded
    if name == "auto":
        return resolve_auto(model)
    reason = _why_not(model, name)
    if reason is None:
        return name
    if recorded is None:
        raise ValueError(f"backend={name!r} cannot be used for this run: {reason}")
    other = resolve_auto(model)
    message = f"the run used backend={name!r} so far and continues with {other!r}, "
    warnings.warn(
        f"{message}so its losses may differ in the last digits: {reason}",
        RuntimeWarning,
        stacklevel=5,  # the caller of `train` or `resume`
    )
    return other


def resolve_auto(model: LanguageModel) -> Backend:
    """Return the name of the backend that trains a model if it is set to "auto"."""
    body = model.body
    if isinstance(body, SharedKVBody):
        x = model.token_embedding.weight.new_empty(1, 2, body.d_model)
        choice = engines.choose(body, x)
        engines.warn_once(choice)
        if choice.engine is not None:
            return cast(Backend, choice.engine)
    return body.plain


def advice_on_speed(model: LanguageModel, backend: Backend) -> str | None:
    """Return a line for the progress of a run that could be faster, or None."""
    if backend != "sequence":
        return None
    choice = engines.first_for(model.token_embedding.weight)
    if choice.engine != backend or not choice.advice:
        return None
    return f"{choice.reason}: {choice.advice}"


def _why_not(model: LanguageModel, backend: Backend) -> str | None:
    """Return why a backend cannot compute two steps of a model, or None."""
    x = model.token_embedding.weight.new_zeros(1, 2, model.body.d_model)
    try:
        with without_gradients():
            evaluation_copy(model).body(x, backend=backend)
    except (RuntimeError, TypeError, ValueError) as error:
        return one_line(str(error))
    return None


@contextmanager
def using_backend(
    model: LanguageModel, backend: Backend, recompute: bool
) -> Iterator[None]:
    """Set how a model computes, and restore its backend afterwards.

    `recompute` remains, since it changes only what the backward pass stores.
    """
    if isinstance(model.body, SharedKVBody):
        model.body.recompute = recompute
    before, model.backend = model.backend, backend
    try:
        yield
    finally:
        model.backend = before
