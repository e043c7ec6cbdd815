# SPDX-License-Identifier: Apache-2.0
"""A jaxdp adapter with label attention in PyTorch. Needs torch, transformers and peft, not jaxdp.

model = load("release/adapter")  # or load("release/adapter", "directory of the base model")
probabilities = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.sigmoid()
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModel
from transformers.modeling_outputs import SequenceClassifierOutput


class LabelAttention(torch.nn.Module):
    def __init__(self, num_labels: int, width: int):
        super().__init__()
        self.queries = torch.nn.Parameter(torch.zeros(num_labels, width))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = states @ self.queries.T  # [B, L, labels]
        weights = scores.masked_fill(mask[..., None] == 0, -torch.inf).softmax(1)
        return weights.transpose(1, 2) @ states  # [B, labels, H]


class LabelHead(torch.nn.Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features * self.weight).sum(-1) + self.bias


class LabelAttentionClassifier(torch.nn.Module):
    def __init__(self, encoder: torch.nn.Module, num_labels: int):
        super().__init__()
        self.config, width = encoder.config, encoder.config.hidden_size
        setattr(self, self.config.model_type, encoder)
        self.label_attention = LabelAttention(num_labels, width)
        self.classifier = LabelHead(width, num_labels)

    def forward(self, input_ids, attention_mask, **kwargs) -> SequenceClassifierOutput:
        encoder = getattr(self, self.config.model_type)
        hidden = encoder(input_ids, attention_mask, output_hidden_states=True).hidden_states
        features = self.label_attention((hidden[-2] + hidden[-1]) / 2, attention_mask)
        return SequenceClassifierOutput(logits=self.classifier(features))


def load(adapter: str, base_model: str | None = None) -> PeftModel:
    """The released classifier; its labels' names are in jaxdp.json beside it."""
    read = {
        n: json.loads(Path(adapter, f"{n}.json").read_text()) for n in ("adapter_config", "jaxdp")
    }
    encoder = AutoModel.from_pretrained(
        base_model or read["adapter_config"]["base_model_name_or_path"], add_pooling_layer=False
    )
    model = LabelAttentionClassifier(encoder, len(read["jaxdp"]["label_names"]))
    return PeftModel.from_pretrained(model, adapter).eval()
