"""The two base rules of the paper, as Keras optimizers."""

from keras_dualopt.bases.adam import Adam
from keras_dualopt.bases.paper_rule import PaperRule
from keras_dualopt.bases.sgd import SGD

__all__ = ["SGD", "Adam", "PaperRule"]
