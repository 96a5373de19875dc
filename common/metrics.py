"""How good a classifier is on labelled rows: accuracy, ranking and calibration, and how sure one may be of it."""

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15
Z_95 = 1.959963984540054
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What one model does on `n_test` labelled rows; None where a value is undefined, which is not zero.

    Two classes: precision, recall, F1, AUROC and AUPRC are those of the positive class. More: the mean over the
    classes, each against the rest; if one class has no value, neither has the mean.

    Attributes:
        accuracy: Share of rows whose most probable class is the label; ties go to the lower index.
        balanced_accuracy: Mean over the classes of the share of its rows that are found.
        precision: Of the rows given to the class, the share that belongs there.
        recall: Of the rows of the class, the share that is found.
        f1: Harmonic mean of precision and recall, 2·tp / (2·tp + fp + fn).
        auroc: Chance that a row of the class scores above a row of another, ties counted half.
        auprc: Average precision, the step-wise area under precision over recall.
        ece: Expected calibration error, mean |accuracy - confidence| over 15 equal-width bins of the confidence.
        n_test: Number of rows.
    """

    accuracy: float | None
    balanced_accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    auprc: float | None
    ece: float | None
    n_test: int

    def to_json(self) -> dict[str, float | int | None]:
        """The object `M` of summary.json."""
        return asdict(self)


def evaluate(probabilities: NDArray[np.float64], labels: NDArray[np.integer], *, positive: int) -> Metrics:
    """Measure predicted probabilities against labels.

    Args:
        probabilities: Shape (n, k), k >= 2; every row sums to 1.
        labels: Shape (n,), class indices in 0..k-1.
        positive: The class that counts when k = 2, in 0..k-1.

    Raises:
        ValueError: If a shape, a probability, a label or `positive` does not fit.
    """
    _check(probabilities, labels, positive)
    count, classes = probabilities.shape
    if count == 0:
        return Metrics(
            accuracy=None, balanced_accuracy=None, precision=None, recall=None, f1=None, auroc=None, auprc=None,
            ece=None, n_test=0,
        )  # fmt: skip
    predicted = probabilities.argmax(axis=1)
    shown = [positive] if classes == 2 else list(range(classes))
    counts = {index: _confusion(predicted == index, labels == index) for index in range(classes)}
    return Metrics(
        accuracy=float((predicted == labels).mean()),
        balanced_accuracy=_mean([_ratio(tp, tp + fn) for tp, _, fn in counts.values()]),
        precision=_mean([_ratio(counts[index][0], counts[index][0] + counts[index][1]) for index in shown]),
        recall=_mean([_ratio(counts[index][0], counts[index][0] + counts[index][2]) for index in shown]),
        f1=_mean([_ratio(2 * tp, 2 * tp + fp + fn) for tp, fp, fn in (counts[index] for index in shown)]),
        auroc=_mean([_auroc(probabilities[:, index], labels == index) for index in shown]),
        auprc=_mean([_auprc(probabilities[:, index], labels == index) for index in shown]),
        ece=_calibration_error(probabilities.max(axis=1), predicted == labels),
        n_test=count,
    )


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share `correct` / `n`; stays inside [0, 1] and is honest for small n.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Raises:
        ValueError: If n < 1 or `correct` is not in 0..n.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"need 0 <= correct <= n and n >= 1, got {correct} of {n}")
    share = correct / n
    shrink = 1 + Z_95**2 / n
    middle = (share + Z_95**2 / (2 * n)) / shrink
    half = Z_95 / shrink * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    # At the ends the formula gives exactly 0 and 1; rounding must not pass them.
    return (0.0 if correct == 0 else middle - half, 1.0 if correct == n else middle + half)


def _check(probabilities: NDArray[np.float64], labels: NDArray[np.integer], positive: int) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise ValueError(f"probabilities have shape (n, k) with k >= 2, not {probabilities.shape}")
    count, classes = probabilities.shape
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {count} integers, not {labels.dtype} of shape {labels.shape}")
    if not 0 <= positive < classes:
        raise ValueError(f"positive = {positive} is not one of {classes} classes")
    if count == 0:
        return
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all()):
        raise ValueError("probabilities must be finite and >= 0")
    if np.abs(probabilities.sum(axis=1) - 1).max() > SUM_TOLERANCE:
        raise ValueError(f"every row of probabilities must sum to 1 within {SUM_TOLERANCE:g}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, found {labels.min()}..{labels.max()}")


def _confusion(predicted: NDArray[np.bool_], actual: NDArray[np.bool_]) -> tuple[int, int, int]:
    """True positives, false positives, false negatives of one class."""
    hits = int((predicted & actual).sum())
    return hits, int(predicted.sum()) - hits, int(actual.sum()) - hits


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _auroc(scores: NDArray[np.float64], actual: NDArray[np.bool_]) -> float | None:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(actual, scores)) if 0 < actual.sum() < actual.size else None


def _auprc(scores: NDArray[np.float64], actual: NDArray[np.bool_]) -> float | None:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(actual, scores)) if actual.any() else None


def _calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Bins are ((i - 1)/15, i/15], as in Guo et al. 2017 (arXiv:1706.04599)."""
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / confidence.size)
