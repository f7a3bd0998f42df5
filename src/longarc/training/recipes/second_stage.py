"""The second stage: what is done to the head of a trained model, and which does it best.

Each recipe ends as another weight and bias of the final linear layer, so the model that is saved
remains an ordinary one. Legend: N documents, C classes, d features.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from longarc.errors import ModelError
from longarc.training.evaluation import macro_f1
from longarc.training.prediction import decisions, probabilities
from longarc.training.recipes.post_hoc import POST_HOC_TAUS, choose_tau, log_prior, post_hoc_adjust
from longarc.training.recipes.retrain import retrain_classifier
from longarc.training.recipes.tau_norm import TAU_NORM_TAUS, tau_normalize
from longarc.training.recipes.temperature import fit_temperature
from longarc.training.recipes.trials import Trials, negative_log_likelihood

if TYPE_CHECKING:
    from longarc.data.labels import LabelSpace
    from longarc.objectives.losses.contract import Loss

RECIPES = ("none", "post-hoc", "tau-norm", "crt")
"""In the order in which ``auto`` tries them, simple ones first."""


def check_head(head: nn.Linear, recipe: str) -> None:
    """Raise ModelError for a head without the bias that a recipe changes.

    >>> check_head(nn.Linear(4, 3, bias=False), "tau-norm")
    """
    if head.bias is None and recipe not in ("none", "tau-norm"):
        raise ModelError(
            f"the model's last layer, {head}, has no bias, which --recipe {recipe} has to change. "
            "Use --recipe tau-norm, or --loss logit-adjusted instead of a recipe."
        )


class SecondStage:
    """Recipes for one head, measured on one validation split.

    Args:
        head: the final linear layer, (C, d). ``run`` changes it in place.
        features: (N, d) float32, what enters the head for the validation documents.
        trials: with the validation target, and the time there is.
        space: the label space.
        examples: training documents in all.
        loss: what the head was trained with, which knows how to read its logits.
        training: gives features (M, d) and target of the training documents, for ``crt``.
        training_seconds: about how long that takes.
        offset: (N, C), what is added to the head's logits of the validation documents.
        tau: τ of post-hoc and tau-norm, where it is not to be chosen.
    """

    def __init__(
        self,
        head: nn.Linear,
        features: Tensor,
        trials: Trials,
        *,
        space: LabelSpace,
        examples: int,
        loss: Loss,
        training: Callable[[], tuple[Tensor, Tensor]],
        training_seconds: float = 0.0,
        offset: Tensor | None = None,
        tau: float | None = None,
    ):
        self.head = head
        self.features = features
        self.trials = trials
        self.space = space
        self.loss = loss
        self.training = training
        self.training_seconds = training_seconds
        self.offset = 0.0 if offset is None else offset
        self.tau = tau
        prior = log_prior(space.counts, examples, multi_label=space.multi_label)
        self.prior = torch.from_numpy(prior).float()
        self.weight = head.weight.detach().float().cpu()
        self.bias = None if head.bias is None else head.bias.detach().float().cpu()
        self.heads: dict[str, tuple[Tensor, Tensor | None]] = {}

    def run(self, recipe: str, *, calibrate: bool = False) -> dict[str, Any]:
        """Try the recipe (``"auto"``: all), change the head, and return its part of recipe.json.

        ``auto`` also fits a temperature, and uses it if it lowers the validation loss.
        """
        auto = recipe == "auto"
        for name in RECIPES if auto else dict.fromkeys(("none", recipe)):
            self._try(name, auto)
        chosen = self.trials.best()["name"] if auto else recipe
        row = next(row for row in self.trials.rows if row["name"] == chosen)
        weight, bias = self.heads[chosen]
        temperature = self._temperature(row, keep=calibrate) if calibrate or auto else None
        if temperature is not None:
            weight = weight / temperature["value"]
            bias = None if bias is None else bias / temperature["value"]
        with torch.no_grad():
            self.head.weight.copy_(weight)
            if bias is not None:
                self.head.bias.copy_(bias)
        return {
            **self.trials.to_dict(),
            "chosen": chosen,
            "why": self._why(recipe, row, temperature),
            "temperature": temperature,
            "head_changed": temperature is not None or not _as_trained(chosen, row),
        }

    def _try(self, name: str, auto: bool) -> None:
        if auto and name != "none":
            if name == "tau-norm" and self.space.multi_label:
                self.trials.not_tried[name] = "with several labels it changes no decision"
                return
            needed = self.training_seconds if name == "crt" else 0.0
            if not self.trials.has_time(name, needed, what="reading the training documents"):
                return
        started = time.monotonic()
        recipes = {
            "none": self._none, "post-hoc": self._post_hoc, "tau-norm": self._tau_norm,
            "crt": self._crt,
        }  # fmt: skip
        weight, bias, facts = recipes[name]()
        self.heads[name] = weight, bias
        logits = self._logits(weight, bias).numpy()
        loss = self.loss if _as_trained(name, facts) else None
        self.trials.add(name, logits, since=started, loss=loss, **facts)

    def _none(self) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        return self.weight, self.bias, {}

    def _post_hoc(self) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        check_head(self.head, "post-hoc")
        bias = cast(Tensor, self.bias)
        logits = self._logits(self.weight, bias)
        tau = choose_tau(
            lambda tau: self._macro_f1(post_hoc_adjust(logits, self.prior, tau)),
            POST_HOC_TAUS if self.tau is None else (self.tau,),
        )
        return self.weight, post_hoc_adjust(bias, self.prior, tau), {"tau": tau}

    def _tau_norm(self) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        def score(tau: float) -> float:
            return self._macro_f1(self._logits(*tau_normalize(self.weight, self.bias, tau)))

        tau = choose_tau(score, TAU_NORM_TAUS if self.tau is None else (self.tau,))
        return *tau_normalize(self.weight, self.bias, tau), {"tau": tau}

    def _crt(self) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        check_head(self.head, "crt")
        features, target = self.training()
        probe = retrain_classifier(
            features,
            target,
            classes=len(self.space),
            score=lambda probe: self._macro_f1(self._logits(probe.weight, probe.bias)),
        )
        return probe.weight, probe.bias, {"penalty": probe.penalty}

    def _logits(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(self.features, weight, bias) + self.offset

    def _macro_f1(self, logits: Tensor) -> float:
        several = self.space.multi_label
        return macro_f1(self.trials.target, decisions(logits.numpy(), multi_label=several))

    def _temperature(self, row: dict[str, Any], *, keep: bool) -> dict[str, float] | None:
        """T with the validation loss before and after; None where it would change nothing.

        Unless it is to be kept whatever it does, also where it would not lower the loss: a focal
        loss's own correction can be better than any T.
        """
        several, target = self.space.multi_label, self.trials.target
        logits = self._logits(*self.heads[row["name"]]).double().numpy()
        value = fit_temperature(logits, target, multi_label=several)
        after = negative_log_likelihood(probabilities(logits / value, multi_label=several), target)
        if value == 1.0 or after is None or not (keep or after < row["nll"]):
            return None
        return {"value": value, "nll_before": row["nll"], "nll_after": after}

    def _why(self, recipe: str, row: dict[str, Any], temperature: dict[str, float] | None) -> str:
        plain, reached = self.trials.rows[0]["macro_f1"], row["macro_f1"]
        tau = f" with τ = {row['tau']:g}" if "tau" in row else ""
        if recipe == "none":
            said = "none was asked for"
        elif reached is None:
            said = f"{recipe}{tau}, as named"
        elif recipe == "auto" and row["name"] == "none":
            said = f"none; nothing tried has a better validation macro-F1 than {plain:.3f}"
        elif recipe == "auto":
            said = (
                f"{row['name']}{tau} has the best validation macro-F1, {plain:.3f} → {reached:.3f}"
            )
        else:
            said = f"{recipe}{tau}, validation macro-F1 {plain:.3f} → {reached:.3f}"
        if temperature is not None:
            said += f"; temperature {temperature['value']:.2f}"
        return said


def _as_trained(name: str, facts: dict[str, Any]) -> bool:
    return name == "none" or facts.get("tau") == 0
