# SPDX-License-Identifier: Apache-2.0
"""The classifier in PyTorch: an encoder of transformers under PEFT, without drop-out."""

import warnings

import torch
import transformers
from peft import PeftModel

from jaxdp.models.label_attention_torch import LabelAttention, LabelHead

from .job import Job

_NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.0,
}


class Classifier(torch.nn.Module):
    """Encoder, pooling and head, under the names that transformers' classifiers have.

    Stands for AutoModelForSequenceClassification, which cannot average over tokens, nor subtract a
    centre from the feature.
    """

    def __init__(self, job: Job):
        super().__init__()
        config = transformers.AutoConfig.from_pretrained(job.backbone, **_NO_DROPOUT)
        self.config, self._prefix, self._pooling = config, config.model_type, job.pooling
        encoder = transformers.AutoModel.from_pretrained(
            job.backbone,
            config=config,
            dtype=torch.float32,
            add_pooling_layer=job.pooling == "cls",
        )
        setattr(self, self._prefix, encoder)
        by_label, labels = job.pooling == "label-attention", len(job.label_names)
        if by_label:
            self.label_attention = LabelAttention(labels, config.hidden_size)
        self.classifier = (LabelHead if by_label else torch.nn.Linear)(config.hidden_size, labels)
        self.register_buffer("center", torch.tensor(job.center, dtype=torch.float32))

    @property
    def encoder(self) -> transformers.PreTrainedModel:
        return getattr(self, self._prefix)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs
    ) -> torch.Tensor:
        """Logits [B, num_labels] of token ids [B, L]; kwargs are those of PEFT's wrapper."""
        last_two = self._pooling in ("mean-last2", "label-attention")
        output = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=last_two
        )
        states = output.last_hidden_state.float()
        if last_two:
            states = (output.hidden_states[-2] + states) / 2
        if self._pooling == "cls":
            feature = output.pooler_output.float()
        elif self._pooling == "first":
            feature = states[:, 0]
        elif self._pooling == "label-attention":
            feature = self.label_attention(states, attention_mask)
        else:
            weights = attention_mask[..., None].float()
            feature = (states * weights).sum(1) / weights.sum(1)
        return self.classifier(feature - self.center)


def build(job: Job, device: torch.device, dtype: torch.dtype) -> PeftModel:
    """The job's starting point; its mode says what `requires_grad`. In training mode, which Opacus
    insists on. `dtype` is that of the encoder's own weights; all others are float32."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # tensors that we have no use for
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # below: all frozen
    base = Classifier(job).to(device)  # before PEFT: adapters put on later don't train (opacus#820)
    model = PeftModel.from_pretrained(base, job.adapter, is_trainable=True)
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = job.is_trained(name) and "original_module" not in name
    for name, parameter in base.encoder.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    head = base.classifier.modules_to_save["default"]
    with torch.no_grad():
        # The same logits, now that features are centred.
        head.bias += (head.weight * base.center).sum(-1)
    return model


def adapter_name(name: str) -> str:
    """The name in an adapter file of a parameter, as the (wrapped) model calls it."""
    return (
        name.removeprefix("_module.")
        .replace(".modules_to_save.default", "")
        .replace(".default", "")
    )
