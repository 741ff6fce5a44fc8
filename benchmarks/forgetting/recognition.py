"""ImageNet's network before a task: what is kept is what it recognizes."""

import dataclasses

import keras

from .efficientnet_lite import imagenet_classifier
from .problem import CamePretrained
from .tasks import Part


class Recognition(CamePretrained):
    """A backbone with ImageNet's output layer.

    ImageNet's own pictures and labels are not here: the old problem is to name
    photographs, among 1,000 names, as the pretrained network names them.
    """

    batch = 8

    def __init__(self, backbone, task):
        super().__init__(backbone, task)
        self._named = {}

    def _reviewer(self, inputs, features):
        self.old_head = imagenet_classifier()
        return keras.Model(inputs, self.old_head(features))

    def _begin(self, start):
        super()._begin(start)
        # The weights are the pretrained ones now.
        if start.seed not in self._named:
            self._named[start.seed] = {
                name: Part(part.inputs, self._names(part))
                for name, part in start.task.old.items()
            }
        self.task = dataclasses.replace(start.task, old=self._named[start.seed])

    def _names(self, part):
        return self.answer(self.reviewer, part.inputs).argmax(axis=-1)
