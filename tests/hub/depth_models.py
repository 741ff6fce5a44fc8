"""Small configurations of what KerasHub and keras.applications offer.

One entry for each architecture, the task where the task adds layers of its
own. `MODELS` names a function that builds it. Run as a script (on JAX, which
has all of them) it writes `expected_depth.json` anew.
"""

import contextlib
import hashlib
import json
import pathlib
import warnings
from unittest import mock

import keras
import keras_hub
import numpy as np

# KerasHub documents this class and does not export it.
from keras_hub.src.models.retinanet.retinanet_label_encoder import (
    RetinaNetLabelEncoder as AnchorLabels,
)

from keras_dualopt.depth import layer_depth

hub = keras_hub.models

TEXT = {
    "vocabulary_size": 10,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 4,
    "intermediate_dim": 8,
}
GROUPED = {
    "vocabulary_size": 10,
    "num_layers": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 4,
    "intermediate_dim": 8,
}
VISION = {
    "patch_size": 4,
    "hidden_dim": 4,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_dim": 8,
    "image_shape": (8, 8, 3),
}
PLAIN = {"preprocessor": None}


@contextlib.contextmanager
def zero_weights():
    """Make models whose weights are all 0: JAX compiles every initializer."""

    def zeros(self, shape, dtype=None, **options):
        del self, options
        return keras.ops.convert_to_tensor(np.zeros(shape, dtype or "float32"))

    with contextlib.ExitStack() as stack:
        for name in (
            "VarianceScaling",
            "RandomUniform",
            "RandomNormal",
            "TruncatedNormal",
            "Orthogonal",
            "Zeros",
            "Ones",
        ):
            stack.enter_context(
                mock.patch.object(
                    getattr(keras.initializers, name), "__call__", zeros
                )
            )
        yield


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


def bert():
    return hub.BertTextClassifier(
        backbone=hub.BertBackbone(**TEXT), num_classes=2, **PLAIN
    )


def gpt2():
    return hub.GPT2CausalLM(backbone=hub.GPT2Backbone(**TEXT), **PLAIN)


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


def clip(image="CLIPVisionEncoder", text="CLIPTextEncoder", whole="CLIP"):
    return getattr(hub, f"{whole}Backbone")(
        vision_encoder=getattr(hub, image)(**{**VISION, "num_layers": 3}),
        text_encoder=getattr(hub, text)(
            **TEXT, embedding_dim=4, max_sequence_length=6
        ),
        projection_dim=4,
    )


def siglip():
    return hub.SigLIPBackbone(
        vision_encoder=hub.SigLIPVisionEncoder(**VISION),
        text_encoder=hub.SigLIPTextEncoder(
            **TEXT, embedding_dim=4, max_sequence_length=6
        ),
    )


def bart():
    return hub.BartSeq2SeqLM(backbone=hub.BartBackbone(**TEXT), **PLAIN)


def text_classifier(name, backbone=None, **options):
    def build():
        made = getattr(hub, f"{backbone or name}Backbone")(
            **{**TEXT, **options}
        )
        return getattr(hub, f"{name}TextClassifier")(
            backbone=made, num_classes=2, **PLAIN
        )

    return build


def f_net():
    config = {k: v for k, v in TEXT.items() if k != "num_heads"}
    return hub.FNetTextClassifier(
        backbone=hub.FNetBackbone(**config), num_classes=2, **PLAIN
    )


def albert():
    return hub.AlbertTextClassifier(
        backbone=hub.AlbertBackbone(
            **TEXT, embedding_dim=4, num_groups=1, num_inner_repetitions=1
        ),
        num_classes=2,
        **PLAIN,
    )


def electra():
    config = {**TEXT, "vocab_size": 10, "embedding_dim": 4}
    del config["vocabulary_size"]
    return hub.ElectraBackbone(**config)


def bert_masked_lm():
    return hub.BertMaskedLM(backbone=hub.BertBackbone(**TEXT), **PLAIN)


def causal_lm(name, **options):
    def build():
        return getattr(hub, f"{name}CausalLM")(
            backbone=getattr(hub, f"{name}Backbone")(**options), **PLAIN
        )

    return build


def backbone(name, **options):
    def build():
        return getattr(hub, f"{name}Backbone")(**options)

    return build


def t5():
    return hub.T5Backbone(**TEXT, tie_embedding_weights=False)


def whisper():
    return hub.WhisperBackbone(
        **TEXT,
        num_mels=4,
        max_encoder_sequence_length=12,
        max_decoder_sequence_length=6,
    )


