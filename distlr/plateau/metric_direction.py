"""The direction in which a metric improves, by its name. This module imports neither TensorFlow, Keras nor numpy."""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["infer_direction"]

# The last word of a metric's name that matches one of these decides its direction.
_HIGHER_IS_BETTER = re.compile(
    "auc|auroc|auprc|prauc|rocauc|precision|recall|sensitivity|specificity|f1|f2|fbeta|iou|miou|dice|jaccard|r2|"
    "similarity|correlation|true|kappa|mcc|map|ndcg|mrr|bleu|rouge|psnr|ssim|(?!accum|accel).*acc.*"
)
_LOWER_IS_BETTER = re.compile(
    "loss|error|mse|mae|mape|msle|rmse|hinge|poisson|crossentropy|entropy|divergence|logcosh|nll|perplexity|"
    "false|wer|cer|fid"
)


def infer_direction(monitor: str) -> Literal["min", "max"] | None:
    """Infers the direction in which a metric improves from its name; None where the name does not tell.

    >>> infer_direction("val_accuracy"), infer_direction("head_acc_loss"), infer_direction("score")
    ('max', 'min', None)
    """
    # `binary_io_u` is Keras' own name.
    for word in reversed(re.split(r"[^a-z0-9]+", monitor.lower().replace("io_u", "iou"))):
        if _LOWER_IS_BETTER.fullmatch(word):
            return "min"
        if _HIGHER_IS_BETTER.fullmatch(word):
            return "max"
    return None
