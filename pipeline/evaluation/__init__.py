"""Measures, one a file, and the gates that look at them before a release is published."""

from __future__ import annotations

from .category import category_knn, category_measures
from .gates import GATES, GatesConfig, check_gates
from .knn import knn_accuracy, knn_labels, label_knn
from .nightly import MeasuresConfig
from .verdicts import GateVerdict

__all__ = [
    "GATES",
    "GateVerdict",
    "GatesConfig",
    "MeasuresConfig",
    "category_knn",
    "category_measures",
    "check_gates",
    "knn_accuracy",
    "knn_labels",
    "label_knn",
]