def moonshine():
    return hub.MoonshineBackbone(
        vocabulary_size=10,
        filter_dim=8,
        encoder_num_layers=1,
        decoder_num_layers=1,
        hidden_dim=8,
        intermediate_dim=8,
        encoder_num_heads=2,
        decoder_num_heads=2,
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


def pali_gemma():
    return hub.PaliGemmaCausalLM(
        backbone=hub.PaliGemmaBackbone(
            **GROUPED,
            image_size=8,
            head_dim=2,
            vit_patch_size=4,
            vit_num_heads=2,
            vit_hidden_dim=4,
            vit_num_layers=2,
            vit_intermediate_dim=8,
        ),
        **PLAIN,
    )


def parseq():
    return hub.PARSeqBackbone(
        image_encoder=hub.ViTBackbone(
            image_shape=(8, 8, 3),
            patch_size=4,
            num_layers=2,
            num_heads=2,
            hidden_dim=4,
            mlp_dim=8,
            use_class_token=False,
        ),
        vocabulary_size=10,
        max_label_length=5,
        decoder_hidden_dim=4,
        num_decoder_layers=1,
        num_decoder_heads=2,
        decoder_mlp_dim=8,
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


def vae():
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone

    return VAEBackbone(
        encoder_num_filters=[32, 32],
        encoder_num_blocks=[1, 1],
        decoder_num_filters=[32, 32],
        decoder_num_blocks=[1, 1],
        image_shape=(16, 16, 3),
    )


def flux():
    return hub.FluxBackbone(
        input_channels=4,
        hidden_size=8,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[2, 2],
        theta=100,
        use_bias=True,
        guidance_embed=True,
        image_shape=(8, 4),
        text_shape=(8, 8),
        image_ids_shape=(8, 2),
        text_ids_shape=(8, 2),
        y_shape=(8,),
    )


def video_prism():
    return hub.VideoPrismBackbone(
        num_frames=2,
        patch_size=4,
        hidden_dim=4,
        intermediate_dim=8,
        num_heads=2,
        num_spatial_layers=1,
        num_temporal_layers=1,
        num_auxiliary_layers=1,
        vocabulary_size=10,
        num_text_layers=1,
        image_shape=(8, 8, 3),
    )


def t5gemma():
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "hidden_dim": 4,
            "intermediate_dim": 8,
            "num_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 2,
            "layer_types": ["full_attention"],
        }.items()
    }
    return hub.T5GemmaBackbone(vocabulary_size=10, **sides)


def gemma3():
    return hub.Gemma3CausalLM(
        backbone=hub.Gemma3Backbone(
            **GROUPED,
            head_dim=2,
            image_size=8,
            vision_encoder=hub.Gemma3VisionEncoder(
                image_size=8,
                patch_size=4,
                pool_size=2,
                num_layers=1,
                num_heads=2,
                hidden_dim=4,
                intermediate_dim=8,
                output_dim=4,
            ),
            use_post_ffw_norm=True,
            use_post_attention_norm=True,
        ),
        **PLAIN,
    )


def smollm3():
    return hub.SmolLM3Backbone(
        vocabulary_size=10,
        hidden_dim=4,
        intermediate_dim=8,
        num_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_bias=False,
        attention_dropout=0.0,
        rope_layer_enabled_list=[True, True],
        layer_types=["attention", "attention"],
        mlp_bias=False,
        layer_norm_epsilon=1e-5,
        max_position_embeddings=16,
        rope_theta=100.0,
        partial_rotary_factor=1.0,
    )


def rwkv7():
    return hub.RWKV7Backbone(
        vocabulary_size=10,
        hidden_size=8,
        num_layers=2,
        head_size=4,
        intermediate_dim=8,
        gate_lora=2,
        mv_lora=2,
        aaa_lora=2,
        decay_lora=2,
    )


def roformer_v2():
    return hub.RoformerV2TextClassifier(
        backbone=hub.RoformerV2Backbone(**TEXT, head_size=2),
        num_classes=2,
        **PLAIN,
    )


