"""Networks of KerasHub that answer for places in an image.

SegFormer names every pixel, RetinaNet finds and names shapes, and SAM cuts out
the one in a box. KerasHub has no other instance segmentation that can be made
small, and its SAM refuses `fit`: the loop here trains it, by its box prompts.
All have one output for the old scenes and the new.

Each is a model from one array to one array, so that `Problem` can train it.
Layers behave as in inference: batch normalization takes its statistics once,
from the first scenes, and nothing is dropped.
"""

import keras
import numpy as np
from keras import ops

from .packages import imported
from .problem import Problem
from .scenes import CLASSES, KINDS, SIDE


def _hub():
    return imported("keras_hub", "keras-hub")


# --- networks --------------------------------------------------------------


def segformer():
    """Return a SegFormer of two levels: images to a class for each pixel."""
    hub = _hub().models
    encoder = hub.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[4, 2],
        max_drop_path_rate=0.0,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[16, 32],
        image_shape=(SIDE, SIDE, 3),
    )
    backbone = hub.SegFormerBackbone(
        image_encoder=encoder, projection_filters=32
    )
    return hub.SegFormerImageSegmenter(
        backbone=backbone, num_classes=CLASSES, preprocessor=None
    )


def retinanet():
    """Return a RetinaNet on a small ResNet, at a stride of 8 pixels alone.

    Its output has, for each anchor, where the box is and the kinds' logits.
    """
    hub, layers = _hub().models, _hub().layers
    encoder = hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(SIDE, SIDE, 3),
    )
    backbone = hub.RetinaNetBackbone(
        image_encoder=encoder,
        min_level=3,
        max_level=3,
        use_p5=False,
        image_shape=(SIDE, SIDE, 3),
    )
    detector = hub.RetinaNetObjectDetector(
        backbone=backbone,
        # Squares of 16 and of 22 pixels.
        anchor_generator=layers.AnchorGenerator(
            bounding_box_format="xyxy",
            min_level=3,
            max_level=3,
            num_scales=2,
            aspect_ratios=[1.0],
            anchor_size=2.0,
        ),
        num_classes=len(KINDS),
        bounding_box_format="xyxy",
        pre_logits_num_conv_layers=0,
        preprocessor=None,
        name="retinanet",
    )
    # Its own losses: Huber's for boxes, the focal one for kinds.
    detector.compile()
    inputs = keras.Input((SIDE, SIDE, 3))
    answer = detector(inputs)
    both = [answer["bbox_regression"], answer["cls_logits"]]
    return keras.Model(inputs, ops.concatenate(both, axis=-1))


