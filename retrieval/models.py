"""Finding, loading, fingerprinting and saving the sentence-transformers models that encode texts.

Only what is safe to load is loaded: safetensors weights and module types that ship with sentence-transformers;
no pickled weights and no code from a model folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexes.storage import publish_plain
from retrieval.errors import InputError, require

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

POOLING = ("mean", "cls", "max", "lasttoken")


def resolve_model(model: str) -> str:
    """Turn what `--model` takes into a folder or a hub id.

    Args:
        model: a model folder, the `--out` of a training verb (its `model/` is used), a hub id such as
            `sentence-transformers/all-MiniLM-L6-v2`, or `package:MODULE/SUBPATH` for weights that an installed
            Python package ships. A `.safetensors` file with one table of word vectors is a static embedding.

    Raises:
        InputError: when the folder is not a model, or the package or its sub-path is missing.

    """
    if model.startswith("package:"):
        return str(_inside_package(model))
    folder = Path(model).expanduser()
    if folder.suffix == ".safetensors" and folder.is_file():
        return str(folder)
    if folder.is_dir():
        for candidate in (folder, folder / "model"):
            if (candidate / "modules.json").is_file() or (candidate / "config.json").is_file():
                return str(candidate)
        unfinished = (folder / "checkpoints").is_dir()
        fix = (
            "the run did not finish; go on with --resume"
            if unfinished
            else "wanted a sentence-transformers or HF folder"
        )
        raise InputError(f"holds no model (no modules.json or config.json, here or in model/): {fix}", path=model)
    if folder.exists():
        raise InputError("is a file; --model takes a folder, a hub id, or package:MODULE/SUBPATH", path=model)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise InputError("no such model folder", path=model)
    return model


def _inside_package(model: str) -> Path:
    module, _, inside = model.removeprefix("package:").partition("/")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        pip = module.replace("_", "-")
        raise InputError(f"--model {model}: the package {module!r} is not installed; run: pip install {pip}")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    found = (root / inside).resolve()
    if not found.is_relative_to(root) or not (found.is_dir() or (found.suffix == ".safetensors" and found.is_file())):
        below = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("_")))
        raise InputError(f"--model {model}: the package has no model {inside!r}; it has: {below or 'none'}")
    return found


def load_model(source: str, device: torch.device, pooling: str | None = None) -> SentenceTransformer:
    """Load a sentence-transformers folder or hub id, an HF encoder (with `pooling`), or static embeddings.

    Args:
        source: what :func:`resolve_model` returned; a `.safetensors` word table beside a tokenizer (as `wordllama`
            ships) is loaded as static embeddings.
        device: where the weights go.
        pooling: for an HF encoder without pooling of its own: mean (default), cls, max or lasttoken.

    Raises:
        InputError: when the model is missing, incomplete, pickled, or brings code of its own.

    """
    require("sentence_transformers", "train")
    folder = Path(source)
    if folder.is_dir():
        refuse_unsafe(folder)
    quiet_loading()
    try:
        return _normalising(_load(source, device, pooling))
    except InputError:
        raise
    except (OSError, KeyError, ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        kind = (
            "the folder cannot be loaded" if folder.is_dir() else "not on this machine, and the hub gave no such model"
        )
        raise InputError(f"--model {source}: {kind} ({reason})") from error


def _load(source: str, device: torch.device, pooling: str | None) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    if source.endswith(".safetensors"):
        return _static(Path(source), device)
    if pooling is not None:
        return _with_pooling(source, pooling, device)
    return SentenceTransformer(
        source, device=str(device), trust_remote_code=False, model_kwargs={"use_safetensors": True}
    )


def _normalising(model: SentenceTransformer) -> SentenceTransformer:
    """Make the vectors of a cosine model unit length, so that a dot product is its similarity everywhere."""
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


def quiet_loading() -> None:
    """Silence transformers' own bar over the weights: it is not progress that a user waits for."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _with_pooling(source: str, pooling: str, device: torch.device) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    if pooling not in POOLING:
        raise InputError(f"unknown pooling {pooling!r}; wanted one of {', '.join(POOLING)}")
    if (Path(source) / "modules.json").is_file():
        raise InputError(f"--model {source} has its own pooling; --pooling is for plain HF encoders")
    transformer = Transformer(source, model_kwargs={"use_safetensors": True})
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
    return SentenceTransformer(modules=modules, device=str(device))


def refuse_unsafe(folder: Path) -> None:
    """Refuse a model folder that would run code or unpickle weights when loaded."""
    for path in sorted(folder.rglob("*.json")):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise InputError(f"cannot be read as JSON ({error}); is the download complete?", path=path) from None
        if isinstance(config, dict) and "auto_map" in config:
            raise InputError("brings code of its own (auto_map), which is never run; use a model without it", path=path)
        if path.name == "modules.json":
            _refuse_foreign_modules(config, path)
    weights = {path.suffix for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt", ".pkl")}
    if weights and ".safetensors" not in weights:
        raise InputError("holds pickled weights only; convert them to safetensors", path=folder)


def _refuse_foreign_modules(config: Any, path: Path) -> None:
    for module in config if isinstance(config, list) else []:
        kind = module.get("type", "") if isinstance(module, dict) else ""
        if not str(kind).startswith("sentence_transformers."):
            raise InputError(f"names the module {kind!r}; only sentence-transformers' own are loaded", path=path)
        inside = (path.parent / str(module.get("path", ""))).resolve()
        if not inside.is_relative_to(path.parent.resolve()):
            raise InputError(f"points outside the model folder: {module.get('path')!r}", path=path)


def weights_sha256(model: SentenceTransformer) -> str:
    """Return one hash over every weight (name, shape, dtype, bytes) and the tokenizer's vocabulary and rules."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(_tokenizer_state(model).encode())
    return digest.hexdigest()


def _tokenizer_state(model: SentenceTransformer) -> str:
    backend = getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)
    state = json.loads(backend.to_str()) if hasattr(backend, "to_str") else {"tokenizer": repr(model.tokenizer)}
    # How long the last batch was is state of the object, not of the model.
    state.pop("truncation", None)
    state.pop("padding", None)
    return json.dumps(state, sort_keys=True)


def save_model(model: SentenceTransformer, folder: Path, *, card: str) -> None:
    """Publish `model` as a sentence-transformers folder with `card` as its README.md; `folder` must not exist."""
    with publish_plain(folder) as temporary:
        model.save(str(temporary), create_model_card=False)
        (temporary / "README.md").open("w", encoding="utf-8").write(card)
