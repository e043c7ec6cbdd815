# SPDX-License-Identifier: Apache-2.0
"""A jaxdp adapter with label attention in PyTorch. Needs torch, transformers and peft, not jaxdp.

model = load("release/adapter")  # or load("release/adapter", "directory of the base model")
probabilities = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.sigmoid()
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from torch.nn.functional import pad
from transformers import AutoModel
from transformers.modeling_outputs import SequenceClassifierOutput


class LabelAttention(torch.nn.Module):
    def __init__(self, num_labels: int, width: int):
        super().__init__()
        self.queries = torch.nn.Parameter(torch.zeros(num_labels, width))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = (states @ self.queries.T).masked_fill(mask[..., None] == 0, -torch.inf)
        return scores.softmax(1).transpose(1, 2) @ states  # [B, labels, H]


class LabelHead(torch.nn.Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features * self.weight).sum(-1) + self.bias


class LabelAttentionClassifier(torch.nn.Module):
    def __init__(self, encoder: torch.nn.Module, num_labels: int, window=None):
        super().__init__()
        self.config, self.window, width = encoder.config, window, encoder.config.hidden_size
        setattr(self, encoder.base_model_prefix, encoder)
        self.label_attention = LabelAttention(num_labels, width)
        self.classifier, self.others = LabelHead(width, num_labels), torch.nn.ModuleList()

    def forward(self, input_ids, attention_mask, **kwargs) -> SequenceClassifierOutput:
        encoder, (rows, cols) = next(self.children()), input_ids.shape
        size = min((self.window or [cols])[0], cols)  # longer texts are windows end to end
        ids, mask = (pad(x, (0, -cols % size)).view(-1, size) for x in (input_ids, attention_mask))
        hidden = encoder(ids, mask, output_hidden_states=True).hidden_states[-2:]
        norm = getattr(encoder, "final_norm", torch.nn.Identity())  # the last has been through it
        states = (norm(hidden[0]) + hidden[1]).view(rows, -1, hidden[1].shape[-1]).nan_to_num() / 2
        features = self.label_attention(states, mask.view(rows, -1))
        others = sum(other(input_ids, attention_mask).logits for other in self.others)  # readers
        return SequenceClassifierOutput(logits=self.classifier(features) + others)


def load(adapter: str, base_model: str | None = None) -> PeftModel:
    files = ("adapter_config.json", "jaxdp.json")  # which names the labels, too
    config, ours = (json.loads(Path(adapter, name).read_text()) for name in files)
    encoder = AutoModel.from_pretrained(base_model or config["base_model_name_or_path"])
    model = LabelAttentionClassifier(encoder, len(ours["label_names"]), ours.get("window"))
    first, others = PeftModel.from_pretrained(model, adapter), range(2, ours.get("readers", 1) + 1)
    model.others.extend(load(f"{adapter}/reader_{number}", base_model) for number in others)
    return first.eval()
