"""Callbacks for `fit`: what drifts, and what is kept."""

from keras_dualopt.callbacks.drift import Drift
from keras_dualopt.callbacks.record import DriftRecord
from keras_dualopt.callbacks.retention import Retention

__all__ = ["Drift", "DriftRecord", "Retention"]