def sam():
    """Return a SAM: an image, a box in a row above it, to a mask's logits."""
    hub, layers = _hub().models, _hub().layers
    backbone = hub.SAMBackbone(
        image_encoder=hub.ViTDetBackbone(
            hidden_size=32,
            num_layers=2,
            intermediate_dim=64,
            num_heads=2,
            global_attention_layer_indices=[1],
            patch_size=4,
            num_output_channels=32,
            window_size=4,
            image_shape=(SIDE, SIDE, 3),
        ),
        prompt_encoder=layers.SAMPromptEncoder(
            hidden_size=32,
            image_embedding_size=(SIDE // 4, SIDE // 4),
            input_image_size=(SIDE, SIDE),
        ),
        mask_decoder=layers.SAMMaskDecoder(
            hidden_size=32,
            num_layers=1,
            intermediate_dim=64,
            num_heads=2,
            embedding_dim=32,
            num_multimask_outputs=0,
            iou_head_depth=2,
            iou_head_hidden_dim=16,
        ),
    )
    # What a box alone makes no use of: other prompts, the guess of the IoU.
    prompts = backbone.prompt_encoder
    for unused in (
        prompts.foreground_point_embed,
        prompts.background_point_embed,
        prompts.not_a_point_embed,
        prompts.mask_downscaler,
        backbone.mask_decoder.iou_prediction_head,
    ):
        unused.trainable = False
    task = hub.SAMImageSegmenter(backbone=backbone, preprocessor=None)
    inputs = keras.Input((1 + SIDE, SIDE, 3))
    none = inputs[:, :0]
    answer = task(
        {
            "images": inputs[:, 1:],
            "boxes": ops.reshape(inputs[:, 0, :2, :2], (-1, 1, 2, 2)),
            "points": none[:, :, 0, :2],
            "labels": none[:, :, 0, 0],
            "masks": none[:, :, None, :, :1],
        }
    )
    return keras.Model(inputs, answer["masks"][:, 0])


# --- problems --------------------------------------------------------------


class Segmentation(Problem):
    """A name for every pixel; measured by the mean IoU over the classes."""

    batch = 8
    training = False

    def __init__(self, backbone, task):
        super().__init__(backbone, task)
        self._initial = [np.array(v) for v in self.reviewer.variables]

    def _reviewer(self, inputs, features):
        # The network has its output layer, the same for old and new.
        self.old_head = keras.layers.Identity()
        return self.backbone

    def begin_pretraining(self, seed):
        """Set each weight's first values in another order."""
        random = np.random.default_rng(seed)
        for variable, value in zip(self.reviewer.variables, self._initial):
            if variable.trainable:
                value = random.permuted(value.ravel()).reshape(value.shape)
            variable.assign(value)
        # Here alone something is dropped, which torch draws by itself.
        keras.utils.set_random_seed(seed)
        first = ops.convert_to_tensor(self.task.old["train"].inputs[:32])
        for _ in range(30):
            self.reviewer(first, training=True)

    def answer(self, model, inputs):
        """Return a model's output, found for fifty images at a time.

        TensorFlow 2.21 ends with a segmentation fault where SAM is given a
        hundred.
        """
        parts = np.split(inputs, range(50, len(inputs), 50))
        answer = super().answer
        return np.concatenate([answer(model, part) for part in parts])

    def accuracy(self, model, part):
        """Return the mean IoU in percent."""
        named = self.answer(model, part.inputs).argmax(axis=-1)
        pairs = np.bincount(
            (CLASSES * part.labels + named).ravel(), minlength=CLASSES**2
        ).reshape(CLASSES, CLASSES)
        common = np.diag(pairs)
        either = pairs.sum(axis=0) + pairs.sum(axis=1) - common
        # Of a class that is nowhere nothing can be said.
        there = either > 0
        return 100 * float(np.mean(common[there] / either[there]))


class Detection(Segmentation):
    """Boxes and kinds; measured by the mean average precision at IoU 0.5."""

    batch = 4

    def __init__(self, backbone, task):
        super().__init__(backbone, task)
        self.detector = backbone.get_layer("retinanet")
        image = ops.zeros((1, SIDE, SIDE, 3))
        self.anchors = self.detector.anchor_generator(image)["P3"]
        # Its losses keep their means in variables, made when first called;
        # programs are given them, too.
        outputs = self.reviewer.output.shape[1:]
        self.loss(ops.zeros((1, 1, 5)), ops.zeros((1, *outputs)))
        self.untrained += self.detector.metrics_variables

    def loss(self, labels, answer):
        """Return RetinaNet's own loss."""
        return self.detector.compute_loss(
            x=ops.zeros((1, SIDE, SIDE, 3)),
            y={"boxes": labels[..., :4] * SIDE, "labels": labels[..., 4]},
            y_pred={
                "bbox_regression": answer[..., :4],
                "cls_logits": answer[..., 4:],
            },
            sample_weight=None,
        )

    def accuracy(self, model, part):
        """Return the mean average precision in percent."""
        answer = self.answer(model, part.inputs)
        boxes = keras.utils.bounding_boxes.decode_deltas_to_boxes(
            anchors=self.anchors,
            boxes_delta=ops.convert_to_tensor(answer[..., :4]),
            encoded_format="center_xywh",
            anchor_format="xyxy",
            box_format="xyxy",
            image_shape=(SIDE, SIDE, 3),
        )
        return 100 * mean_average_precision(
            *strongest(ops.convert_to_numpy(boxes), answer[..., 4:]),
            part.labels[..., :4] * SIDE,
            part.labels[..., 4],
        )


class Instances(Segmentation):
    """The mask of the shape in a box; measured by the mean IoU of masks."""

    batch = 4

    @staticmethod
    def loss(labels, answer):
        """Return the mean cross-entropy of pixels and SAM's Dice loss."""
        labels = ops.cast(labels, answer.dtype)
        crossed = keras.losses.binary_crossentropy(
            labels, answer, from_logits=True
        )
        shares = ops.sigmoid(answer)
        common = ops.sum(labels * shares, axis=(1, 2))
        total = ops.sum(labels + shares, axis=(1, 2))
        return ops.mean(crossed) + ops.mean(1 - 2 * common / total)

    def accuracy(self, model, part):
        """Return the mean over the shapes of IoU, in percent."""
        seen, mask = self.answer(model, part.inputs) > 0, part.labels == 1
        common = np.sum(seen & mask, axis=(1, 2))
        return 100 * float(np.mean(common / np.sum(seen | mask, axis=(1, 2))))


def _overlaps(boxes, others):
    """Return the IoU of each box with each other one, image by image."""
    return ops.convert_to_numpy(
        keras.utils.bounding_boxes.compute_iou(boxes, others, "xyxy")
    )


def strongest(boxes, logits, most=10):
    """Return the boxes, kinds and scores that overlaps do not rule out.

    What KerasHub's `NonMaxSuppression` does, for all images at once: its own
    takes seconds where this takes milliseconds.

    Args:
        boxes: Images × boxes × 4.
        logits: Images × boxes × kinds.
        most: How many boxes of an image may remain.
    """
    kinds, scores = logits.argmax(axis=-1), logits.max(axis=-1)
    overlaps, rows = _overlaps(boxes, boxes), np.arange(len(boxes))
    free = np.where(scores > np.log(0.05 / 0.95), scores, -np.inf)
    chosen = []
    for _ in range(most):
        best = free.argmax(axis=1)
        kind = np.where(np.isfinite(free[rows, best]), kinds[rows, best], -1)
        chosen.append((boxes[rows, best], kind, scores[rows, best]))
        free[overlaps[rows, best] > 0.5] = -np.inf
        free[rows, best] = -np.inf
    return [np.stack(parts, axis=1) for parts in zip(*chosen)]


def mean_average_precision(boxes, labels, scores, true_boxes, true_labels):
    """Return the mean over the kinds of the area under precision and recall.

    A box finds a shape that none with a higher score has found, if it has the
    shape's kind and an IoU of 0.5 or more; of several, the one it covers
    best. At each recall counts the best precision at that recall or beyond.

    Args:
        boxes: Images × boxes × 4, left, top, right and bottom edge.
        labels: Images × boxes: kinds, -1 where there is no box.
        scores: Images × boxes: the higher, the surer.
        true_boxes: Images × shapes × 4.
        true_labels: Images × shapes: kinds, -1 where there is no shape.
    """
    overlaps, precisions = _overlaps(boxes, true_boxes), []
    for kind in np.unique(true_labels[true_labels >= 0]):
        wanted = true_labels == kind
        found = np.zeros(wanted.shape, bool)
        hits = []
        given = np.argwhere(labels == kind)
        order = np.argsort(-scores[labels == kind], kind="stable")
        for image, box in given[order]:
            free = wanted[image] & ~found[image]
            overlap = np.where(free, overlaps[image, box], 0)
            hits.append(overlap.max() >= 0.5)
            found[image, overlap.argmax()] |= hits[-1]
        hits = np.array(hits, bool)
        precision = np.cumsum(hits) / (1 + np.arange(len(hits)))
        best = np.maximum.accumulate(precision[::-1])[::-1]
        # Recall grows by as much at every hit.
        precisions.append(best[hits].sum() / wanted.sum())
    return float(np.mean(precisions))


PROBLEMS = {"segformer": Segmentation, "retinanet": Detection, "sam": Instances}
