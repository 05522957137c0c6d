"""Linear probes, cross-validated: how well a label can be read from an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np


def classify(
    inputs: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    folds: int,
    seed: int,
    per_class: int | None = None,
    directions: int | None = None,
    shuffled: bool = False,
) -> float | None:
    """Balanced accuracy of a logistic regression on rows whose group it never saw.

    The answers of all folds are scored together, so a class counts once however its groups fall.

    Args:
        inputs: (rows, dim).
        labels: (rows,), at least two different ones.
        groups: rows of one group are never on both sides of a split, (rows,).
        folds: of the cross-validation, at least 2.
        seed: of the splits, of the choice of rows and of the shuffling.
        per_class: rows of each class that the probe is fitted to; None for all of them.
        directions: the probe sees so many leading principal components of the inputs; None for
            the inputs themselves.
        shuffled: whether the labels are permuted: what is read then is the probe's own doing. A
            group keeps one label where it has one, as in the control tasks of Hewitt and Liang
            (https://arxiv.org/abs/1909.03368).

    Returns:
        None when no split has at least two classes on the side the probe is fitted to.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score

    rng = np.random.default_rng(seed)
    targets = _permuted(labels, groups, rng) if shuffled else labels
    truths, guesses = [], []
    for train, test in _splits(groups, folds, seed):
        chosen = train if per_class is None else _draw(train, targets, per_class, rng)
        known = np.isin(targets[test], targets[chosen])  # nobody can name a class never seen
        if len(np.unique(targets[chosen])) < 2 or not known.any():
            continue
        probe = _pipeline(LogisticRegression(max_iter=1000), directions)
        probe.fit(inputs[chosen], targets[chosen])
        truths.append(targets[test][known])
        guesses.append(probe.predict(inputs[test][known]))
    if not truths:
        return None
    truth = np.concatenate(truths)
    score = recall_score(truth, np.concatenate(guesses), labels=np.unique(truth), average="macro")
    return float(score)


def regress(
    inputs: np.ndarray,
    values: np.ndarray,
    groups: np.ndarray,
    *,
    folds: int,
    seed: int,
    shuffled: bool = False,
) -> float:
    """R2 of a ridge regression on rows whose group it never saw; arguments as in `classify`."""
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(seed)
    targets = _permuted(values, groups, rng) if shuffled else values
    guesses = np.empty(len(targets))
    for train, test in _splits(groups, folds, seed):
        probe = _pipeline(RidgeCV(np.logspace(-2, 4, 13)), None)
        guesses[test] = probe.fit(inputs[train], targets[train]).predict(inputs[test])
    return float(r2_score(targets, guesses))


def repeated(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rows whose label occurs in two groups or more, bool (rows,): others are never foretold."""
    counts = {label: len(np.unique(groups[labels == label])) for label in np.unique(labels)}
    return np.array([counts[label] > 1 for label in labels], dtype=bool)


def chance(labels: np.ndarray) -> float:
    """Balanced accuracy of guessing: one over the number of classes."""
    return 1.0 / len(np.unique(labels))


def _splits(groups: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit to and rows to test on, for every fold; whole groups at random."""
    from sklearn.model_selection import GroupKFold

    numbers = np.unique(groups)
    splitter = GroupKFold(n_splits=min(folds, len(numbers)))
    shuffled = np.random.default_rng(seed).permutation(len(numbers))
    renamed = shuffled[np.searchsorted(numbers, groups)]
    return list(splitter.split(renamed, groups=renamed))


def _permuted(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels of whole groups change places where a group has one label, of rows otherwise."""
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    of_group = labels[first]
    if np.array_equal(of_group[member], labels):
        return rng.permutation(of_group)[member]
    return rng.permutation(labels)


def _draw(rows: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most so many rows of each class."""
    shuffled = rng.permutation(rows)
    return np.concatenate(
        [shuffled[labels[shuffled] == label][:count] for label in np.unique(labels[rows])]
    )


def _pipeline(model: Any, directions: int | None) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # before scaling: a leading direction is one in which the inputs differ much
    first = [] if directions is None else [PCA(directions)]
    return make_pipeline(*first, StandardScaler(), model)
