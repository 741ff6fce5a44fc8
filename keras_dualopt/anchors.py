"""The life of θ₀: captured once, kept, moved on request, dropped to ship."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_dualopt import backend

# What the anchors hold; saved with them.
NOT_TAKEN, TAKEN, DROPPED = 0, 1, 2


class Anchors:
    """One optimizer variable per anchored weight, and whether it was taken.

    θ₀ is the value of a weight when the optimizer takes its first step. Until
    then the weights may still be loaded, so that nothing is copied in `build`.

    Args:
        variables: The optimizer's variables.
        wanted: Which of them have an anchor.
        add: Makes a tracked optimizer variable like a given one.
        remove: Untracks one.
        flag: A scalar integer variable, 0.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        wanted: Sequence[bool],
        add: Callable[[keras.Variable], keras.Variable],
        remove: Callable[[keras.Variable], None],
        flag: keras.Variable,
    ) -> None:
        self._variables = list(variables)
        self._wanted = list(wanted)
        self._add = add
        self._remove = remove
        self.flag = flag
        self.dropped = False
        self.slots: list[keras.Variable | None] = []
        self.taken: list[keras.Variable] = []  # `slots` without `None`
        # θ₀ of weights without a slot here, by their place in the model, on
        # the host: for the optimizer that trains them again.
        self.carried: dict[str, Any] = {}
        self._anchored = [
            variable
            for variable, needed in zip(variables, wanted, strict=True)
            if needed
        ]
        self._make()

    def _make(self) -> None:
        self.slots = [
            self._add(variable) if wanted else None
            for variable, wanted in zip(
                self._variables, self._wanted, strict=True
            )
        ]
        self.taken = [slot for slot in self.slots if slot is not None]

    @property
    def state(self) -> int:
        """What the anchors hold: `NOT_TAKEN`, `TAKEN` or `DROPPED`."""
        return int(keras.ops.convert_to_numpy(self.flag.value))

    def set_state(self, state: int) -> None:
        """Say what the anchors hold."""
        backend.copy_value(
            self.flag, keras.ops.convert_to_tensor(state, self.flag.dtype)
        )

    def capture(self, strategy: Any) -> None:
        """In a training step, before it moves anything: θ₀ if it is the first.

        Raises:
            ValueError: If the anchors were dropped.
        """
        if self.dropped:
            raise ValueError(
                "Expected: anchors to pull the weights to. Received: an "
                "optimizer whose anchors were dropped (`drop_anchors`). Call "
                "`optimizer.anchor_at()` to anchor at the current weights, or "
                "`anchor_at(model_or_weights_file)`."
            )
        backend.capture(self.flag, self.taken, self._anchored, strategy)

    def refresh(self) -> None:
        """Show the current weights until the first step."""
        if self.state == NOT_TAKEN:
            for anchor, variable in zip(
                self.taken, self._anchored, strict=True
            ):
                backend.copy_value(anchor, variable)

    def move_to(self, values: Sequence[Any], carried: dict[str, Any]) -> None:
        """Anchor at other values, aligned with the variables."""
        for slot, value in zip(self.slots, values, strict=True):
            if slot is not None:
                backend.copy_value(
                    slot, keras.ops.convert_to_tensor(value, slot.dtype)
                )
        self.carried = carried
        self.set_state(TAKEN)

    def drop(self) -> None:
        """Free the memory of θ₀."""
        for slot in self.slots:
            if slot is not None:
                self._remove(slot)
        self.slots = [None] * len(self.slots)
        self.taken = []
        self.carried = {}
        self.dropped = True
        self.set_state(DROPPED)

    def revive(self) -> None:
        """Make room for θ₀ again after `drop`."""
        if self.dropped:
            self._make()
            self.dropped = False
