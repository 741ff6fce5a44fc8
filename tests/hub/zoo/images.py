"""Models that tell what is in an image."""

import keras
from hub.zoo.sizes import PLAIN, VISION, backbone, hub


def resnet_backbone(block="basic_block", size=64, width=8, **options):
    return hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, *[width] * 3],
        stackwise_num_blocks=[2, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block,
        image_shape=(size, size, 3),
        **options,
    )


def vit():
    return hub.ViTImageClassifier(
        backbone=hub.ViTBackbone(
            image_shape=(8, 8, 3),
            patch_size=4,
            num_layers=3,
            num_heads=2,
            hidden_dim=4,
            mlp_dim=8,
        ),
        num_classes=2,
        **PLAIN,
    )


def deit():
    return hub.DeiTImageClassifier(
        backbone=hub.DeiTBackbone(**VISION), num_classes=2, **PLAIN
    )


def resnet(block="bottleneck_block", **options):
    return hub.ResNetImageClassifier(
        backbone=resnet_backbone(block, **options), num_classes=2, **PLAIN
    )


def mit_backbone(size=32):
    return hub.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=(size, size, 3),
        hidden_dims=[4, 8],
    )


def hgnetv2_backbone(size=64):
    return hub.HGNetV2Backbone(
        depths=[1, 1],
        embedding_size=4,
        hidden_sizes=[8, 8],
        stem_channels=[3, 4, 4],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[[4, 4, 8, 1, 2, 3], [8, 4, 8, 1, 2, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True],
        image_shape=(size, size, 3),
        out_features=["stage1", "stage2"],
    )


def hgnetv2():
    return hub.HGNetV2ImageClassifier(
        backbone=hgnetv2_backbone(), num_classes=2, head_filters=4, **PLAIN
    )


def mobilenet():
    return hub.MobileNetImageClassifier(
        backbone=hub.MobileNetBackbone(
            stackwise_expansion=[[8, 8], [8]],
            stackwise_num_blocks=[2, 1],
            stackwise_num_filters=[[8, 8], [8]],
            stackwise_kernel_size=[[3, 3], [5]],
            stackwise_num_strides=[[2, 1], [1]],
            stackwise_se_ratio=[[None, 0.25], [0.25]],
            stackwise_activation=[["relu", "relu"], ["hard_swish"]],
            stackwise_padding=[[1, 1], [2]],
            output_num_filters=8,
            depthwise_filters=16,
            depthwise_stride=1,
            depthwise_residual=True,
            last_layer_filter=8,
            squeeze_and_excite=0.5,
            image_shape=(32, 32, 3),
        ),
        num_classes=2,
        **PLAIN,
    )


def mobilenet_v5():
    return hub.MobileNetV5Backbone(
        stackwise_block_types=[["er"], ["uir", "uir"]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [8, 8]],
        stackwise_strides=[[2], [2, 1]],
        stackwise_act_layers=[["relu"], ["relu", "relu"]],
        stackwise_exp_ratios=[[2.0], [2.0, 2.0]],
        stackwise_se_ratios=[[0.0], [0.0, 0.0]],
        stackwise_dw_kernel_sizes=[[0], [5, 5]],
        stackwise_dw_start_kernel_sizes=[[0], [0, 0]],
        stackwise_dw_end_kernel_sizes=[[0], [0, 0]],
        stackwise_exp_kernel_sizes=[[3], [0, 0]],
        stackwise_pw_kernel_sizes=[[1], [0, 0]],
        stackwise_num_heads=[[0], [0, 0]],
        stackwise_key_dims=[[0], [0, 0]],
        stackwise_value_dims=[[0], [0, 0]],
        stackwise_kv_strides=[[0], [0, 0]],
        stackwise_use_cpe=[[False], [False, False]],
        use_msfa=False,
        num_features=8,
        image_shape=(32, 32, 3),
    )


def efficientnet():
    return hub.EfficientNetImageClassifier(
        backbone=hub.EfficientNetBackbone(
            stackwise_width_coefficients=[1.0, 1.0],
            stackwise_depth_coefficients=[1.0, 1.0],
            stackwise_kernel_sizes=[3, 3],
            stackwise_num_repeats=[1, 2],
            stackwise_input_filters=[8, 8],
            stackwise_output_filters=[8, 8],
            stackwise_expansion_ratios=[1, 4],
            stackwise_squeeze_and_excite_ratios=[0.0, 0.25],
            stackwise_strides=[1, 2],
            stackwise_block_types=["fused", "unfused"],
            stackwise_force_input_filters=[0, 0],
            stackwise_nores_option=[False, False],
            input_shape=(32, 32, 3),
            num_features=8,
        ),
        num_classes=2,
        **PLAIN,
    )


def swin():
    return hub.SwinTransformerBackbone(
        image_shape=(16, 16, 3),
        embed_dim=4,
        depths=(2, 1),
        num_heads=(1, 2),
        window_size=2,
        patch_size=2,
    )


def cspnet(block):
    def build():
        return hub.CSPNetImageClassifier(
            backbone=hub.CSPNetBackbone(
                stem_filters=4,
                stem_kernel_size=3,
                stem_strides=1,
                stackwise_depth=[1, 1],
                stackwise_strides=[1, 2],
                stackwise_num_filters=[4, 8],
                block_type=block,
                stage_type="dark",
                image_shape=(32, 32, 3),
            ),
            num_classes=2,
            **PLAIN,
        )

    return build


def densenet():
    return hub.DenseNetImageClassifier(
        backbone=hub.DenseNetBackbone(
            stackwise_num_repeats=[2, 2],
            growth_rate=4,
            image_shape=(32, 32, 3),
        ),
        num_classes=2,
        **PLAIN,
    )


def vgg():
    return hub.VGGImageClassifier(
        backbone=hub.VGGBackbone(
            stackwise_num_repeats=[1, 2],
            stackwise_num_filters=[4, 8],
            image_shape=(32, 32, 3),
        ),
        num_classes=2,
        **PLAIN,
    )


def xception():
    return hub.XceptionImageClassifier(
        backbone=hub.XceptionBackbone(
            stackwise_conv_filters=[[4, 4], [4, 4]],
            stackwise_pooling=[True, False],
            image_shape=(32, 32, 3),
        ),
        num_classes=2,
        **PLAIN,
    )


def application(name, size=32, **options):
    def build():
        base = getattr(keras.applications, name)(
            weights=None,
            include_top=False,
            input_shape=(size, size, 3),
            pooling="avg",
            **options,
        )
        return keras.Sequential([base, keras.layers.Dense(2)])

    return build


MODELS = {
    "vit": vit,
    "deit": deit,
    "resnet": resnet,
    "resnet_basic": lambda: resnet("basic_block"),
    "resnet_vd": lambda: hub.ResNetBackbone(
        input_conv_filters=[4, 4, 4],
        input_conv_kernel_sizes=[3, 3, 3],
        stackwise_num_filters=[64, 8],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block_vd",
        image_shape=(32, 32, 3),
    ),
    "resnet_v2": lambda: resnet(use_pre_activation=True),
    "mit": mit_backbone,
    "hgnetv2": hgnetv2,
    "dinov2": backbone("DINOV2", **VISION, position_embedding_shape=(8, 8)),
    "dinov3": backbone("DINOV3", **{**VISION, "hidden_dim": 8}),
    "mobilenet": mobilenet,
    "mobilenet_v5": mobilenet_v5,
    "efficientnet": efficientnet,
    "swin": swin,
    "cspnet_dark": cspnet("dark_block"),
    "cspnet_edge": cspnet("edge_block"),
    "densenet": densenet,
    "vgg": vgg,
    "xception": xception,
    "applications_convnext": application("ConvNeXtTiny"),
    "applications_resnet50v2": application("ResNet50V2"),
    "applications_mobilenet_v3": application("MobileNetV3Small"),
    "applications_efficientnet_v2": application("EfficientNetV2B0"),
    "applications_inception_v3": application("InceptionV3", 75),
}
