"""Every option of a training run, with its default and the reason for it. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longarc.errors import OptionError
from longarc.objectives.regularizers.registry import build_regularizers, check_regularizers
from longarc.training.model_defaults import (
    BORROWED,
    AnyPooling,
    check_fits_model,
    default_of,
    fill_in,
)
from longarc.training.option_fields import (
    check_choices,
    check_kinds,
    check_only_with,
    check_out,
    check_ranges,
    check_split,
    differing,
    option,
)

_SEVERAL_PASSES = "goes through the model several times a step, or turns whole steps round"
_FLOODED = "{flooding: {level: 0.1, per_example: true}} floods each document's loss and does not"

_ONLY_WITH = {
    "position_alpha": ("positions", ("hierarchical",)),
    "attention_minutes": ("attention", ("learned",)),
    "recipe_minutes": ("recipe", ("auto",)),
}
"""Options that would change nothing without another's value."""


@dataclass
class TrainConfig:
    """The options of ``longarc train`` and :func:`longarc.fit`; the run's ``config.yaml`` keeps all.

    Defaults were chosen by measurement on Reuters R52 and licence texts (``docs/training.md``).

    >>> TrainConfig(data="tickets.csv", out="runs/tickets", loss="logit-adjusted").epochs
    3
    """

    data: str = option(
        "", "table of texts and labels: CSV, TSV, JSON Lines, Parquet, a datasets folder or Hub id"
    )
    out: str = option("", "run folder to write")

    text: str | None = option(None, "column of texts; guessed when not named")
    label: str | None = option(None, "column of labels; guessed when not named")
    label_separator: str | None = option(
        None, "the label column holds several labels joined by this"
    )
    validation: str | None = option(None, "table to validate on, instead of a part of DATA")
    test: str | None = option(None, "table to test on, instead of a part of DATA")
    validation_fraction: float = option(
        0.15,
        "part of DATA to validate on when no table is named; 0 to train on it and choose nothing",
    )
    test_fraction: float = option(
        0.15, "part of DATA to test on when no table is named; 0 for none"
    )
    limit: int | None = option(None, "use only this many rows of DATA, drawn at random")
    unlabelled: str | None = option(
        None, "table of texts without labels, which --regularizers vat and r-drop learn from too"
    )

    model: str = option(
        "minilm",
        "encoder: minilm (packaged), a local folder or a Hub id; or rnn, relu-rnn, lstm, gru or "
        "output-gated-gru, from scratch",
    )
    model_options: dict | None = option(
        None, 'options of a model from scratch, e.g. \'{"cell_size": 128, "layers": 2}\''
    )
    embeddings: str | None = option(
        None,
        "pretrained encoder whose token vectors a model from scratch starts with, such as minilm; "
        "default: random ones",
    )
    max_length: int | None = option(
        None, "tokens of a document that are read; default: what the model allows, up to 512"
    )
    positions: Literal["trained", "hierarchical", "copy", "interpolate"] = option(
        "trained", "how to stretch the model's positions to --max-length; trained: not at all"
    )
    position_alpha: float = option(
        0.4, "α of --positions hierarchical: the weight of the coarse index"
    )
    attention: str | None = option(
        None,
        "exact, or a kernel for long documents such as local-clustered; default: the model's own",
    )
    attention_options: dict | None = option(
        None, "options of --attention, e.g. '{\"num_features\": 256}'"
    )
    attention_minutes: float = option(
        5.0, "time to fit --attention learned to the model's exact attention, before the training"
    )
    residual_attention: Literal["none", "on", "gated"] = option(
        "none",
        "add each layer's attention scores to the next one's; gated: as much as is learnt, from 0 "
        "on, for pretrained models",
    )
    pooling: AnyPooling = option(
        None,
        "document vector: mean of tokens, or transformers' own head on the first token (cls); of a "
        "recurrent model mean, max (its default), attention, max-attention, or the last states",
    )
    head_start: Literal["probe", "scratch"] = option(
        None,
        "start the head from a linear probe on the frozen encoder, or at random; default: probe, of "
        "a recurrent model scratch",
    )
    freeze: bool = option(
        False, "train the probe alone and leave the encoder as it is (about a minute on a CPU)"
    )

    loss: str = option("auto", "loss; auto: cross-entropy, or binary-cross-entropy for multi-label")
    loss_options: dict | None = option(None, "options of the loss, e.g. '{\"tau\": 0.5}'")
    recipe: Literal["none", "post-hoc", "tau-norm", "crt", "auto"] = option(
        "none",
        "second stage for rare classes, which changes the head alone; auto: what does best on the "
        "validation split, the loss too where it is auto",
    )
    recipe_tau: float | None = option(
        None, "τ of --recipe post-hoc or tau-norm; default: chosen on the validation split"
    )
    recipe_minutes: float = option(5.0, "time that the trials of --recipe auto may take")
    hybrid: float = option(
        0.0, "add so many times the margins of TF-IDF + LinearSVC to the logits; 0 for none"
    )
    calibrate: bool = option(
        False, "scale the logits so that confidences fit the validation split; last of all"
    )

    regularizers: list | None = option(
        None,
        "what a step does besides descending the loss: fgm, or several, e.g. "
        "'fgm, {flooding: {level: 0.1}}'",
    )

    epochs: float = option(
        None, f"passes over the training data, at most; default: {default_of('epochs')}"
    )
    batch_size: int = option(
        None, f"documents in a step on one device; default: {default_of('batch_size')}"
    )
    accumulation: int = option(1, "batches summed into one update")
    learning_rate: float | Literal["auto"] = option(
        None,
        "peak step size of the encoder's last layer, or auto: what longarc lr would recommend; "
        f"default: {default_of('learning_rate')}",
    )
    head_learning_rate: float | None = option(
        None, "peak step size of the head; default: as --learning-rate"
    )
    layer_decay: float = option(
        None,
        f"factor on the step size for each layer further down; default: {default_of('layer_decay')}",
    )
    embedding_factor: float = option(
        None,
        f"one more factor on the step size of token vectors; default: 1; of borrowed ones {BORROWED:g}",
    )
    weight_decay: float = option(0.01, "decoupled weight decay")
    warmup: float = option(0.1, "part of the steps over which the step size rises")
    max_grad_norm: float = option(1.0, "clip the gradient to this norm; 0 for never")
    patience: int = option(
        None,
        "stop after this many epochs without a better validation macro-F1; 0 for never; default: "
        f"{default_of('patience')}",
    )
    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto", "auto: bfloat16 arithmetic where the machine has it, float32 weights always"
    )
    sampler: Literal["random", "class-balanced", "square-root"] = option(
        "random",
        "order of training: every document once an epoch, or draws with all classes equally likely "
        "or as the square root of their sizes",
    )
    group_by_length: bool = option(
        True, "put documents of similar length into a batch, to save padding"
    )

    record_path: bool = option(
        False, "keep the path of the training, which longarc explain needs; in float32 unless named"
    )
    path_budget: float = option(10.0, "gigabytes that the path may take")
    monitors: bool = option(
        True,
        "log what the step size does (update sizes, the implicit penalty, sharpness) in at most 2 % "
        "of the training time; of a training of few steps, more",
    )

    seed: int = option(0, "seed of split, head, order and dropout")
    device: Literal["auto", "cpu"] = option("auto", "auto: a GPU where there is one")
    checkpoint_minutes: float = option(10.0, "save resumable state this often, besides every epoch")
    keep_checkpoints: bool = option(False, "keep checkpoints/ when the run is complete")
    baseline: bool = option(True, "also fit TF-IDF + LinearSVC on the same split")
    resume: bool = option(False, "go on from the last checkpoint of the run in --out")
    overwrite: bool = option(False, "replace an existing run folder")
    trust_remote_code: bool = option(
        False, "run Python code that comes with the model: only for a model you trust"
    )

    def __post_init__(self) -> None:
        fill_in(self)

    def validate(self) -> None:
        """Refuse values of the wrong kind or out of range, before any work: OptionError."""
        check_kinds(self)
        ranges: dict[str, tuple[float, float | None]] = {
            "validation_fraction": (0, 0.9), "test_fraction": (0, 0.9), "epochs": (0, None),
            "batch_size": (1, None), "accumulation": (1, None), "learning_rate": (0, None),
            "layer_decay": (0, 1), "embedding_factor": (0, None), "weight_decay": (0, None), "warmup": (0, 1),
            "max_grad_norm": (0, None), "patience": (0, None), "checkpoint_minutes": (0, None),
            "max_length": (8, None), "head_learning_rate": (0, None), "limit": (1, None),
            "seed": (0, 2**32 - 1), "recipe_minutes": (0, None),
            "recipe_tau": (-10, 10), "hybrid": (0, None), "position_alpha": (0, 1),
            "attention_minutes": (0, None), "path_budget": (0, None),
        }  # fmt: skip
        if self.learning_rate == "auto":
            del ranges["learning_rate"]
            self._refuse_search()
        check_ranges(self, ranges)
        check_split(self)
        check_choices(self)
        check_fits_model(self)
        if self.freeze and self.head_start == "scratch":
            raise OptionError(
                "--freeze trains the probe alone, so --head-start scratch leaves nothing to do. "
                "Drop one of the two."
            )
        if self.freeze and self.sampler != "random":
            raise OptionError(
                f"--freeze trains on all documents at once, so --sampler {self.sampler} would "
                "change nothing. Drop one of the two, or use --recipe crt, which weighs classes "
                "equally."
            )
        for name, given in (
            ("--regularizers", self.regularizers), ("--embedding-factor", self.embedding_factor != 1),
            ("--head-learning-rate", self.head_learning_rate is not None),
            ("--accumulation", self.accumulation != 1),
        ):  # fmt: skip
            if self.freeze and given:
                raise OptionError(
                    f"--freeze takes no training steps, so {name} would change nothing. Drop one of "
                    "the two."
                )
        if self.unlabelled is not None:
            self._refuse_unlabelled()
        if self.record_path:
            self._refuse_unrecordable()
        elif self.path_budget != TrainConfig.path_budget:
            raise OptionError("--path-budget is for --record-path. Add that, or drop this.")
        if self.freeze and self.residual_attention == "gated":
            raise OptionError(
                "the gates of --residual-attention gated are 0 at the start, and --freeze leaves them "
                "there. Drop one of the two."
            )
        if self.attention_options and self.attention is None:
            raise OptionError("--attention-options needs --attention: name the kernel they are of.")
        check_only_with(self, _ONLY_WITH)
        if self.positions == "hierarchical" and self.position_alpha in (0, 0.5, 1):
            raise OptionError(
                f"--position-alpha is {self.position_alpha:g}: expected a number between 0 and 1, "
                "but not 0.5, at which the coarse and the fine index weigh the same."
            )
        if self.recipe_tau is not None and self.recipe not in ("post-hoc", "tau-norm"):
            raise OptionError(
                f"--recipe-tau is for --recipe post-hoc or tau-norm, and --recipe is {self.recipe}. "
                "Name one of the two, or drop --recipe-tau."
            )
        if not self.validates:
            self._refuse_choices()
        check_out(self)

    def _refuse_choices(self) -> None:
        """Without a validation split nothing can be chosen, so everything has to be named."""
        fix = "or leave a part of the table with --validation-fraction."
        if self.recipe in ("post-hoc", "tau-norm") and self.recipe_tau is None:
            raise OptionError(
                f"--validation-fraction is 0, so there is nothing to choose the τ of --recipe "
                f"{self.recipe} on. Give it with --recipe-tau, {fix}"
            )
        if self.recipe in ("crt", "auto") or self.calibrate:
            named = "--calibrate" if self.calibrate else f"--recipe {self.recipe}"
            raise OptionError(
                f"{named} needs a validation split, and --validation-fraction is 0. Drop it, {fix}"
            )

    def _refuse_search(self) -> None:
        """What leaves --learning-rate auto nothing to search, or nothing to choose by."""
        for name, applies, why in (
            ("--freeze", self.freeze, "takes no training steps"),
            ("--epochs 0", not self.epochs, "takes no training steps"),
            ("--head-learning-rate", self.head_learning_rate is not None,
             "has a rate of its own, and one is searched for all"),
            ("--validation-fraction 0", not self.validates, "leaves no documents to choose on"),
        ):  # fmt: skip
            if applies:
                raise OptionError(
                    f"--learning-rate auto and {name} exclude each other: {name} {why}. Drop one of "
                    "them."
                )

    def _refuse_unlabelled(self) -> None:
        """What would learn nothing from texts without labels, or not know what to do with them."""
        chosen = build_regularizers(self.regularizers)
        if not any(regularizer.learns_unlabelled for regularizer in chosen):
            raise OptionError(
                "--unlabelled is for --regularizers vat or r-drop, which need no label; the loss "
                "does. Add one of them, or drop --unlabelled. For masked tokens and the like see "
                "longarc pretrain."
            )
        if self.sampler != "random":
            raise OptionError(
                f"--sampler {self.sampler} draws by class, and texts of --unlabelled have none. Drop "
                "one of the two."
            )

    def _refuse_unrecordable(self) -> None:
        """What the recorder would refuse, before any work; it says why at more length."""
        names = [name for name, _ in check_regularizers(self.regularizers)]
        built = zip(names, build_regularizers(self.regularizers), strict=True)
        beyond = [name for name, regularizer in built if not regularizer.sums_over_documents]
        for name, applies, why in (
            ("--freeze", self.freeze, "takes no training steps, so there is no path"),
            (f"--regularizers {', '.join(beyond)}", beyond,
             f"{_SEVERAL_PASSES}; {_FLOODED}" if "flooding" in beyond else _SEVERAL_PASSES),
            ("--loss radius-margin", self.loss == "radius-margin", "reads the head's weights"),
        ):  # fmt: skip
            if applies:
                raise OptionError(
                    f"--record-path and {name} exclude each other: {name} {why}. Drop one of them."
                )

    @property
    def validates(self) -> bool:
        """Whether there is a validation split."""
        return self.validation is not None or self.validation_fraction > 0

    @property
    def run(self) -> Path:
        """The run folder as a path."""
        return Path(self.out).expanduser()

    def differences(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """Options that change the outcome and differ, as name → (this, other)."""
        free = {
            "out", "resume", "overwrite", "keep_checkpoints", "checkpoint_minutes", "baseline",
            "path_budget", "monitors",
        }  # fmt: skip
        return differing(self, other, free)
