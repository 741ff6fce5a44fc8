"""Models that say something of every place of an image."""

import keras_hub
from hub.zoo.images import hgnetv2_backbone, mit_backbone, resnet_backbone
from hub.zoo.sizes import PLAIN, VISION, hub

# KerasHub documents this class and does not export it.
from keras_hub.src.models.retinanet.retinanet_label_encoder import (
    RetinaNetLabelEncoder as AnchorLabels,
)


def segformer():
    return hub.SegFormerImageSegmenter(
        backbone=hub.SegFormerBackbone(
            image_encoder=mit_backbone(), projection_filters=4
        ),
        num_classes=2,
        **PLAIN,
    )


def retinanet():
    return hub.RetinaNetObjectDetector(
        backbone=hub.RetinaNetBackbone(
            image_encoder=resnet_backbone(),
            min_level=3,
            max_level=6,
            use_p5=False,
            image_shape=(64, 64, 3),
        ),
        label_encoder=AnchorLabels(
            anchor_generator=keras_hub.layers.AnchorGenerator(
                bounding_box_format="xyxy",
                min_level=3,
                max_level=6,
                num_scales=1,
                aspect_ratios=[1.0],
                anchor_size=4.0,
            ),
            bounding_box_format="xyxy",
        ),
        num_classes=2,
        bounding_box_format="xyxy",
        **PLAIN,
    )


def deeplab():
    return hub.DeepLabV3ImageSegmenter(
        backbone=hub.DeepLabV3Backbone(
            image_encoder=resnet_backbone(),
            low_level_feature_key="P2",
            spatial_pyramid_pooling_key="P4",
            dilation_rates=[2, 4],
            upsampling_size=4,
            projection_filters=4,
            image_shape=(64, 64, 3),
        ),
        num_classes=2,
        **PLAIN,
    )


def basnet():
    return hub.BASNetImageSegmenter(
        backbone=hub.BASNetBackbone(
            image_encoder=resnet_backbone(
                size=None, width=64, block="basic_block_vd"
            ),
            num_classes=1,
            image_shape=(64, 64, 3),
            projection_filters=64,
        ),
        **PLAIN,
    )


def d_fine():
    return hub.DFineObjectDetector(
        backbone=hub.DFineBackbone(
            backbone=hgnetv2_backbone(),
            decoder_in_channels=[8, 8],
            encoder_hidden_dim=8,
            num_denoising=0,
            num_labels=2,
            hidden_dim=8,
            learn_initial_query=False,
            num_queries=4,
            anchor_image_size=(64, 64),
            feat_strides=[4, 8],
            num_feature_levels=2,
            encoder_in_channels=[8, 8],
            encode_proj_layers=[1],
            num_attention_heads=2,
            encoder_ffn_dim=8,
            num_encoder_layers=1,
            hidden_expansion=0.34,
            depth_multiplier=0.5,
            eval_idx=-1,
            num_decoder_layers=2,
            decoder_attention_heads=2,
            decoder_ffn_dim=8,
            decoder_n_points=[2, 2],
            lqe_hidden_dim=4,
            num_lqe_layers=2,
            out_features=["stage1", "stage2"],
            image_shape=(64, 64, 3),
            seed=0,
        ),
        num_classes=2,
        bounding_box_format="xyxy",
        **PLAIN,
    )


def depth_anything():
    return hub.DepthAnythingBackbone(
        image_encoder=hub.DINOV2Backbone(
            **{**VISION, "num_layers": 4, "image_shape": (32, 32, 3)},
            position_embedding_shape=(32, 32),
        ),
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_dims=[4, 4, 8, 8],
        fusion_hidden_dim=8,
        head_hidden_dim=4,
        head_in_index=-1,
        feature_keys=["stage1", "stage2", "stage3", "stage4"],
    )


def vit_det_backbone(channels=4, size=32, patch_size=8):
    return hub.ViTDetBackbone(
        hidden_size=4,
        num_layers=2,
        intermediate_dim=8,
        num_heads=2,
        global_attention_layer_indices=[1],
        patch_size=patch_size,
        num_output_channels=channels,
        window_size=2,
        image_shape=(size, size, 3),
    )


def sam():
    return hub.SAMImageSegmenter(
        backbone=hub.SAMBackbone(
            image_encoder=vit_det_backbone(8, 256, 4),
            prompt_encoder=keras_hub.layers.SAMPromptEncoder(
                hidden_size=8,
                image_embedding_size=(64, 64),
                input_image_size=(256, 256),
                mask_in_channels=16,
            ),
            mask_decoder=keras_hub.layers.SAMMaskDecoder(
                num_layers=1,
                hidden_size=8,
                intermediate_dim=8,
                num_heads=2,
                embedding_dim=8,
                num_multimask_outputs=3,
                iou_head_depth=2,
                iou_head_hidden_dim=4,
            ),
        ),
        **PLAIN,
    )


def vae():
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone

    return VAEBackbone(
        encoder_num_filters=[32, 32],
        encoder_num_blocks=[1, 1],
        decoder_num_filters=[32, 32],
        decoder_num_blocks=[1, 1],
        image_shape=(16, 16, 3),
    )


MODELS = {
    "segformer": segformer,
    "retinanet": retinanet,
    "deeplab_v3": deeplab,
    "basnet": basnet,
    "d_fine": d_fine,
    "depth_anything": depth_anything,
    "vit_det": vit_det_backbone,
    "sam": sam,
    "vae": vae,
}
