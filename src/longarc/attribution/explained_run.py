"""What a finished run can say about how its training made its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longarc.data.cells import as_texts
from longarc.errors import DataError

if TYPE_CHECKING:
    from longarc.training.prediction import Predictor
    from longarc.training.run_folder import RunFolder


def asked_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several as a list; DataError for an empty one, which says nothing to explain.

    >>> asked_texts("the pump leaks")
    ['the pump leaks']
    """
    found = as_texts([texts] if isinstance(texts, str) else texts, "texts")
    for number, text in enumerate(found, 1):
        if not text.strip():
            which = "the text" if len(found) == 1 else f"text {number} of {len(found)}"
            raise DataError(
                f"{which} is empty, so there is nothing in it to explain. Expected a word or more."
            )
    return found


class ExplainedRun:
    """The part of :class:`longarc.Run` that asks the recorded path."""

    folder: RunFolder

    @cached_property
    def predictor(self) -> Predictor:
        """The model with its tokenizer."""
        raise NotImplementedError

    def report(self) -> Path:
        """Write the run's report."""
        raise NotImplementedError

    def explain(
        self,
        texts: str | Sequence[str],
        *,
        label: str | None = None,
        of: str = "logit",
        method: str = "exact",
        tolerance: float = 1e-3,
        parameters: Callable[[str], bool] | None = None,
        say: Callable[[str], Any] | None = None,
        progress: Callable[[int], Any] | None = None,
        advance: Callable[[float], Any] | None = None,
    ) -> Any:
        """The training documents that made a prediction, with contributions that add up.

        By default the recorded training is replayed, twice, whatever the number of texts: give all
        texts that are wanted at once. The indexed method estimates from projected gradients at a
        few snapshots, in moments once its index is built, which the first use does. See
        ``docs/explanations.md`` for what the numbers mean.

        Args:
            texts: one text, or a list of them.
            label: the class whose score is explained; None for the one with the highest.
            of: ``"logit"``; ``"margin"``, less the strongest other class; ``"loss"``, the
                class's cross-entropy (its own binary one where documents have several labels).
            method: ``"exact"``, or ``"indexed"``.
            tolerance: bound on what the integration may leave out, as a part of how far the number
                moved in training.
            parameters: which of the trained parameters to explain by, by name; None for all. An
                index has its own, see :meth:`build_index`.
            say: is told the size of an index before it is built.
            progress: as of :meth:`build_index`.
            advance: is called with 1 for each step of the training that is replayed.

        Returns:
            An :class:`~longarc.attribution.explanation.Explanation`, or a list of them for a list.

        Raises:
            RunError: the run recorded no path.
            DataError: a text is empty.
        """
        from longarc.attribution.of_run import explain_run

        one = isinstance(texts, str)
        found = explain_run(
            self.folder,
            self._exact_predictor(),
            asked_texts(texts),
            label=label,
            of=of,
            method=method,
            tolerance=tolerance,
            parameters=parameters,
            say=say,
            progress=progress,
            advance=advance,
        )
        return found[0] if one else found

    def effects(
        self,
        texts: str | Sequence[str],
        *,
        label: str | None = None,
        of: str = "logit",
        advance: Callable[[float], Any] | None = None,
    ) -> Any:
        """How far a score would fall had each training document not been in the training.

        To first order, by differentiating the recorded training from its end to its start: other
        documents may react to the absence, which contributions leave out. Effects do not add up to
        the score. The training is replayed once, and each text takes three to four times as long as
        the training and about five times the weights in memory. A recipe's second stage and a
        hybrid's linear scores are not part of it.

        Args:
            texts: one text, or a list of them.
            label: the class whose score is asked about; None for the one with the highest.
            of: ``"logit"``; ``"margin"``, less the strongest other class; ``"loss"``, the
                class's cross-entropy (its own binary one where documents have several labels).
            advance: is called with 1 for each step of the training that is gone back.

        Returns:
            An :class:`~longarc.attribution.effects.Effects`, or a list of them for a list.

        Raises:
            RunError: the run recorded no path.
            DataError: a text is empty.
        """
        from longarc.attribution.of_run import effects_of_run

        one = isinstance(texts, str)
        found = effects_of_run(
            self.folder,
            self._exact_predictor(),
            asked_texts(texts),
            label=label,
            of=of,
            advance=advance,
        )
        return found[0] if one else found

    def explain_errors(
        self,
        count: int = 3,
        *,
        data: Any = None,
        top: int = 5,
        method: str = "exact",
        tolerance: float = 1e-3,
        advance: Callable[[float], Any] | None = None,
    ) -> list[Any]:
        """Explain the errors that the model was surest of, and show them in the report.

        Of each the margin of the predicted class over the true one, as for :meth:`explain`.

        Args:
            count: errors of the test split, at most; they share one replay.
            data: the run's table, where it was trained on one in memory.
            top: documents to show on either side.
            method: as for :meth:`explain`.
            tolerance: as for :meth:`explain`.
            advance: is called with 1 for each step of the training that is replayed.

        Raises:
            RunError: the run recorded no path, or made no error.
            DataError: the table has changed since.
        """
        from longarc.attribution.errors_of_run import explain_errors

        found = explain_errors(
            self.folder,
            self._exact_predictor(),
            count,
            data=data,
            top=top,
            method=method,
            tolerance=tolerance,
            advance=advance,
        )
        self.report()
        return found

    def kernel_machine(self, *, together: int = 32, tolerance: float = 1e-3) -> Any:
        """The model as a kernel machine over its training documents.

        It is asked about texts; see :class:`longarc.KernelMachine` for what it can do and costs.

        Raises:
            RunError: the run recorded no path.
        """
        from longarc.attribution.of_run import kernel_machine_of_run

        return kernel_machine_of_run(
            self.folder, self._exact_predictor(), together=together, tolerance=tolerance
        )

    def build_index(
        self,
        *,
        checkpoints: int | None = None,
        dimensions: int | None = None,
        overwrite: bool = False,
        parameters: Callable[[str], bool] | None = None,
        say: Callable[[str], Any] | None = None,
        progress: Callable[[int], Any] | None = None,
    ) -> Any:
        """Build the index of the recorded path, for ``explain(method="indexed")``.

        One that was interrupted goes on; a whole one is returned as it is. Under ``torchrun`` the
        processes share the work.

        Args:
            checkpoints: snapshots of the path to use, at most; None for 5, or for those that an
                index was begun with.
            dimensions: numbers for each document and snapshot; None for 1024, or as begun.
            overwrite: remove an index that is there.
            parameters: which of the trained parameters count, by name; None for all, or as begun.
            say: is told beforehand how much disk it will be.
            progress: is called with the number of rows to make, and gives a block in which a
                function is called with how many more are done.

        Returns:
            The :class:`~longarc.attribution.index.store.Index`.

        Raises:
            RunError: the run recorded no path, or its index was built with other options.
        """
        from longarc.attribution.of_run import index_run

        return index_run(
            self.folder,
            self._exact_predictor(),
            checkpoints=checkpoints,
            dimensions=dimensions,
            overwrite=overwrite,
            parameters=parameters,
            say=say,
            progress=progress,
        )

    def _exact_predictor(self) -> Predictor:
        """The predictor in float32: a contribution is not to be lost in bfloat16's rounding."""
        mine = self.predictor
        return type(mine)(
            mine.model, mine.tokenizer, max_length=mine.max_length, offset=mine.offset
        )
