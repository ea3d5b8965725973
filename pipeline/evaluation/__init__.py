"""Measures, one a file, and the gates that look at them before a release is published."""

from __future__ import annotations

from .gates import GATES, GatesConfig, check_gates
from .knn import knn_accuracy, knn_labels, label_knn
from .nightly import MeasuresConfig
from .verdicts import GateVerdict

__all__ = [
    "GATES",
    "GateVerdict",
    "GatesConfig",
    "MeasuresConfig",
    "check_gates",
    "knn_accuracy",
    "knn_labels",
    "label_knn",
]
