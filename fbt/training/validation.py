"""Evaluations during a run, and which weights are the best so far."""

import copy
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from fbt.data import Tokens, even_windows
from fbt.evaluation_copy import evaluation_copy
from fbt.language_model import LanguageModel
from fbt.training.checkpoint import Best
from fbt.training.evaluation import total_loss
from fbt.training.interrupt import Interrupt, Interrupted
from fbt.training.processes import Processes
from fbt.training.progress import tqdm
from fbt.training.recipe import Recipe

# The largest number of tokens in the last evaluation. The validation text of Tiny
# Shakespeare has 111,540 characters.
LAST_CHARACTERS = 131_072
BATCH_SIZE = 128  # windows per forward pass; an interrupt is noticed in between

LossOf = Callable[[LanguageModel, Tensor], float]


class Validation:
    """The windows of a validation text, and the loss of models on them.

    Args:
        tokens: the validation tokens [N], N > `recipe.seq_len`.
        recipe: settings of the training.
        processes: the processes that share each evaluation.

    Attributes:
        windows: the windows [W, T + 1] of evaluations during the run.
        last_windows: those of the last evaluation.
    """

    def __init__(self, tokens: Tokens, recipe: Recipe, processes: Processes) -> None:
        self._processes = processes
        length = recipe.seq_len
        count = min(recipe.eval_windows, len(tokens) - length)
        self.windows = even_windows(tokens, length=length, count=count)
        limit = max(1, LAST_CHARACTERS // length)
        last_count = limit if (len(tokens) - 1) // length > limit else None
        self.last_windows = even_windows(tokens, length=length, count=last_count)

    def loss(
        self,
        model: LanguageModel,
        windows: Tensor,
        interrupt: Interrupt,
        progress: bool,
    ) -> float:
        """Return the mean loss of a model over windows.

        All processes must call this method; each computes its share.

        Args:
            model: the model, in any mode.
            windows: token ids [N, T + 1].
            interrupt: checked before every batch but the first.
            progress: show a bar if the evaluation takes longer than a second.

        Raises:
            Interrupted: if a stop was requested.
        """
        total, model = 0.0, evaluation_copy(model)
        bar = tqdm(
            total=len(windows),
            desc="validation",
            unit="window",
            leave=False,
            delay=1,
            disable=not progress,
        )
        with bar:
            batches = windows.split(BATCH_SIZE * self._processes.count)
            for number, batch in enumerate(batches):
                if number and self._processes.total(interrupt.requested):
                    raise Interrupted
                total += total_loss(model, self._processes.share(batch))
                bar.update(len(batch))
        return self._processes.total(total) / windows[:, 1:].numel()

    def compared(self, best: Best, model: LanguageModel, loss_of: LossOf) -> Best:
        """Return the best weights of a finished run that goes on.

        Their loss is computed again, over the windows of the evaluations to come.
        """
        earlier = copy.deepcopy(model)
        earlier.load_state_dict(best.weights)
        return replace(best, final=False, val_loss=loss_of(earlier, self.windows))

    def update_best(
        self, best: Best | None, model: LanguageModel, now: Best, loss_of: LossOf
    ) -> Best:
        """Return the better of the best weights so far and the present ones.

        Losses are compared over the same windows: those of the evaluations during the
        run, and after the last evaluation those of the last one as well.

        Args:
            best: the best weights before this evaluation, or None.
            model: the model; an earlier state is computed with a copy of it.
            now: this evaluation, with the weights of the model, not copied.
            loss_of: returns the loss of a model over windows.
        """
        if not now.final:
            if best is not None and best.val_loss < now.val_loss:
                return best
            copies = {name: value.clone() for name, value in now.weights.items()}
            return replace(now, weights=copies)
        if best is None or best.val_loss >= loss_of(model, self.windows):
            return now
        earlier = copy.deepcopy(model)
        earlier.load_state_dict(best.weights)
        loss = loss_of(earlier, self.last_windows)
        return (
            replace(best, final=True, val_loss=loss) if loss < now.val_loss else now
        )
