"""Between the pretrained and the fine-tuned weights: one point, or the way."""

from keras_dualopt.interpolation.between import interpolate, review
from keras_dualopt.interpolation.curve import ReviewCurve, review_curve

__all__ = ["ReviewCurve", "interpolate", "review", "review_curve"]
