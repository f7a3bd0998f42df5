"""Train text encoders on long documents and long-tailed labels, and explain their predictions.

The names below are loaded when first used, so that ``import longarc`` costs nothing: torch and
transformers come in with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from longarc.version import __version__

if TYPE_CHECKING:
    from longarc.api import Pretraining, Run, fit, open_run, pretrain
    from longarc.attribution.kernel_machine import KernelMachine
    from longarc.comparison.compare import Comparison, compare, open_comparison
    from longarc.dynamics.diagnosis import diagnose
    from longarc.dynamics.implicit_regularization import implicit_regularization
    from longarc.errors import DataError, LongarcError, ModelError, OptionError, RunError
    from longarc.models.attention.calibration import calibrate_attention
    from longarc.models.attention.interface import set_attention
    from longarc.models.attention.residual_interface import set_residual_attention
    from longarc.models.loading import load_model
    from longarc.models.positions import stretch_positions
    from longarc.models.recurrent.config import RecurrentConfig
    from longarc.models.recurrent.model import (
        RecurrentForMaskedLM,
        RecurrentForSequenceClassification,
        RecurrentModel,
    )
    from longarc.models.recurrent.output_gated_gru import OutputGatedGRU
    from longarc.models.rezero import set_rezero
    from longarc.objectives.losses.asymmetric import AsymmetricLoss
    from longarc.objectives.losses.binary_cross_entropy import BinaryCrossEntropyLoss
    from longarc.objectives.losses.class_balanced import ClassBalancedLoss
    from longarc.objectives.losses.class_weighted import ClassWeightedLoss
    from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
    from longarc.objectives.losses.dice import DiceLoss
    from longarc.objectives.losses.f1_weighted import F1WeightedCrossEntropy
    from longarc.objectives.losses.focal import FocalLoss
    from longarc.objectives.losses.gradient_view import gradient_weight
    from longarc.objectives.losses.ldam import LDAMLoss
    from longarc.objectives.losses.logit_adjusted import LogitAdjustedLoss
    from longarc.objectives.losses.multilabel_softmax import MultiLabelSoftmaxLoss
    from longarc.objectives.losses.radius_margin import RadiusMarginLoss
    from longarc.objectives.losses.soft_accuracy import SoftAccuracyLoss
    from longarc.objectives.losses.soft_f1 import SoftF1Loss
    from longarc.objectives.losses.truncated import TruncatedCrossEntropy
    from longarc.objectives.regularizers.contract import Regularizer
    from longarc.objectives.regularizers.fgm import FGM
    from longarc.objectives.regularizers.flooding import Flooding
    from longarc.objectives.regularizers.freelb import FreeLB
    from longarc.objectives.regularizers.gradient_penalty import GradientPenalty
    from longarc.objectives.regularizers.input_gradient_penalty import InputGradientPenalty
    from longarc.objectives.regularizers.pgd import PGD
    from longarc.objectives.regularizers.r_drop import RDrop
    from longarc.objectives.regularizers.sam import SAM
    from longarc.objectives.regularizers.step import regularized_backward
    from longarc.objectives.regularizers.vat import VAT
    from longarc.objectives.siamese.byol import BYOL
    from longarc.objectives.siamese.simclr import SimCLR
    from longarc.objectives.siamese.simsiam import SimSiam
    from longarc.training.config import TrainConfig
    from longarc.training.pretraining.config import PretrainConfig
    from longarc.training.recording.path_recorder import PathRecorder
    from longarc.training.trainer import Trainer

_HOMES = {
    "fit": "longarc.api",
    "open_run": "longarc.api",
    "pretrain": "longarc.api",
    "Pretraining": "longarc.api",
    "Run": "longarc.api",
    "KernelMachine": "longarc.attribution.kernel_machine",
    "Comparison": "longarc.comparison.compare",
    "compare": "longarc.comparison.compare",
    "open_comparison": "longarc.comparison.compare",
    "diagnose": "longarc.dynamics.diagnosis",
    "implicit_regularization": "longarc.dynamics.implicit_regularization",
    "DataError": "longarc.errors",
    "LongarcError": "longarc.errors",
    "ModelError": "longarc.errors",
    "OptionError": "longarc.errors",
    "RunError": "longarc.errors",
    "calibrate_attention": "longarc.models.attention.calibration",
    "set_attention": "longarc.models.attention.interface",
    "set_residual_attention": "longarc.models.attention.residual_interface",
    "load_model": "longarc.models.loading",
    "stretch_positions": "longarc.models.positions",
    "RecurrentConfig": "longarc.models.recurrent.config",
    "RecurrentForMaskedLM": "longarc.models.recurrent.model",
    "RecurrentForSequenceClassification": "longarc.models.recurrent.model",
    "RecurrentModel": "longarc.models.recurrent.model",
    "OutputGatedGRU": "longarc.models.recurrent.output_gated_gru",
    "set_rezero": "longarc.models.rezero",
    "AsymmetricLoss": "longarc.objectives.losses.asymmetric",
    "BinaryCrossEntropyLoss": "longarc.objectives.losses.binary_cross_entropy",
    "ClassBalancedLoss": "longarc.objectives.losses.class_balanced",
    "ClassWeightedLoss": "longarc.objectives.losses.class_weighted",
    "CrossEntropyLoss": "longarc.objectives.losses.cross_entropy",
    "DiceLoss": "longarc.objectives.losses.dice",
    "F1WeightedCrossEntropy": "longarc.objectives.losses.f1_weighted",
    "FocalLoss": "longarc.objectives.losses.focal",
    "gradient_weight": "longarc.objectives.losses.gradient_view",
    "LDAMLoss": "longarc.objectives.losses.ldam",
    "LogitAdjustedLoss": "longarc.objectives.losses.logit_adjusted",
    "MultiLabelSoftmaxLoss": "longarc.objectives.losses.multilabel_softmax",
    "RadiusMarginLoss": "longarc.objectives.losses.radius_margin",
    "SoftAccuracyLoss": "longarc.objectives.losses.soft_accuracy",
    "SoftF1Loss": "longarc.objectives.losses.soft_f1",
    "TruncatedCrossEntropy": "longarc.objectives.losses.truncated",
    "Regularizer": "longarc.objectives.regularizers.contract",
    "FGM": "longarc.objectives.regularizers.fgm",
    "Flooding": "longarc.objectives.regularizers.flooding",
    "FreeLB": "longarc.objectives.regularizers.freelb",
    "GradientPenalty": "longarc.objectives.regularizers.gradient_penalty",
    "InputGradientPenalty": "longarc.objectives.regularizers.input_gradient_penalty",
    "PGD": "longarc.objectives.regularizers.pgd",
    "RDrop": "longarc.objectives.regularizers.r_drop",
    "SAM": "longarc.objectives.regularizers.sam",
    "regularized_backward": "longarc.objectives.regularizers.step",
    "VAT": "longarc.objectives.regularizers.vat",
    "BYOL": "longarc.objectives.siamese.byol",
    "SimCLR": "longarc.objectives.siamese.simclr",
    "SimSiam": "longarc.objectives.siamese.simsiam",
    "TrainConfig": "longarc.training.config",
    "PathRecorder": "longarc.training.recording.path_recorder",
    "PretrainConfig": "longarc.training.pretraining.config",
    "Trainer": "longarc.training.trainer",
}

__all__ = [
    "BYOL",
    "FGM",
    "PGD",
    "SAM",
    "VAT",
    "AsymmetricLoss",
    "BinaryCrossEntropyLoss",
    "ClassBalancedLoss",
    "ClassWeightedLoss",
    "Comparison",
    "CrossEntropyLoss",
    "DataError",
    "DiceLoss",
    "F1WeightedCrossEntropy",
    "Flooding",
    "FocalLoss",
    "FreeLB",
    "GradientPenalty",
    "InputGradientPenalty",
    "KernelMachine",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "LongarcError",
    "ModelError",
    "MultiLabelSoftmaxLoss",
    "OptionError",
    "OutputGatedGRU",
    "PathRecorder",
    "PretrainConfig",
    "Pretraining",
    "RDrop",
    "RadiusMarginLoss",
    "RecurrentConfig",
    "RecurrentForMaskedLM",
    "RecurrentForSequenceClassification",
    "RecurrentModel",
    "Regularizer",
    "Run",
    "RunError",
    "SimCLR",
    "SimSiam",
    "SoftAccuracyLoss",
    "SoftF1Loss",
    "TrainConfig",
    "Trainer",
    "TruncatedCrossEntropy",
    "__version__",
    "calibrate_attention",
    "compare",
    "diagnose",
    "fit",
    "gradient_weight",
    "implicit_regularization",
    "load_model",
    "open_comparison",
    "open_run",
    "pretrain",
    "regularized_backward",
    "set_attention",
    "set_residual_attention",
    "set_rezero",
    "stretch_positions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'longarc' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
