# SPDX-License-Identifier: Apache-2.0
"""The sentence of a report that a label read, for the person who reads the label.

It is computed from the released classifier and the new report alone, so it costs no privacy.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from jaxdp.data.batching import Buckets
from jaxdp.data.dataset import DataError
from jaxdp.data.tokens import tokenize, windows_of
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.layers import firsts, several

from .inference import in_batches

_SENTENCE = re.compile(r"\S.*?(?:[.!?;](?=\s)|$)", re.MULTILINE)
"""Up to a mark that ends one, or the end of the line; "1.5 cm" holds none."""


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of each in `text`, in order."""
    found = _SENTENCE.finditer(text)
    return [(m.start(), m.start() + len(m.group().rstrip())) for m in found]


class Evidence:
    """Gives, for every label, the sentence that gets most of its attention, over all readers.

    Args:
        model: with label attention.
        tokenizer, max_length: of the release; what is cut off is no evidence.
        buckets: shapes to run in.

    Raises:
        DataError: the model pools otherwise, so no label has tokens of its own.
    """

    def __init__(
        self, model: ReportClassifier, tokenizer: Tokenizer, max_length: int, buckets: Buckets
    ):
        if model.pooling != "label-attention":
            raise DataError(
                f"evidence needs label attention; this release pools by {model.pooling}"
            )
        graphdef, state = nnx.split(model)

        @jax.jit
        def attention(state, values, lengths):
            model = nnx.merge(graphdef, state)

            def of_reader(reader, ids, length):
                def of_report(states, real, begin):
                    return jnp.roll(reader.label_attention.weights(states, real), -begin, axis=1)

                with reader.precise():
                    states = reader.last_states(ids, length, 0)
                    if several(length):
                        begins = firsts(length, len(ids))
                        return reader.by_report(of_report, states, length, begins)
                    return of_report(states, jnp.arange(len(ids)) < length, 0)

            def one(ids, length):
                return model.by_reader(lambda reader: of_reader(reader, ids, length)).mean(axis=0)

            found = jax.vmap(one)(values, lengths)
            return found.reshape(lengths.size, *found.shape[-2:])

        self._attention = lambda values, lengths: attention(state, values, lengths)
        self._tokenizer, self._max_length, self._buckets = tokenizer, max_length, buckets
        self._windows = 1 if model.window is None else model.window[1]

    def __call__(self, texts: list[str]) -> list[list[str]]:
        """[n][labels] sentences of non-empty texts; "" where no sentence was read."""
        tokens, _ = tokenize(texts, self._tokenizer, self._max_length, self._windows)
        encodings = self._tokenizer.encode_batch(texts)
        found: list[list[str]] = [[] for _ in texts]
        for rows, lengths, weights in in_batches(self._attention, tokens, self._buckets):
            for row, length, attended in zip(rows, lengths, weights, strict=True):
                if row < 0:
                    continue
                windows = windows_of(encodings[row], self._windows)
                offsets = np.concatenate([w.offsets for w in windows])[:length].reshape(-1, 2)
                found[row] = _most_read(texts[row], offsets, attended[:, :length])
        return found


def _most_read(text: str, offsets: np.ndarray, attended: np.ndarray) -> list[str]:
    """offsets [L, 2] of the tokens in `text` (those that are in none are empty), attended
    [labels, L] -> for each label a sentence."""
    spans = sentences(text)
    if not spans:
        return [""] * len(attended)
    starts, ends = np.array(spans).T
    begin, end = offsets[:, :1], offsets[:, 1:]
    # Some tokenizers count the space before a word to it, which lies before the sentence.
    inside = (end > starts) & (end <= ends) & (begin < end)
    totals = attended @ inside  # [labels, sentences]
    return [text[slice(*spans[i])] for i in totals.argmax(axis=1)]
