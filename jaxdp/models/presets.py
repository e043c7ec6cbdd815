# SPDX-License-Identifier: Apache-2.0
"""Backbones by name."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Preset:
    """Where a backbone is published, and how it is used."""

    hub_id: str
    pooling: str
    """"cls": its pooler is pretrained; "first" or "mean": what it was trained with, or "mean" where
    it only learnt to fill in words."""
    max_length: int
    """Tokens per text that it was pretrained with; more have positions, but less well trained."""
    layers: int
    width: int


PRESETS = {
    "bert-tiny": Preset("google/bert_uncased_L-2_H-128_A-2", "cls", 512, 2, 128),
    "bert-mini": Preset("google/bert_uncased_L-4_H-256_A-4", "cls", 512, 4, 256),
    "bert-small": Preset("google/bert_uncased_L-4_H-512_A-8", "cls", 512, 4, 512),
    "bert-medium": Preset("google/bert_uncased_L-8_H-512_A-8", "cls", 512, 8, 512),
    "bert-base": Preset("google-bert/bert-base-uncased", "cls", 512, 12, 768),
    "albert-base-v2": Preset("albert/albert-base-v2", "cls", 512, 12, 768),
    "bio-clinical-bert": Preset("emilyalsentzer/Bio_ClinicalBERT", "cls", 128, 12, 768),
    "minilm-l6": Preset("sentence-transformers/all-MiniLM-L6-v2", "mean", 256, 6, 384),
    "mpnet-base": Preset("sentence-transformers/all-mpnet-base-v2", "mean", 384, 12, 768),
    "bge-small": Preset("BAAI/bge-small-en-v1.5", "first", 512, 12, 384),
    "distilbert-base": Preset("distilbert/distilbert-base-uncased", "mean", 512, 6, 768),
    "roberta-base": Preset("FacebookAI/roberta-base", "mean", 512, 12, 768),
    "biomedbert": Preset(
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext", "mean", 512, 12, 768
    ),
    "bioclinical-modernbert": Preset(
        "thomas-sounack/BioClinical-ModernBERT-base", "cls", 8192, 22, 768
    ),
    "radbert": Preset("StanfordAIMI/RadBERT", "mean", 512, 12, 768),
    "radbert-roberta": Preset("zzxslp/RadBERT-RoBERTa-4m", "mean", 512, 12, 768),
    "cxr-bert": Preset("microsoft/BiomedVLP-CXR-BERT-general", "mean", 512, 12, 768),
    "multilingual-e5-small": Preset("intfloat/multilingual-e5-small", "mean", 512, 12, 384),
    "xlm-roberta-base": Preset("FacebookAI/xlm-roberta-base", "mean", 512, 12, 768),
    "roberta-biomedical-es": Preset(
        "PlanTL-GOB-ES/roberta-base-biomedical-clinical-es", "mean", 512, 12, 768
    ),
}
"""Name in config.model.backbone -> preset."""

_BERT_SMALL = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
}
PUBLISHED_SIZES = {
    "bert-small": _BERT_SMALL,
    "bert-medium": _BERT_SMALL | {"num_hidden_layers": 8},
    "albert-base-v2": {
        "model_type": "albert",
        "vocab_size": 30000,
        "embedding_size": 128,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "hidden_act": "gelu_new",
    },
}
"""The config.json of the study's backbones, for tests and benchmarks with random weights."""


def find_preset(name: str) -> Preset | None:
    """The preset of this name or hub id, if there is one."""
    by_hub_id = {preset.hub_id: preset for preset in PRESETS.values()}
    return PRESETS.get(name) or by_hub_id.get(name)
