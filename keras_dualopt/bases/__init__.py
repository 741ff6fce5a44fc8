"""The paper's two rules, and which other optimizers may be a base."""

from keras_dualopt.bases.adam import Adam
from keras_dualopt.bases.paper_rule import PaperRule
from keras_dualopt.bases.sgd import SGD

__all__ = ["SGD", "Adam", "PaperRule"]