def esm():
    return hub.ESMBackbone(**TEXT)


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
    "bert": bert,
    "bert_masked_lm": bert_masked_lm,
    "gpt2": gpt2,
    "segformer": segformer,
    "mit": mit_backbone,
    "retinanet": retinanet,
    "clip": clip,
    "metaclip_2": lambda: clip(
        "MetaCLIP2VisionEncoder", "MetaCLIP2TextEncoder", "MetaCLIP2"
    ),
    "siglip": siglip,
    "bart": bart,
    "roberta": text_classifier("Roberta"),
    "xlm_roberta": text_classifier("XLMRoberta"),
    "distil_bert": text_classifier("DistilBert"),
    "deberta_v3": text_classifier("DebertaV3"),
    "f_net": f_net,
    "albert": albert,
    "electra": electra,
    "roformer_v2": roformer_v2,
    "esm": esm,
    "xlnet": backbone("XLNet", **TEXT),
    "bloom": causal_lm("Bloom", **TEXT),
    "opt": causal_lm("OPT", **TEXT),
    "gpt_neo_x": causal_lm("GPTNeoX", **TEXT),
    "falcon": causal_lm(
        "Falcon",
        vocabulary_size=10,
        num_layers=2,
        num_attention_heads=2,
        hidden_dim=4,
        intermediate_dim=8,
    ),
    "gemma": causal_lm("Gemma", **GROUPED, head_dim=2),
    "gemma3": gemma3,
    "llama": causal_lm("Llama", **GROUPED),
    "llama3": causal_lm("Llama3", **GROUPED, tie_word_embeddings=True),
    "mistral": causal_lm("Mistral", **GROUPED),
    "mixtral": causal_lm("Mixtral", **GROUPED, num_experts=2),
    "phi3": causal_lm("Phi3", **GROUPED),
    "qwen": causal_lm("Qwen", **GROUPED),
    "qwen3": causal_lm("Qwen3", **GROUPED, head_dim=2),
    "qwen_moe": causal_lm(
        "QwenMoe",
        **GROUPED,
        moe_intermediate_dim=8,
        shared_expert_intermediate_dim=8,
        num_experts=2,
        top_k=1,
    ),
    "qwen3_moe": causal_lm(
        "Qwen3Moe",
        **GROUPED,
        head_dim=2,
        moe_intermediate_dim=8,
        num_experts=2,
        top_k=1,
    ),
    "gpt_oss": causal_lm("GptOss", **GROUPED, num_experts=2, top_k=1),
    "smollm3": smollm3,
    "rwkv7": rwkv7,
    "pali_gemma": pali_gemma,
    "t5": t5,
    "t5gemma": t5gemma,
    "whisper": whisper,
    "moonshine": moonshine,
    "deeplab_v3": deeplab,
    "basnet": basnet,
    "hgnetv2": hgnetv2,
    "d_fine": d_fine,
    "depth_anything": depth_anything,
    "dinov2": backbone("DINOV2", **VISION, position_embedding_shape=(8, 8)),
    "dinov3": backbone("DINOV3", **{**VISION, "hidden_dim": 8}),
    "vit_det": vit_det_backbone,
    "sam": sam,
    "parseq": parseq,
    "mobilenet": mobilenet,
    "mobilenet_v5": mobilenet_v5,
    "efficientnet": efficientnet,
    "swin": swin,
    "cspnet_dark": cspnet("dark_block"),
    "cspnet_edge": cspnet("edge_block"),
    "densenet": densenet,
    "vgg": vgg,
    "xception": xception,
    "vae": vae,
    "flux": flux,
    "video_prism": video_prism,
    "applications_convnext": application("ConvNeXtTiny"),
    "applications_resnet50v2": application("ResNet50V2"),
    "applications_mobilenet_v3": application("MobileNetV3Small"),
    "applications_efficientnet_v2": application("EfficientNetV2B0"),
    "applications_inception_v3": application("InceptionV3", 75),
}

# Why a model is not the same on every backend.
DIFFERENT = {
    "sam": "keras.ops.cond: JAX traces both branches, torch runs one of them"
}


def build(name):
    with zero_weights(), warnings.catch_warnings():
        # KerasHub's own, about layers that build others in their call.
        warnings.simplefilter("ignore")
        return MODELS[name]()


def fingerprint(depth):
    """Return what must be the same on every backend, in few bytes."""
    lines = [
        f"{row.key} {row.index} {float(row.relative).hex()}"
        for row in sorted(depth.rows, key=lambda row: row.key)
    ]
    return {
        "weights": len(lines),
        "layers": depth.layer_count,
        "steps": 1 + max(row.index for row in depth.rows),
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    }


def write_expected():
    """Write anew what the other backends are compared with."""
    expected = {
        name: fingerprint(layer_depth(build(name), head=()))
        for name in MODELS
        if name not in DIFFERENT
    }
    text = json.dumps(
        {"keras_hub": keras_hub.__version__, "models": expected}, indent=1
    )
    EXPECTED.write_text(text + "\n")


EXPECTED = pathlib.Path(__file__).with_name("expected_depth.json")

if __name__ == "__main__":
    write_expected()
