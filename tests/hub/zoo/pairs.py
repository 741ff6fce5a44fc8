"""Models of images and words, of sound, of video, of noise."""

import sys
import types
from importlib.util import find_spec

import keras
import keras_hub
from hub.zoo.images import mobilenet_v5
from hub.zoo.sizes import GROUPED, PLAIN, TEXT, VISION, hub

# KerasHub exports the models that hold this one, and not itself.
from keras_hub.src.models.gemma3n.gemma3n_audio_encoder import (
    Gemma3nAudioEncoder,
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


def gemma3n():
    """Words, images and sound; the last two layers share keys and values."""
    audio_encoder = Gemma3nAudioEncoder(
        hidden_size=4,
        input_feat_size=16,
        sscp_conv_channel_size=[2, 4],
        sscp_conv_kernel_size=[(1, 1), (1, 1)],
        sscp_conv_stride_size=[(2, 2), (2, 2)],
        sscp_conv_group_norm_eps=1e-5,
        num_hidden_layers=1,
        rms_norm_eps=1e-6,
        gradient_clipping=1.0,
        residual_weight=0.5,
        num_attention_heads=1,
        attention_chunk_size=2,
        num_attention_context_right=1,
        num_attention_context_left=1,
        attention_logit_cap=50.0,
        conv_kernel_size=3,
        reduction_factor=1,
    )
    return hub.Gemma3nCausalLM(
        backbone=hub.Gemma3nBackbone(
            text_vocab_size=10,
            text_hidden_size=4,
            num_hidden_layers=4,
            pad_token_id=0,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=2,
            intermediate_size=[8] * 4,
            hidden_activation="gelu_approximate",
            layer_types=["sliding_attention", "full_attention"] * 2,
            sliding_window=4,
            rope_theta=100.0,
            max_position_embeddings=16,
            vocab_size_per_layer_input=10,
            hidden_size_per_layer_input=2,
            altup_num_inputs=2,
            laurel_rank=1,
            num_kv_shared_layers=2,
            vision_encoder_config=mobilenet_v5().get_config(),
            vision_hidden_size=8,
            audio_encoder_config=audio_encoder.get_config(),
            audio_hidden_size=4,
        ),
        **PLAIN,
    )


def _crops(images, boxes, output_size, **options):
    """Return what torchvision would, all of it 0."""
    del options
    return images.new_zeros(len(boxes), images.shape[1], *output_size)


def sam3():
    if keras.backend.backend() == "torch" and not find_spec("torchvision"):
        # KerasHub runs this model on torch with torchvision alone, for one
        # function. Depths ask for nothing but the shape of its result.
        sys.modules["torchvision"] = types.SimpleNamespace(
            ops=types.SimpleNamespace(roi_align=_crops)
        )
    sizes = {"hidden_dim": 8, "num_heads": 2}
    blocks = {**sizes, "num_layers": 1, "intermediate_dim": 8}
    layers = keras_hub.layers
    return hub.SAM3PromptableConceptImageSegmenter(
        backbone=hub.SAM3PromptableConceptBackbone(
            vision_encoder=layers.SAM3VisionEncoder(
                **{**blocks, "num_layers": 2},
                image_shape=(56, 56, 3),
                patch_size=14,
                fpn_hidden_dim=8,
                fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
                pretrain_image_shape=(28, 28, 3),
                window_size=2,
                global_attn_indexes=[1],
            ),
            text_encoder=layers.SAM3TextEncoder(
                **blocks, vocabulary_size=10, embedding_dim=8
            ),
            geometry_encoder=layers.SAM3GeometryEncoder(**blocks, roi_size=3),
            detr_encoder=layers.SAM3DetrEncoder(**blocks),
            detr_decoder=layers.SAM3DetrDecoder(
                **{**blocks, "num_layers": 2},
                image_shape=(56, 56, 3),
                patch_size=14,
                num_queries=4,
            ),
            mask_decoder=layers.SAM3MaskDecoder(
                **sizes, num_upsampling_stages=3
            ),
        ),
        **PLAIN,
    )


MODELS = {
    "clip": clip,
    "metaclip_2": lambda: clip(
        "MetaCLIP2VisionEncoder", "MetaCLIP2TextEncoder", "MetaCLIP2"
    ),
    "siglip": siglip,
    "gemma3": gemma3,
    "gemma3n": gemma3n,
    "pali_gemma": pali_gemma,
    "parseq": parseq,
    "sam3": sam3,
    "flux": flux,
    "video_prism": video_prism,
}
