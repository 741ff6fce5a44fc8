"""Fine-tune a KerasHub ViT on handwritten digits, and ship it.

    KERAS_BACKEND=torch python examples/vit_images.py            # from_preset
    KERAS_BACKEND=torch python examples/vit_images.py --small    # no download

The preset is ViT-B/16, pretrained on ImageNet (340 MB; on a CPU take `--images
64`). With `--small`, and where the preset cannot be reached, a ViT of two
blocks first learns the digits 0 to 4 and then takes the preset's place: what
it still knows of them is measured after each epoch.

How it is tuned and shipped stands in `hub_finetune.py`. It prints what is
pulled and how far it may go, writes the picture of how far each layer went
(`out/vit.png`), and a file without a second copy of the weights
(`out/vit.keras`). Needs `pip install keras-hub scikit-learn matplotlib`.
"""

import keras
import keras_hub
from hub_finetune import compiled, finetune, make_parser, reached
from sklearn.datasets import load_digits

from keras_dualopt.callbacks import Retention

PRESET = "vit_base_patch16_224_imagenet"
CLASSES = 5


def digits(first, count=None):
    """Return images (N, 32, 32, 3) of five digits, and labels from 0."""
    images, labels = load_digits(return_X_y=True)
    chosen = (first <= labels) & (labels < first + CLASSES)
    images = images[chosen][:count].reshape(-1, 8, 8, 1) * (255 / 16)
    images = images.repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)
    return images.astype("uint8"), labels[chosen][:count] - first


def small_classifier(backbone=None):
    """Return a classifier of five classes, on a given backbone or a new one."""
    if backbone is None:
        backbone = keras_hub.models.ViTBackbone(
            image_shape=(32, 32, 3),
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=32,
            mlp_dim=64,
        )
    converter = keras_hub.layers.ViTImageConverter(
        image_size=(32, 32), scale=1 / 127.5, offset=-1.0
    )
    return keras_hub.models.ViTImageClassifier(
        backbone=backbone,
        num_classes=CLASSES,
        preprocessor=keras_hub.models.ViTImageClassifierPreprocessor(converter),
    )


def pretrained_small(epochs):
    """Return a classifier on a backbone that knows 0 to 4, and a callback."""
    old = compiled(small_classifier(), keras.optimizers.Adam(1e-3))
    old.fit(*digits(0), batch_size=32, epochs=epochs, verbose=2)
    return small_classifier(old.backbone), [Retention(digits(0), model=old)]


def pretrained(small, epochs):
    task = keras_hub.models.ImageClassifier
    classifier = None if small else reached(task, PRESET, CLASSES)
    return pretrained_small(epochs) if classifier is None else (classifier, [])


def main(arguments=None):
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, metavar="N")
    options = parser.parse_args(arguments)
    keras.utils.set_random_seed(0)
    classifier, callbacks = pretrained(options.small, options.epochs)
    data = digits(5, options.images)
    finetune(classifier, data, 32, callbacks, options, "vit")


if __name__ == "__main__":
    main()
