"""How strongly a weight is pulled at a depth, and the pull itself.

Pure functions of numbers and tensors; the equations are those of Huang et al.,
"One Step Learning, One Step Review", AAAI 2024, arXiv:2401.10962 (OLOR).
"""

from typing import Any

from keras import ops


def rollback_strength(
    relative: float, rollback: float, rollback_min: float, power: float
) -> float:
    """Return the share of the way back to θ₀ per step: strongest at the input.

    Formula (OLOR Eq. 8 and 9, with `relative` in the place of i/n):

        ι₂ + (1 − relative)^γ (ι₁ − ι₂)

    Args:
        relative: Relative depth in [0, 1]; 0 is the layer nearest the input.
        rollback: ι₁, the strength at the shallowest layer, in [0, 1].
        rollback_min: ι₂, the strength at the deepest layer, in [0, ι₁].
        power: γ > 0.

    Returns:
        A share in [0, 1], at the reference learning rate.

    Example:
    >>> rollback_strength(0.5, 0.01, 0.0, 2.0)
    0.0025
    """
    # A negative base and a non-integer γ would turn complex.
    base = min(max(1.0 - relative, 0.0), 1.0)
    share: float = base**power
    return rollback_min + share * (rollback - rollback_min)


def decay_strength(
    relative: float, weight_decay: float, weight_decay_min: float, power: float
) -> float:
    """Return the weight decay at a depth: strongest at the output.

    Formula: w₂ + relative^γ (w₁ − w₂), in AdamW's units: it is multiplied by
    the learning rate.

    Args:
        relative: Relative depth in [0, 1]; 1 is the deepest layer.
        weight_decay: w₁, the decay at the deepest layer, ≥ w₂.
        weight_decay_min: w₂, the decay at the shallowest layer, ≥ 0.
        power: γ > 0.

    Example:
    >>> decay_strength(1.0, 0.05, 0.01, 1.0)
    0.05
    """
    base = min(max(relative, 0.0), 1.0)
    share: float = base**power
    return weight_decay_min + share * (weight_decay - weight_decay_min)


def way(ratio: Any) -> tuple[Any, Any]:
    """Return what `pulled` needs to know of ρ, a scalar tensor in [0, 1].

    Returns:
        Whether the way ends nearer to θ_pre than to the anchor, and the factor
        of (θ_pre − a) that leads back to its end from the nearer of the two.
    """
    near = ops.less(ratio, 0.5)
    return near, ops.where(near, ratio, ops.subtract(ratio, 1.0))


def pulled(value: Any, anchor: Any, near: Any, share: Any) -> Any:
    """Return θ_pre − ρ (θ_pre − a) (OLOR Eq. 5 and 6), exact at its ends.

    Three laws hold to the last bit: ρ = 0 returns `value`, ρ = 1 returns
    `anchor`, and `value == anchor` stays. One form alone does not keep all
    three, so the nearer end of the way is the one that is moved from:
    θ_pre − ρ (θ_pre − a), or a − (ρ − 1)(θ_pre − a).

    Args:
        value: θ_pre, a floating-point tensor.
        anchor: a, a tensor of the same dtype and shape, or `None` for 0.
        near: The first of `way(ρ)`, a scalar.
        share: The second, a scalar of the same dtype as `value`.
    """
    if anchor is None:
        start = ops.where(near, value, ops.zeros_like(value))
        return ops.subtract(start, ops.multiply(share, value))
    start = ops.where(near, value, anchor)
    return ops.subtract(start, ops.multiply(share, ops.subtract(value, anchor)))
