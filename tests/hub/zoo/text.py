"""Language models, and those that listen."""

from hub.zoo.sizes import GROUPED, PLAIN, TEXT, backbone, hub


def bert():
    return hub.BertTextClassifier(
        backbone=hub.BertBackbone(**TEXT), num_classes=2, **PLAIN
    )


def gpt2():
    return hub.GPT2CausalLM(backbone=hub.GPT2Backbone(**TEXT), **PLAIN)


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


def t5():
    return hub.T5Backbone(**TEXT, tie_embedding_weights=False)


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


MODELS = {
    "bert": bert,
    "bert_masked_lm": bert_masked_lm,
    "gpt2": gpt2,
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
    "t5": t5,
    "t5gemma": t5gemma,
    "whisper": whisper,
    "moonshine": moonshine,
}
