import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from common.metrics import CALIBRATION_BINS, evaluate, wilson_interval


def two_classes(scores):
    scores = np.array(scores, dtype=np.float64)
    return np.stack([1 - scores, scores], axis=1)


def test_a_table_computed_by_hand():
    # Predicted 1, 1, 0, 0, 1; tp = 2, fp = 1, fn = 1, tn = 1.
    metrics = evaluate(two_classes([0.9, 0.8, 0.3, 0.1, 0.6]), np.array([1, 1, 1, 0, 0]), positive=1)
    assert metrics.accuracy == pytest.approx(3 / 5)
    assert metrics.precision == pytest.approx(2 / 3)
    assert metrics.recall == pytest.approx(2 / 3)
    assert metrics.f1 == pytest.approx(2 / 3)
    assert metrics.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics.auroc == pytest.approx(5 / 6)  # of 3 x 2 pairs only (0.3, 0.6) is in the wrong order
    assert metrics.auprc == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert metrics.n_test == 5


def test_calibration_error_computed_by_hand():
    # Confidences 0.9, 0.9, 0.9, 0.6: bins 13 and 8; gaps |2/3 - 0.9| and |0 - 0.6|, weighted by 3/4 and 1/4.
    metrics = evaluate(two_classes([0.9, 0.9, 0.1, 0.6]), np.array([1, 0, 0, 0]), positive=1)
    assert metrics.ece == pytest.approx(0.75 * abs(2 / 3 - 0.9) + 0.25 * 0.6)


def test_the_positive_class_may_be_the_first():
    labels = np.array([0, 0, 1, 1, 1])
    metrics = evaluate(two_classes([0.2, 0.7, 0.8, 0.9, 0.4]), labels, positive=0)
    assert metrics.precision == pytest.approx(1 / 2)
    assert metrics.recall == pytest.approx(1 / 2)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_it_agrees_with_scikit_learn(classes):
    generator = np.random.default_rng(classes)
    labels = np.concatenate([np.arange(classes), generator.integers(classes, size=300)])
    probabilities = generator.dirichlet(np.ones(classes), size=labels.size)
    probabilities[np.arange(labels.size), labels] += 0.5
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    average = {"average": "binary", "pos_label": 1} if classes == 2 else {"average": "macro"}
    score = probabilities[:, 1] if classes == 2 else probabilities

    metrics = evaluate(probabilities, labels, positive=1)

    assert metrics.precision == pytest.approx(precision_score(labels, predicted, **average))
    assert metrics.recall == pytest.approx(recall_score(labels, predicted, **average))
    assert metrics.f1 == pytest.approx(f1_score(labels, predicted, **average))
    assert metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics.auroc == pytest.approx(roc_auc_score(labels, score, multi_class="ovr"))


def test_a_class_never_predicted_has_no_precision():
    metrics = evaluate(two_classes([0.1, 0.2, 0.3]), np.array([0, 1, 0]), positive=1)
    assert metrics.precision is None
    assert metrics.recall == 0.0
    assert metrics.f1 == 0.0


def test_a_class_without_rows_has_no_recall_and_no_ranking():
    metrics = evaluate(two_classes([0.1, 0.7]), np.array([0, 0]), positive=1)
    assert (metrics.recall, metrics.auroc, metrics.auprc, metrics.balanced_accuracy) == (None, None, None, None)
    assert metrics.accuracy == 0.5


def test_a_mean_over_classes_is_undefined_when_one_class_is():
    probabilities = np.eye(3)[[0, 1, 1]]
    metrics = evaluate(probabilities, np.array([0, 1, 1]), positive=0)
    assert metrics.auroc is None
    assert metrics.accuracy == 1.0


def test_no_rows_give_no_values():
    metrics = evaluate(np.empty((0, 2)), np.empty(0, dtype=np.int64), positive=1)
    assert metrics.n_test == 0
    assert metrics.accuracy is None


def test_the_json_has_the_keys_of_summary_v1():
    shown = evaluate(two_classes([0.1, 0.7]), np.array([0, 1]), positive=1).to_json()
    expected = {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "auroc", "auprc", "ece", "n_test"}
    assert set(shown) == expected


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_every_value_is_a_share_or_undefined(rows):
    scores, labels = zip(*rows, strict=True)
    shown = evaluate(two_classes(scores), np.array(labels), positive=1).to_json()
    assert all(value is None or 0 <= value <= 1 for key, value in shown.items() if key != "n_test")


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_calibration_error_agrees_with_a_loop_over_the_bins(rows):
    scores, labels = zip(*rows, strict=True)
    probabilities = two_classes(scores)
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    total = 0.0
    for index in range(CALIBRATION_BINS):
        inside = [
            i for i, c in enumerate(confidence) if np.ceil(c * CALIBRATION_BINS) == index + 1
        ]  # (index/15, (index+1)/15]
        if inside:
            right = np.mean([predicted[i] == labels[i] for i in inside])
            total += len(inside) / len(rows) * abs(right - np.mean([confidence[i] for i in inside]))
    assert evaluate(probabilities, np.array(labels), positive=1).ece == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(
    ("probabilities", "labels", "positive", "reason"),
    [
        (np.ones(3), np.zeros(3, dtype=int), 0, "shape"),
        (np.ones((3, 1)), np.zeros(3, dtype=int), 0, "shape"),
        (np.full((3, 2), 0.5), np.zeros(2, dtype=int), 0, "3 integers"),
        (np.full((3, 2), 0.5), np.zeros(3), 0, "3 integers"),
        (np.full((3, 2), 0.5), np.zeros(3, dtype=int), 2, "positive = 2"),
        (np.full((3, 2), 0.5), np.full(3, 2), 0, "labels must be"),
        (np.full((3, 2), 0.6), np.zeros(3, dtype=int), 0, "sum to 1"),
        (np.full((3, 2), np.nan), np.zeros(3, dtype=int), 0, "finite"),
        (np.array([[1.5, -0.5]]), np.zeros(1, dtype=int), 0, ">= 0"),
    ],
)
def test_input_that_does_not_fit_is_refused(probabilities, labels, positive, reason):
    with pytest.raises(ValueError, match=reason):
        evaluate(probabilities, labels, positive=positive)


def test_wilson_known_answer():
    # Solutions p of |p - 0.95| = z * sqrt(p (1 - p) / 100).
    low, high = wilson_interval(95, 100)
    for bound in (low, high):
        assert abs(bound - 0.95) == pytest.approx(1.959963984540054 * (bound * (1 - bound) / 100) ** 0.5)
    assert (round(low, 4), round(high, 4)) == (0.8882, 0.9785)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_in_the_unit_interval(pair):
    correct, n = pair
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_a_share_that_is_none(correct, n):
    with pytest.raises(ValueError, match="correct <= n"):
        wilson_interval(correct, n)
