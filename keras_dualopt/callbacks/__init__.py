"""Callbacks for `fit`: what drifts, what is kept, and what outlives a kill."""

from keras_dualopt.callbacks.backup import AtomicBackup
from keras_dualopt.callbacks.drift import Drift, DriftRecord
from keras_dualopt.callbacks.retention import Retention

__all__ = ["AtomicBackup", "Drift", "DriftRecord", "Retention"]
