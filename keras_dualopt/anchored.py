"""An optimizer whose anchors and state outlive the process."""

import warnings
from typing import Any, Self

import keras

from keras_dualopt import backend, sources, state, state_file, wrapping
from keras_dualopt.anchors import DROPPED, TAKEN
from keras_dualopt.pulling import Parts, PullingOptimizer


class AnchoredOptimizer(PullingOptimizer):
    """The memory of DualOpt: anchors that can be moved, state in files."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Asked for before `build`: kept until there are variables.
        self._pending_state: dict[str, Any] | None = None
        self._pending_source: _Source | None = None

    def _after_build(self) -> None:
        if self._pending_state is not None:
            self._restore(self._pending_state)
        if self._pending_source is not None:
            self._move_anchors(self._pending_source.value)
            self._pending_source = None

    def _backend_update_step(
        self, grads: Any, trainable_variables: Any, learning_rate: Any
    ) -> None:
        if self._pending_state is not None or self._pending_source is not None:
            raise ValueError(
                "Expected: the state or the anchors given before the optimizer "
                "was built to fit the model. Received: ones that were refused. "
                "Load a file that fits, or make a new optimizer."
            )
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    @property
    def anchors(self) -> list[keras.Variable | None]:
        """θ₀ for each variable the optimizer was built on; `None`: none.

        Between `build` and the first step these are the current weights.

        Raises:
            ValueError: Before `build`.
        """
        built = self._built_parts("anchors")
        self._settle()
        built.anchors.refresh()
        return list(built.anchors.slots)

    def anchor_at(self, source: Any = None) -> Self:
        """Choose new anchors; return the optimizer.

        Args:
            source: `None`: the current weights (a new stage). A model of the
                same architecture or its pretrained part, or a weights file.
                Another `DualOpt`, whose anchors are taken over (freeze → fit →
                unfreeze → compile again), also those of weights that are
                frozen now; variables it has no anchor for take their current
                weights. Before `build` the source is kept, and read when the
                optimizer is built.

        Raises:
            ValueError: In scratch mode; if the source lacks a weight, has one
                of another shape, or one that is not finite. The anchors are
                as they were then.
            TypeError: If the source is none of these.
        """
        self._only_in_finetune("anchor_at")
        source = unwrapped(source)
        if isinstance(source, AnchoredOptimizer):
            source = source._anchored()
        else:
            sources.check_source(source)
        if self._parts is not None:
            self._move_anchors(source)
        elif source is not None or self._pending_state is not None:
            # Without a state, the current weights at the first step are what
            # is taken anyway.
            self._pending_source = _Source(source)
        else:
            self._pending_source = None
        return self

    def _move_anchors(self, source: Any) -> None:
        assert self._parts is not None
        self._settle()
        plan, anchors = self._parts.plan, self._parts.anchors
        wanted = (
            self._model_reference(),
            self._trainable_variables,
            [place.key for place in plan.places],
            plan.anchored,
        )
        values = sources.values_from(source, *wanted)
        carried = sources.carried_from(source, *wanted)
        self._revive()
        anchors.move_to(values, carried)
        self._attach_anchors()

    def _revive(self) -> None:
        """Make room for dropped anchors, where they were among the others."""
        assert self._parts is not None
        anchors = self._parts.anchors
        if not anchors.dropped:
            return
        others = list(self._variables)
        anchors.revive()
        first = self._parts.anchors_at
        order = [*others[:first], *anchors.taken, *others[first:]]
        wrapping.track_in_order(self, order)

    def _anchored(self) -> sources.Anchored:
        self._only_in_finetune("anchor_at(optimizer)")
        built = self._built_parts("anchors")
        if built.anchors.dropped:
            raise ValueError(
                "Expected: a DualOpt that has anchors. Received: one whose "
                "anchors were dropped."
            )
        keys = [place.key for place in built.plan.places]
        return sources.Anchored(
            self._trainable_variables,
            keys,
            self.anchors,
            self._model_reference(),
            built.anchors.carried,
        )

    def drop_anchors(self) -> None:
        """Forget θ₀, to ship a file without a second copy of the weights.

        It is saved: the file loads and evaluates, and the next training step
        is an error that names `anchor_at`.

        Raises:
            ValueError: Before `build`, and in scratch mode.
        """
        self._only_in_finetune("drop_anchors")
        built = self._built_parts("anchors")
        self._settle()
        built.anchors.drop()
        self._attach_anchors()

    def _only_in_finetune(self, name: str) -> None:
        if self._arguments.mode != "finetune":
            raise ValueError(
                f"Expected: `{name}` in fine-tune mode. Received: scratch "
                "mode, where every weight is pulled towards 0 and there are "
                "no anchors."
            )

    def _built_parts(self, what: str) -> Parts:
        if self._parts is None:
            raise ValueError(
                "Expected: a built optimizer. Received: one that has not seen "
                f"its variables, so that it has no {what} yet. Call "
                "`optimizer.build(model.trainable_variables)` or train first."
            )
        return self._parts

    def save_own_variables(self, store: Any) -> None:
        """Write the state, each entry by what it is and which weight it has."""
        if self._parts is None:
            if self._pending_source is not None:
                raise ValueError(
                    "Expected: a built optimizer, to save the anchors given to "
                    "`anchor_at`. Received: one that has not seen its "
                    "variables. Call "
                    "`optimizer.build(model.trainable_variables)` first."
                )
            if self._pending_state is not None:
                state_file.rewrite(self._pending_state, store)
            return
        self._settle()
        anchors = self._parts.anchors
        state_file.write(
            self._table(), store, anchors.state, self._labels(), anchors.carried
        )

    def load_own_variables(self, store: Any) -> None:
        """Read the state; before `build`, keep it until then.

        Raises:
            ValueError: If the state does not fit; it names the first
                difference, and no variable has been written then.
        """
        found = state_file.read(store)
        if found is None:
            trained = (
                self._parts is not None and self._parts.anchors.state == TAKEN
            )
            state_file.warn_foreign(len(list(store.keys())), trained)
        elif self._parts is None:
            self._pending_state = found
        else:
            self._restore(found)

    def _restore(self, found: dict[str, Any]) -> None:
        assert self._parts is not None
        anchors = self._parts.anchors
        flag = state_file.flag_of(found)
        revived = flag != DROPPED and anchors.dropped
        if revived:
            self._revive()
        try:
            pairs = state.match(self._table(), found, self._labels())
        except ValueError:
            if revived:
                anchors.drop()
            raise
        for variable, array in pairs:
            backend.copy_value(
                variable, keras.ops.convert_to_tensor(array, variable.dtype)
            )
        if flag == DROPPED:
            anchors.drop()
        else:
            anchors.set_state(flag)
            anchors.carried = state_file.carried_of(found)
        self._pending_state = None
        self._restore_reference(found)
        self._attach_anchors()

    def _restore_reference(self, found: dict[str, Any]) -> None:
        """Take η over where the learning rate was, so that ρ is as before."""
        assert self._parts is not None
        reference = found["manifest"]["settings"].get("reference")
        if reference is None or reference == self._reference:
            return
        if "learning_rate" not in found["arrays"] or not isinstance(
            self._learning_rate, keras.Variable
        ):
            warnings.warn(
                "Expected: a state that was written at reference learning rate "
                f"{self._reference!r}. Received: one at {reference!r}, with a "
                "learning rate of another kind (a schedule on one side). The "
                f"pull is measured against {self._reference!r}; pass "
                "`reference_learning_rate=` to choose.",
                stacklevel=2,
            )
            return
        self._reference = reference
        self._remake_pull()

    def _table(self) -> state_file.Table:
        assert self._parts is not None
        owners = [
            state_file.Owner(place.key, place.path, tuple(variable.shape))
            for place, variable in zip(
                self._parts.plan.places, self._trainable_variables, strict=True
            )
        ]
        return state.table(
            owners,
            self._variables,
            holders=(self, self._holder.base),
            anchors=self._parts.anchors.slots,
            scalars={
                "iterations": self._iterations,
                "learning_rate": self._learning_rate,
                "anchors_taken": self._parts.anchors.flag,
            },
        )

    def _labels(self) -> dict[str, Any]:
        return {
            "mode": self._arguments.mode,
            "base": wrapping.label(self._holder.base),
            "reference": self._reference,
        }


class _Source:
    """Holds what to anchor at; Keras' saver would enter a model kept here."""

    def __init__(self, value: Any) -> None:
        self.value = value


def unwrapped(optimizer: Any) -> Any:
    """Return the DualOpt inside of a `LossScaleOptimizer`."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer
