# SPDX-License-Identifier: Apache-2.0
"""Models from the Hugging Face hub, through its own client: its cache, tokens and offline mode."""

from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from .checkpoints import WeightsError

VOCABULARIES = {
    *("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
}
TOKENIZER_FILES = VOCABULARIES | {"merges.txt", "special_tokens_map.json", "added_tokens.json"}
"""Beside tokenizer_config.json: what is fetched, and what a release may hold."""
_SMALL_FILES = ["config.json", "1_Pooling/config.json", "tokenizer_config.json", *TOKENIZER_FILES]
# One format is enough, and repositories often hold several: the first that exists is fetched.
_WEIGHTS = (
    ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"],
    ["flax_model.msgpack"],
    ["pytorch_model.bin"],
)


def download(repo_id: str, revision: str | None = None) -> Path:
    """The directory, in the hub's own cache, that holds the model "owner/name"; its name is the
    commit. Only configuration, tokenizer and one set of weights are fetched.

    Raises:
        WeightsError: no such model or revision, no access, no network and not in the cache, or a
            model without weights that can be read.
    """
    for weights in _WEIGHTS:
        folder = download_folder(repo_id, [*_SMALL_FILES, *weights], revision)
        if any(any(folder.glob(pattern)) for pattern in weights):
            return folder
    raise WeightsError(
        f"hub model {repo_id} holds no weights; expected one of "
        + ", ".join(names[0] for names in _WEIGHTS)
    )


def download_folder(repo_id: str, patterns: list[str], revision: str | None = None) -> Path:
    """The directory that holds what a repository has of `patterns`; WeightsError as `download`."""
    try:
        return Path(
            huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=patterns)
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise WeightsError(f"hub model {repo_id}: {_reason(error, revision)}") from error


def upload_folder(repo_id: str, folder: Path, *, private: bool, message: str) -> str:
    """Makes `folder` all that a repository holds, in one commit, and returns that commit's address.

    The repository is made if there is none; `private` is for a new one. WeightsError as `download`.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, delete_patterns=["*"], commit_message=message
        ).commit_url
    except Exception as error:  # the client's, or of the HTTP library, which is its own business
        raise WeightsError(f"hub model {repo_id}: {_reason(error, None)}") from error


def _reason(error: Exception, revision: str | None) -> str:
    """One line that says what to do; the client's own messages are paragraphs."""
    if isinstance(error, errors.GatedRepoError):
        return "access is restricted; set HF_TOKEN to a token of an account that was granted it"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such model, or a private one; set HF_TOKEN for those"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {revision!r}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "not (completely) in the cache, and the hub cannot be reached; give a directory"
    return str(error).strip().partition("\n")[0] or type(error).__name__
