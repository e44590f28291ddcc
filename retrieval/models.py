"""Finding, loading, fingerprinting and saving the sentence-transformers models that encode texts.

Only what is safe to load is loaded: safetensors weights and module types that ship with sentence-transformers;
no pickled weights and no code from a model folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.storage import publish_plain, writing
from retrieval.errors import InputError, require

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

POOLING = ("mean", "cls", "max", "lasttoken")
# What a model on the hub consists of: no code, and no weights that are pickled or for other engines.
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.safetensors"]
_NOT_OURS = ["onnx/*", "openvino/*"]
# Shows how a tokenizer treats case, accents, punctuation, numbers, other scripts and blanks.
_PROBE = "The Naïve CAFÉ's e\u0301 x_y-1234.5 (№ ½) ﬁ 漢字 שלום 🤗\tTWO  blanks\nline unfathomableness"
_PICKLED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def resolve_model(model: str | Path) -> str:
    """Turn what `--model` takes into the absolute path of a folder, or leave it as a hub id.

    Args:
        model: a model folder, the `--out` of a training verb (its `model/` is used), a hub id such as
            `sentence-transformers/all-MiniLM-L6-v2`, or `package:MODULE/SUBPATH` for weights that an installed
            Python package ships. A `.safetensors` file with one table of word vectors is a static embedding.

    Raises:
        InputError: when the folder is not a model, or the package or its sub-path is missing.
    """
    model = str(model)
    if not model.strip():
        raise InputError("--model is empty; it takes a folder, a hub id, or package:MODULE/SUBPATH")
    place = _inside_package(model) if model.startswith("package:") else Path(model).expanduser()
    if place.suffix == ".safetensors" and place.is_file():
        return str(place.resolve())
    if place.is_dir():
        for folder in (place, place / "model"):
            if (folder / "modules.json").is_file() or (folder / "config.json").is_file():
                return str(folder.resolve())
        unfinished = (place / "checkpoints").is_dir()
        fix = "the run did not finish; go on with --resume" if unfinished else "wanted a folder that holds one"
        raise InputError(f"holds no model (no modules.json or config.json, here or in model/): {fix}", path=model)
    if place.exists():
        raise InputError("is a file; --model takes a folder, a hub id, or package:MODULE/SUBPATH", path=model)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise InputError("no such model folder", path=model)
    return model


def _inside_package(model: str) -> Path:
    module, _, inside = model.removeprefix("package:").partition("/")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None:
        pip = module.replace("_", "-")
        raise InputError(f"--model {model}: the package {module!r} is not installed; run: pip install {pip}")
    root = Path(os.path.normpath(next(iter(spec.submodule_search_locations or [os.devnull]))))
    # By name only: an installer may have linked the files into the package.
    found = Path(os.path.normpath(root / inside))
    if not found.is_relative_to(root) or not found.exists():
        below = sorted(p.name for p in root.glob("*/") if p.name[0] not in "_.")
        raise InputError(f"--model {model}: the package has no {inside!r}; it has: {', '.join(below) or 'no folders'}")
    return found


def load_model(source: str, device: torch.device, pooling: str | None = None) -> SentenceTransformer:
    """Load a sentence-transformers folder or hub id, an HF encoder (with `pooling`), or static embeddings.

    Args:
        source: what :func:`resolve_model` returned; a `.safetensors` word table beside a tokenizer (as `wordllama`
            ships) is loaded as static embeddings.
        device: where the weights go; they become float32, whatever the files hold.
        pooling: for an HF encoder without pooling of its own: mean (default), cls, max or lasttoken.

    Returns:
        The model. That of a cosine model gives unit vectors, so that a dot product is its similarity everywhere.

    Raises:
        InputError: when the model is missing, incomplete, pickled, of a kind that we do not run as
            sentence-transformers would, or brings code of its own.
    """
    require("sentence_transformers", "train")
    if pooling is not None and pooling not in POOLING:
        raise InputError(f"unknown pooling {pooling!r}; wanted one of {', '.join(POOLING)}")
    path = Path(source)
    if not path.exists():
        path = from_hub(source)
    if path.is_dir():
        refuse_unsafe(path)
    try:
        with loading_quietly() as missing:
            model = _load(path, device, pooling)
    except InputError:
        raise
    except Exception as error:  # four libraries read these files, and each has errors of its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"cannot be loaded as a model ({reason}); is the download complete?", path=path) from error
    if missing:
        message = f"its weights lack {missing[0]} ({len(missing)} entries in all); is the download complete?"
        raise InputError(message, path=path)
    _refuse_unsupported(model, path)
    return _normalising(model.float())


def from_hub(name: str) -> Path:
    """Fetch a model, or find it in the hub's cache: one request, where loading by name would repeat many for a minute.

    A name without a slash is sentence-transformers' own, as in that library, or one of the hub's oldest models.
    """
    from huggingface_hub import snapshot_download

    names = [name] if "/" in name else [f"sentence-transformers/{name}", name]
    reason = ""
    for repository in names:
        try:
            return Path(snapshot_download(repository, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_OURS))
        except Exception as error:  # of the network stack, whichever it is in this release
            reason = reason or str(error).strip().partition("\n")[0][:300]
    raise InputError(f"--model {name}: no such folder, and nothing from the hub ({reason})")


def _load(path: Path, device: torch.device, pooling: str | None) -> SentenceTransformer:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    weights = {"use_safetensors": True, "dtype": torch.float32}
    has_own = path.is_file() or (path / "modules.json").is_file()
    if pooling is not None and has_own:
        raise InputError(f"has its own pooling; only of a plain HF encoder {pooling!r} can be asked", path=path)
    if path.is_file():
        return _static(path, device)
    if pooling is None:
        return SentenceTransformer(str(path), device=str(device), trust_remote_code=False, model_kwargs=weights)
    transformer = Transformer(str(path), model_kwargs=weights)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
    return SentenceTransformer(modules=modules, device=str(device))


def _normalising(model: SentenceTransformer) -> SentenceTransformer:
    from sentence_transformers.sentence_transformer.modules import Normalize

    if model.similarity_fn_name == "cosine" and not isinstance(model[-1], Normalize):
        model.append(Normalize())
    return model


def _static(weights: Path, device: torch.device) -> SentenceTransformer:
    """Load a table of word vectors, with the tokenizer of the same vocabulary that lies nearest to it."""
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tables = [tensor for tensor in load_file(weights).values() if tensor.ndim == 2]
    if len(tables) != 1:
        raise InputError(f"holds {len(tables)} matrices; wanted one table (words, dim)", path=weights)
    for path in [*sorted(weights.parent.glob("*.json")), *sorted(weights.parent.parent.glob("*/*.json"))]:
        if "tokenizer" not in path.name:
            continue
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception:  # tokenizers raises bare Exception; a tokenizer's settings file is not a tokenizer
            continue
        if tokenizer.get_vocab_size() == len(tables[0]):
            embedding = StaticEmbedding(tokenizer, embedding_weights=tables[0].float())
            return SentenceTransformer(modules=[embedding], device=str(device))
    raise InputError(
        f"no tokenizer with its {len(tables[0])} words lies beside it or in a sibling folder", path=weights
    )


@contextmanager
def loading_quietly() -> Iterator[list[str]]:
    """Keep transformers' bar and tables off the terminal; yield the weights that its report calls missing.

    It would go on with random numbers in their place. Poolers are left out: no sentence embedding uses them.
    """
    from transformers.utils import logging as transformers_logging

    missing: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger.debug("%s", record.getMessage())
            for line in record.getMessage().splitlines():
                name, _, status = line.partition("|")
                if status.strip().startswith("MISSING") and "pooler" not in name:
                    missing.append(name.strip())

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    library = logging.getLogger("transformers")
    handlers, level = library.handlers, library.level
    library.handlers = [Listener()]
    library.setLevel(logging.WARNING)  # that of the report, which users may have silenced
    try:
        yield missing
    finally:
        library.handlers = handlers
        library.setLevel(level)


def refuse_unsafe(folder: Path) -> None:
    """Refuse a model folder that would run code or unpickle weights when loaded."""
    for path in sorted(folder.rglob("*.json")):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise InputError(f"cannot be read as JSON ({error}); is the download complete?", path=path) from None
        if isinstance(config, dict) and "auto_map" in config:
            raise InputError("brings code of its own (auto_map), which is never run; use a model without it", path=path)
        if path.name == "modules.json":
            _refuse_foreign_modules(config, path)
    for path in sorted(folder.rglob("*")):
        is_ours = not any(path.relative_to(folder).match(pattern) for pattern in _NOT_OURS)
        if is_ours and path.suffix in _PICKLED and not any(path.parent.glob("*.safetensors")):
            raise InputError("is pickled, which can run code; convert it to safetensors", path=path)


def _refuse_foreign_modules(config: Any, path: Path) -> None:
    for module in config if isinstance(config, list) else []:
        kind = module.get("type", "") if isinstance(module, dict) else ""
        if not str(kind).startswith("sentence_transformers."):
            raise InputError(f"names the module {kind!r}; only sentence-transformers' own are loaded", path=path)
        inside = (path.parent / str(module.get("path", ""))).resolve()
        if not inside.is_relative_to(path.parent.resolve()):
            raise InputError(f"points outside the model folder: {module.get('path')!r}", path=path)


def _refuse_unsupported(model: SentenceTransformer, path: Path) -> None:
    """Refuse a model whose vectors would silently differ from those that sentence-transformers gives."""
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer

    first = model[0]
    if not isinstance(first, Transformer | StaticEmbedding):
        raise InputError(f"begins with {type(first).__name__}; wanted a text encoder or static embeddings", path=path)
    if first.modalities != ["text"] or getattr(first, "processing_kwargs", None):
        raise InputError(f"reads {first.modalities} through a processor of its own; wanted plain text", path=path)
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise InputError(f"compares by {model.similarity_fn_name}; only cosine and dot can be searched", path=path)
    if any(isinstance(module, Pooling) and not module.include_prompt for module in model):
        raise InputError("leaves the prompt out of its pooling (include_prompt), which is not supported", path=path)
    words, rows = len(model.tokenizer.get_vocab()), getattr(getattr(first, "config", None), "vocab_size", 0)
    if words < rows / 2:  # tables are padded by some rows, and a tokenizer without its files has five words
        raise InputError(f"has a tokenizer of {words} words for {rows} word vectors; are its files missing?", path=path)


def weights_sha256(model: torch.nn.Module, tokenizer: Any) -> str:
    """Return one hash over the bytes of every weight, the tokenizer's vocabulary, and what it does to a text.

    Names of weights and the tokenizer's file format are left out: they change with the versions of the libraries,
    and an index must outlive these.
    """
    tensors = (tensor.detach().cpu() for tensor in model.state_dict().values() if tensor.is_floating_point())
    hashes = sorted(map(_tensor_sha256, tensors))
    return hashlib.sha256(json.dumps([hashes, _tokenizer_state(tokenizer)]).encode()).hexdigest()


def _tensor_sha256(tensor: torch.Tensor) -> str:
    found = hashlib.sha256(f"{tuple(tensor.shape)}".encode())
    found.update(np.ascontiguousarray(tensor.numpy()).data)  # without a copy, where there are megabytes
    return found.hexdigest()


def _tokenizer_state(tokenizer: Any) -> list[Any]:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    rules = json.loads(backend.to_str())["model"] if hasattr(backend, "to_str") else {}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in rules.get("merges", [])]
    ids = tokenizer(_PROBE, verbose=False)["input_ids"] if callable(tokenizer) else tokenizer.encode(_PROBE).ids
    return [sorted(tokenizer.get_vocab().items()), merges, ids]


def save_model(model: SentenceTransformer, folder: Path, *, card: str) -> None:
    """Publish `model` as a sentence-transformers folder with `card` as its README.md; `folder` must not exist."""
    with publish_plain(folder) as temporary:
        model.save(str(temporary), create_model_card=False)
        with writing(temporary / "README.md") as file:
            file.write(card.encode("utf-8"))
