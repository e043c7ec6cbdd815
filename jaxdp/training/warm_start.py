# SPDX-License-Identifier: Apache-2.0
"""The public start: a model learns from made-up reports before it sees a private one.

Guarantee: it reads the configuration, the phrasebook and the backbone, and nothing else, so
whatever it leaves is public: adapters, queries and head, and the coordinates (`Basis`) in which a
head is then trained in private. It does the same again in a resumed run.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from jaxdp import __version__
from jaxdp.assets import cache_directory
from jaxdp.backbone import Backbone
from jaxdp.config import Config, ConfigError, WarmStartConfig
from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.phrasebook import Phrasebook, Shape
from jaxdp.data.store import key_of, stored
from jaxdp.data.tokens import Tokenizer, load_tokenizer, tokenize
from jaxdp.evaluation.inference import Watch, packed_logits, unwatched
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.label_attention import unit
from jaxdp.models.peft import WEIGHTS, load_adapter, read_adapter_info, reader_folders
from jaxdp.models.pretrained import LoadReport, load_classifier
from jaxdp.models.readers import join, own_of, part
from jaxdp.models.tasks import TASKS

from .frozen_layers import FrozenLayers
from .mesh import DATA, make_mesh, place
from .randomness import RunSecret
from .setup import compute_dtype, configure, keeping, token_buckets
from .step import LabelledData, TrainState, make_train_step, plain_gradient_sum

_HEAD_RATE = 10.0
"""Heads and queries start from nothing, and learn at so many times the rate of adapters."""
_SHOWN = 4000  # made-up reports that the basis is of: enough for its directions, and quick
_AVERAGED = 1000  # made-up reports of a centre alone: 250 give the same scores


def build_model(
    config: Config,
    backbone: Backbone,
    label_names: Sequence[str],
    secret: RunSecret,
    watch: Watch = unwatched,
    kept_start: Path | None = None,
) -> tuple[ReportClassifier, LoadReport]:
    """The pretrained classifier, with adapters where config.lora puts them: fresh ones, or as the
    public start leaves them, which is the same for every secret; `watch` shows people how far that
    is, in reports and then in steps. The start that is in the folder `kept_start` is used whatever
    has changed since; one that is not is kept there.

    Raises:
        ConfigError, WeightsError: backbone or adapters cannot be used.
        DataError: the phrasebook cannot be used, or lacks a label.
    """
    public = config.warm_start.phrasebook is not None
    rngs = nnx.Rngs(0 if public else secret.init_seed())
    dtype = compute_dtype(config)
    model, report = load_classifier(
        backbone.directory,
        len(label_names),
        backbone.pooling,
        dtype=dtype if dtype == "bfloat16" else None,
        rngs=rngs,
    )
    configure(config, model, rngs)
    if public:
        _learn_in_public(config, model, backbone.directory, label_names, watch, kept_start)
    return model, report


def _learn_in_public(
    config: Config,
    model: ReportClassifier,
    directory: Path,
    label_names: Sequence[str],
    watch: Watch,
    kept_start: Path | None,
) -> None:
    """Trains readers and head as config.warm_start says, and sets the basis; in place."""
    mesh, folder = make_mesh(config.run.devices), keeping(cache_directory() / "public_starts")
    settings = config.warm_start
    book, tokenizer = phrasebook_of(settings, label_names), load_tokenizer(directory)
    tokens, labels = _made_up(config, book, tokenizer, label_names, settings.reports)
    buckets = token_buckets(config, tokens.lengths, share=False)  # batches are of like length
    mode = "lora" if settings.trains_adapters else "head"
    if model.pooling == "label-attention":
        mode += "+queries"
        if book.names:
            names, _ = tokenize([book.names[label] for label in label_names], tokenizer, 32)
            model.label_attention.queries[...] = name_queries(model, names)
    one, readers = nnx.clone(model), [own_of(model)] * settings.readers
    if settings.from_adapter is not None:
        readers = _readers_of(settings, one, directory, label_names)
        nnx.update(one, readers[0])
    join(model, readers)

    def learn() -> Packed:
        frozen_layers = FrozenLayers(one, {"train": tokens}, buckets, mesh=mesh, watch=watch)
        learnt = _train(one, readers, mode, frozen_layers, buckets, labels, settings, mesh, watch)
        join(model, learnt)
        model.divide_logits(len(readers))  # their mean
        learnt = lora.split(model, mode)[1]
        # From the states below what was trained, which are still at hand.
        level, last = model.start_level(learnt), model.feature_level
        below = frozen_layers.at(level)["train"]
        lengths = below.lengths[:_SHOWN]
        shown = {"train": Packed.from_lengths(below.values[: lengths.sum()], lengths)}
        above = FrozenLayers(model, shown, buckets, mesh=mesh, watch=watch, level=level)
        basis = public_basis(above.at(last)["train"].values, model.classifier.kernel[...])
        numbers = np.asarray(ravel_pytree((learnt, *basis))[0])
        return Packed.from_lengths(numbers, [numbers.size])

    def known() -> tuple[Packed, int]:
        if folder is None:
            return learn(), 0
        # Sums of the shares of other devices are rounded otherwise.
        versions = (__version__, jax.__version__, jax.default_backend(), mesh.size)
        backbone = dataclasses.replace(config.model, label_dimensions=None)
        learns = (model.pooling, model.task, mode)
        depends = (versions, backbone, *learns, config.lora, settings, buckets)
        weights = jax.tree.leaves(nnx.state(model, nnx.Param))
        key = key_of(repr(depends), (tokens.values, labels, *weights))
        return stored(folder, key, lambda: (learn(), 0))

    numbers, _ = stored(kept_start.parent, kept_start.name, known) if kept_start else known()
    learnt, center, directions = _read(numbers, model, mode)
    nnx.update(model, learnt)
    dimensions = config.model.label_dimensions
    model.set_basis(center, None if dimensions is None else directions[..., :dimensions])


def _read(
    numbers: Packed, model: ReportClassifier, mode: str
) -> tuple[nnx.State, jax.Array, jax.Array | None]:
    """What a public start of a model like this has learnt, the center and the directions of its
    basis, from one row of all their numbers."""
    kernel = model.classifier.kernel[...].T
    by_label = model.pooling == "label-attention"
    like = (
        lora.split(model, mode)[1],
        jnp.zeros(kernel.shape if by_label else kernel.shape[1:]),
        jnp.zeros((*kernel.shape, kernel.shape[1])) if by_label else None,
    )
    return ravel_pytree(like)[1](jnp.asarray(numbers.values))


def _made_up(
    config: Config, book: Phrasebook, tokenizer: Tokenizer, label_names: Sequence[str], count: int
) -> tuple[Packed, np.ndarray]:
    """(token ids, labels) of so many reports."""
    shape = Shape(*(getattr(config.warm_start, field) for field in Shape._fields))
    one_class = TASKS[config.data.task].one_class
    texts, labels = book.write_reports(count, label_names, shape, one_class=one_class)
    tokens, _ = tokenize(texts, tokenizer, config.data.max_length, config.data.windows)
    return tokens, labels


def public_center(
    config: Config,
    model: ReportClassifier,
    directory: Path,
    label_names: Sequence[str],
    watch: Watch = unwatched,
) -> jax.Array:
    """The mean feature of made-up reports, for `set_basis`: as public as the model is. Raises what
    `build_model` does."""
    model = nnx.clone(model)
    model.fold_basis()
    book, tokenizer = phrasebook_of(config.warm_start, label_names), load_tokenizer(directory)
    tokens, _ = _made_up(config, book, tokenizer, label_names, _AVERAGED)
    buckets, mesh = token_buckets(config, tokens.lengths), make_mesh(config.run.devices)
    shown = FrozenLayers(model, {"train": tokens}, buckets, mesh=mesh, watch=watch)
    features = shown.at(model.feature_level)["train"].values
    return jnp.asarray(features.mean(axis=0, dtype=np.float32))


def phrasebook_of(settings: WarmStartConfig, label_names: Sequence[str]) -> Phrasebook:
    """The one that the settings name; DataError if there is none, or it cannot be used."""
    if settings.phrasebook == "labels":
        synonyms = settings.synonyms if label_names else ()
        return Phrasebook.of_labels(label_names, settings.language, synonyms, settings.lexicon)
    return Phrasebook.read(settings.phrasebook)


def name_queries(model: ReportClassifier, names: Packed) -> jax.Array:
    """[labels, H]: where the names' tokens lie from the mean of all names, as unit vectors: every
    label begins by asking for its name.

    Args:
        model: whose last states are read.
        names: token ids, the first and last of each a special token.
    """

    def mean_state(ids, length):
        position = jnp.arange(len(ids))
        inside = (position > 0) & (position < length - 1)
        with model.precise():
            return inside @ model.last_states(ids, length, 0) / jnp.maximum(inside.sum(), 1)

    ids, lengths = names.gather(np.arange(len(names)), int(names.lengths.max()))
    means = jax.jit(jax.vmap(mean_state))(ids, lengths)
    return unit(means - means.mean(axis=0))


def _readers_of(
    settings: WarmStartConfig, model: ReportClassifier, directory: Path, label_names: Sequence[str]
) -> list[nnx.State]:
    """With adapters of settings.from_adapter, and its queries and head for the labels that both
    know; of a folder with one reader, all begin as that one.

    Raises:
        WeightsError: see `load_adapter`.
        ConfigError: its adapters are others than config.lora's, it knows none of the labels, or
            it has another number of readers.
    """
    folder = Path(settings.from_adapter)
    known = read_adapter_info(folder)[1].label_names
    donor, _ = load_classifier(directory, len(known), model.pooling, rngs=nnx.Rngs(0))
    load_adapter(folder, donor)
    theirs, ours = (
        {path: (m.rank, m.alpha) for path, m in lora.adapted_layers(one).items()}
        for one in (donor, model)
    )
    if theirs != ours:
        wrong = f"{_said(theirs)}, not {_said(ours)}"
        raise ConfigError(f"config.lora must be as in warm_start.from_adapter: {wrong}")
    rows = [(i, known.index(name)) for i, name in enumerate(label_names) if name in known]
    if not rows:
        raise ConfigError(
            f"config.warm_start.from_adapter knows none of these labels, but {', '.join(known)}"
        )
    if settings.readers != donor.readers and (donor.readers > 1 or not settings.steps):
        raise ConfigError(
            f"config.warm_start.readers must be {donor.readers}, as many as from_adapter has"
        )
    mine, its = map(np.array, zip(*rows, strict=True))
    donor.divide_logits(1 / donor.readers)  # each reader alone

    def begun(number: int) -> nnx.State:
        one, other = nnx.clone(model), part(donor, number % donor.readers)
        nnx.update(one, nnx.state(other, nnx.LoRAParam))
        pairs = [(one.classifier.bias, other.classifier.bias)]
        if model.pooling == "label-attention":
            pairs.append((one.label_attention.queries, other.label_attention.queries))
        for ours, theirs in pairs:
            ours[...] = ours[...].at[mine].set(theirs[...][its])
        kernel, theirs = one.classifier.kernel, other.classifier.kernel
        kernel[...] = kernel[...].at[:, mine].set(theirs[...][:, its])
        return own_of(one)

    return [begun(number) for number in range(settings.readers)]


def _said(adapted: Mapping[tuple, tuple[int, float]]) -> str:
    shapes = " and ".join(f"rank {rank}, alpha {a:g}" for rank, a in sorted({*adapted.values()}))
    return f"{shapes} in {len(adapted)} layers" if adapted else "none"


def _train(
    model: ReportClassifier,
    readers: Sequence[nnx.State],
    mode: str,
    frozen_layers: FrozenLayers,
    buckets: Buckets,
    labels: np.ndarray,
    settings: WarmStartConfig,
    mesh: Mesh,
    watch: Watch,
) -> list[nnx.State]:
    """The readers, with what `mode` trains trained, each on batches in an order of its own: AdamW
    with linear decay, on batches of like length."""
    graphdef, trained, frozen = lora.split(model, mode)
    level = model.start_level(trained)
    at_feature = level == model.feature_level
    reports = frozen_layers.at(level)["train"]
    size = min(settings.batch_size, len(reports))
    buckets = buckets.for_features() if at_feature else buckets
    buckets = buckets.even(-(-size // mesh.shape[DATA]))  # every device has as much to do

    def report_loss(params, frozen, values, length, labels):
        (frozen, step), (labels, row) = frozen, labels
        model = nnx.merge(graphdef, params, frozen)
        if settings.noise and not at_feature:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), row)
            values = values if level else model.embedded(values, length)
            values = add_state_noise(key, values, length, settings.noise)
        return TASKS[model.task].loss(packed_logits(model, values, length, level), labels)

    optimizer = optax.chain(optax.scale(1 / size), _optimizer(settings))
    train_step = make_train_step(report_loss, plain_gradient_sum, optimizer, buckets, mesh)
    train_step = jax.jit(train_step, donate_argnums=0)
    data = LabelledData(reports, (labels, np.arange(len(reports))))
    data, frozen = place((data, frozen), mesh, read_only=True)
    learnt = []
    with watch(len(readers) * settings.steps, "steps") as stepped:
        for order, reader in enumerate(readers):
            nnx.update(model, reader)
            trained = jax.tree.map(jnp.copy, lora.split(model, mode)[1])
            state = place(TrainState(trained, optimizer.init(trained)), mesh)
            batches = _batches(reports.lengths, buckets.widths, size, order)
            for step, rows in zip(range(settings.steps), batches, strict=False):
                plan = buckets.plan(rows, reports.lengths, size + max(buckets.rows))
                state, _ = train_step(state, (frozen, np.int32(step)), data, plan, math.inf)
                jax.block_until_ready(state)  # no queue of steps with collectives in them
                stepped(1)
            nnx.update(model, jax.tree.map(jnp.asarray, jax.device_get(state.adapters)))
            learnt.append(own_of(model))
    return learnt


def add_state_noise(key: jax.Array, x_LxH: jax.Array, length: jax.Array, scale: float) -> jax.Array:
    """Normal noise on each state, `scale` times the root mean square of the real ones; as NEFTune
    (arXiv 2310.05914) does it to embeddings, and as strong for long reports as for short."""
    real = (jnp.arange(len(x_LxH)) < length)[:, None]
    square = jnp.sum(jnp.square(x_LxH), where=real) / jnp.maximum(length * x_LxH.shape[1], 1)
    noise = jax.random.normal(key, x_LxH.shape, x_LxH.dtype)
    return x_LxH + (scale * jnp.sqrt(square)).astype(x_LxH.dtype) * noise


def _optimizer(settings: WarmStartConfig) -> optax.GradientTransformation:
    def adamw(rate):
        return optax.adamw(optax.linear_schedule(rate, 0.0, settings.steps), weight_decay=0.01)

    def kind(path, _):
        return "adapters" if "lora_" in jax.tree_util.keystr(path) else "head"

    rates = {"adapters": settings.learning_rate, "head": _HEAD_RATE * settings.learning_rate}
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {name: adamw(rate) for name, rate in rates.items()},
            lambda params: jax.tree.map_with_path(kind, params),
        ),
    )


def _batches(
    lengths: np.ndarray, widths: Sequence[int], size: int, seed: int
) -> Iterator[np.ndarray]:
    """Rows of one step after the other: batches of like length, each report once in an epoch but
    for the shortest that are left over; the batches in random order."""
    rng = np.random.default_rng(seed)
    fits = np.searchsorted(-np.array(widths), -lengths, side="right")
    while True:
        order = rng.permutation(len(lengths))
        order = order[np.argsort(fits[order], kind="stable")]  # longest first
        for start in rng.permutation(np.arange(0, len(order) - size + 1, size)):
            yield order[start : start + size]


def public_basis(features: np.ndarray, kernel: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """(center, directions) for `ReportClassifier.set_basis`, of made-up reports' features.

    Args:
        features: [n, H], for which there are no directions, or [n, labels, H].
        kernel: of the head, [H, labels].

    Returns:
        The mean, and for each label an orthonormal basis [labels, H, H]: the direction of its head
        first, so that nothing of it is lost, then those along which its features vary most.
    """
    center = features.mean(axis=0, dtype=np.float32)
    if features.ndim == 2:
        return jnp.asarray(center), None
    directions = []
    for label, column in enumerate(np.asarray(kernel).T):
        x = features[:, label].astype(np.float32) - center[label]
        own = column[:, None] / np.linalg.norm(column)
        x = x - (x @ own) @ own.T
        _, vectors = np.linalg.eigh(x.T @ x)
        # The narrowest one is what the head takes the place of.
        directions.append(np.linalg.qr(np.concatenate([own, vectors[:, :0:-1]], axis=1))[0])
    return jnp.asarray(center), jnp.asarray(np.stack(directions))


def public_start(settings: WarmStartConfig) -> str | None:
    """What the statement says about it; None if there is none."""
    if settings.phrasebook is None:
        return None
    book = phrasebook_of(settings, ())
    what = "head and adapters" if settings.trains_adapters else "head"
    begun = ""
    if settings.from_adapter is not None:
        folder = Path(settings.from_adapter)
        folders = reader_folders(folder, read_adapter_info(folder)[1].readers)
        weights = b"".join((one / WEIGHTS).read_bytes() for one in folders)
        digest = hashlib.sha256(weights).hexdigest()
        begun = f"begun at an adapter, sha256 {digest}, that is said to owe nothing to them; "
    return (
        f"{begun}{what} learnt first from {settings.reports} made-up reports, without noise; "
        f"their sentences: {book.origin}"
    )
