"""Models of images and words, of video, of noise."""

from hub.zoo.sizes import GROUPED, PLAIN, TEXT, VISION, hub


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


MODELS = {
    "clip": clip,
    "metaclip_2": lambda: clip(
        "MetaCLIP2VisionEncoder", "MetaCLIP2TextEncoder", "MetaCLIP2"
    ),
    "siglip": siglip,
    "gemma3": gemma3,
    "pali_gemma": pali_gemma,
    "parseq": parseq,
    "flux": flux,
    "video_prism": video_prism,
}
