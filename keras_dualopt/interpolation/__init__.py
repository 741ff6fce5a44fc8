"""Between the pretrained and the fine-tuned weights: one point, or the way."""

from keras_dualopt.interpolation.between import interpolate
from keras_dualopt.interpolation.walk import ReviewCurve, review, review_curve

__all__ = ["ReviewCurve", "interpolate", "review", "review_curve"]
