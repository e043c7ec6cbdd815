# SPDX-License-Identifier: Apache-2.0
"""The classifier in PyTorch: an encoder of transformers under PEFT, without drop-out."""

import warnings

import torch
import transformers
from peft import PeftModel

from jaxdp.models.label_attention_torch import LabelAttention, LabelHead

from .job import TRAINED, Job


class Classifier(torch.nn.Module):
    """Encoder, pooling and head, under the names that transformers' classifiers have.

    Stands for AutoModelForSequenceClassification, which cannot average over tokens, nor subtract a
    centre from the feature.
    """

    def __init__(self, job: Job):
        super().__init__()
        encoder = transformers.AutoModel.from_pretrained(
            job.backbone,
            dtype=torch.float32,
            add_pooling_layer=job.pooling == "cls",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.config, self._pooling = encoder.config, job.pooling
        setattr(self, self.config.model_type, encoder)
        width, labels, head = self.config.hidden_size, len(job.label_names), torch.nn.Linear
        if job.pooling == "label-attention":
            self.label_attention, head = LabelAttention(labels, width), LabelHead
        self.classifier = head(width, labels)
        self.register_buffer("center", torch.tensor(job.center, dtype=torch.float32))

    @property
    def encoder(self) -> transformers.PreTrainedModel:
        return getattr(self, self.config.model_type)

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
    marks = TRAINED[job.stage.mode]
    for name, parameter in model.named_parameters():
        chosen = any(mark in name for mark in marks) and "original_module" not in name
        parameter.requires_grad = chosen
    for name, parameter in base.encoder.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    head = base.classifier.modules_to_save["default"]
    with torch.no_grad():
        # The same logits, now that features are centred.
        head.bias += (head.weight * base.center).sum(-1)
    return model


def trained(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """What `requires_grad`, by its name in an adapter file."""
    return {
        name.replace(".modules_to_save.default", "").replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
