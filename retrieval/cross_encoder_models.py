"""Loading and saving the models that score pairs of a query and a document.

A folder is one of Hugging Face: config.json, safetensors weights, a tokenizer. What the config of a sequence
classifier does not say stands in it under `rankwright`: how the score comes about, and how long a query may be.
Only what is safe to load is loaded, as in `retrieval.models`. Import this module only where torch is installed.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from indexes.storage import publish_plain, writing
from rankers.pair_scorer import ClassifierScorer, EncoderDecoderScorer, EncoderScorer, PairScorer, PairwiseScorer
from rankers.set_encoder import SetScorer
from retrieval.attention import attention_for
from retrieval.errors import InputError, did_you_mean
from retrieval.models import from_hub, loading_quietly, refuse_unsafe
from retrieval.pair_tokens import INTERACTION_TOKEN

ARCHITECTURES = ("classifier", "set", "pairwise", "encoder", "encoder_decoder")
SCORE_TOKEN = "<extra_id_10>"  # RankT5's
# Encoder-decoder models whose encoder alone can be had, and whose texts are marked "Query:" and "Document:".
_T5_TYPES = ("t5", "mt5", "umt5", "longt5")
_HEAD_FILE = "head.safetensors"


@dataclass(frozen=True, slots=True)
class LoadedScorer:
    """A model in eval mode, its tokenizer, and what the folder says about lengths.

    Attributes:
        scorer: the model, float32, on its device.
        tokenizer: the tokenizer of transformers; pads on the right.
        settings: what the folder's config says under `rankwright`; empty where it says nothing.
        has_new_output: whether the output layer was drawn, since the folder has none: scores mean nothing yet.
    """

    scorer: PairScorer
    tokenizer: Any
    settings: dict[str, Any]
    has_new_output: bool


def load_scorer(
    source: str, device: torch.device, *, architecture: str = "auto", seed: int = 0, pooling: str = "first"
) -> LoadedScorer:
    """Load a sequence classifier, a Set-Encoder or a T5-type scorer, or put a new output layer on an encoder.

    Args:
        source: what `retrieval.models.resolve_model` returned.
        device: where the weights go.
        architecture: one of ARCHITECTURES; "auto" is what the folder says: a classifier (also for an encoder
            without an output layer), or encoder_decoder for a T5-type model.
        seed: draws the weights that the folder lacks.
        pooling: of a new model of the architecture "encoder": first or mean.

    Raises:
        InputError: when the model is missing, incomplete, pickled, of a kind that gives no score, or brings code.
    """
    if architecture not in ("auto", *ARCHITECTURES):
        raise InputError(f"unknown architecture {architecture!r}{did_you_mean(architecture, ARCHITECTURES)}")
    path = Path(source)
    if path.is_file():
        raise InputError("is a table of word vectors; a reranker needs a transformer", path=path)
    folder = _transformer_folder(path if path.exists() else from_hub(source))
    config = _read_config(folder)
    settings = config.get("rankwright", {})
    chosen = _choose(architecture, config, folder)
    try:
        with loading_quietly(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            scorer, tokenizer = _build(chosen, folder, {"pooling": pooling} | settings)
    except InputError:
        raise
    except Exception as error:  # three libraries read these files, and each has errors of its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"cannot be loaded as a reranker ({reason})", path=folder) from error
    if tokenizer.pad_token_id is None:
        raise InputError("has a tokenizer without a padding token; wanted one of an encoder", path=folder)
    tokenizer.padding_side = "right"
    words, rows = len(tokenizer.get_vocab()), scorer.transformer.config.vocab_size
    if words < rows / 2:  # a tokenizer without its files has five words
        raise InputError(
            f"has a tokenizer of {words} words for {rows} word vectors; are its files missing?", path=folder
        )
    return LoadedScorer(scorer.float().to(device).eval(), tokenizer, settings, _needs_output(chosen, config))


def save_scorer(scorer: PairScorer, tokenizer: Any, folder: Path, *, settings: dict[str, Any], card: str) -> None:
    """Publish a scorer as a folder of Hugging Face with `card` as its README.md; `folder` must not exist.

    A classifier is also what sentence-transformers' `CrossEncoder` loads; its config asks for logits, not sigmoids.
    The other architectures can be loaded by transformers as the plain model that they extend.
    """
    config = scorer.transformer.config
    config.rankwright = {"architecture": scorer.architecture, **settings, **scorer.settings()}
    if isinstance(scorer, ClassifierScorer):
        config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    with publish_plain(folder) as temporary, loading_quietly():
        scorer.transformer.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if isinstance(scorer, EncoderScorer):
            weights = {name: weight.detach().cpu().contiguous() for name, weight in scorer.head.state_dict().items()}
            save_file(weights, temporary / _HEAD_FILE)
        with writing(temporary / "README.md") as file:
            file.write(card.encode("utf-8"))


def choose_attention(scorer: PairScorer, *, training: bool) -> None:
    """Give a scorer on a CPU the attention for training or for inference, as `retrieval.attention` does for encoders.

    Models that fix their attention (MPNet) or whose attention is more than a softmax of q kᵀ (T5) keep theirs.
    """
    transformer: Any = scorer.transformer
    name = attention_for(transformer, transformer.device, training=training)
    if name is not None and isinstance(scorer, SetScorer):
        scorer.use_attention(name)
    elif name is not None:
        with contextlib.suppress(ValueError, ImportError, AttributeError):  # an architecture with one kind only
            transformer.set_attn_implementation(name)


def _transformer_folder(folder: Path) -> Path:
    """Return where the transformer of a model lies: of sentence-transformers' modules, the first."""
    refuse_unsafe(folder)
    modules = folder / "modules.json"
    if not modules.is_file():
        return folder
    try:
        listed = json.loads(modules.read_text(encoding="utf-8"))
        first: Path = folder / listed[0]["path"]
        kinds = [str(module["type"]).rpartition(".")[2] for module in listed]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"is damaged ({error!r})", path=modules) from None
    described = folder / "config_sentence_transformers.json"
    is_reranker = described.is_file() and '"CrossEncoder"' in described.read_text(encoding="utf-8")
    if is_reranker and len(kinds) > 1:
        raise InputError(f"makes its scores through {', '.join(kinds[1:])}; wanted a sequence classifier", path=modules)
    return first


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("holds no transformer (no config.json); a reranker needs one", path=folder) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as JSON ({error})", path=path) from None
    if not isinstance(config, dict) or not isinstance(config.get("rankwright", {}), dict):
        raise InputError("is no config of a model", path=path)
    return config


def _choose(asked: str, config: dict[str, Any], folder: Path) -> str:
    """Return the architecture that was asked for, or the folder's own."""
    own = config.get("rankwright", {}).get("architecture")
    name = str((config.get("architectures") or [""])[0])
    is_t5 = config.get("model_type") in _T5_TYPES
    if own is None and _is_classifier(config):
        own = "classifier"
    if own is not None and own not in ARCHITECTURES:
        raise InputError(f"is of the architecture {own!r}, which this version does not know", path=folder)
    if asked == "auto":
        if own is None and name.endswith("ForCausalLM"):
            raise InputError(f"is a {name}, which prompts its scores; wanted a classifier or an encoder", path=folder)
        return own or ("encoder_decoder" if is_t5 else "classifier")
    if own not in (None, asked) and (own != "classifier" or asked not in ("set", "pairwise")):
        raise InputError(f"holds the architecture {own}; it cannot be loaded as {asked}", path=folder)
    if own is None and is_t5 != asked.startswith("encoder"):
        wanted = "encoder or encoder_decoder" if is_t5 else "classifier, set or pairwise"
        raise InputError(f"is a {config.get('model_type')}; wanted the architecture {wanted}, got {asked}", path=folder)
    return asked


def _needs_output(architecture: str, config: dict[str, Any]) -> bool:
    """Return whether the folder lacks the layer that makes the score; with encoder_decoder it is a word's logit."""
    if architecture in (config.get("rankwright", {}).get("architecture"), "encoder_decoder"):
        return False
    return architecture not in ("classifier", "set") or not _is_classifier(config)


def _is_classifier(config: dict[str, Any]) -> bool:
    return str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification")


def _build(architecture: str, folder: Path, settings: dict[str, Any]) -> tuple[PairScorer, Any]:
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        AutoModelForTextEncoding,
        AutoTokenizer,
    )

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if architecture == "encoder_decoder":
        transformer = _weights(AutoModelForSeq2SeqLM, folder)
        token = settings.get("token_id", tokenizer.convert_tokens_to_ids(SCORE_TOKEN))
        if token in (None, tokenizer.unk_token_id) and "token_id" not in settings:
            raise InputError(f"has a tokenizer without {SCORE_TOKEN}, whose logit is the score", path=folder)
        return EncoderDecoderScorer(transformer, int(token)), tokenizer
    if architecture == "encoder":
        scorer = EncoderScorer(_weights(AutoModelForTextEncoding, folder), str(settings["pooling"]))
        if "architecture" in settings:
            scorer.head.load_state_dict(_head_weights(folder))
        return scorer, tokenizer
    if architecture == "pairwise":
        is_new = settings.get("architecture") != "pairwise"
        how: dict[str, Any] = {"num_labels": 2, "ignore_mismatched_sizes": True} if is_new else {}
        transformer = _weights(AutoModelForSequenceClassification, folder, has_new_head=is_new, **how)
        return PairwiseScorer(transformer), tokenizer
    transformer = _classifier(AutoModelForSequenceClassification, folder)
    if architecture == "classifier":
        return ClassifierScorer(transformer), tokenizer
    if tokenizer.convert_tokens_to_ids(INTERACTION_TOKEN) in (None, tokenizer.unk_token_id):
        if settings.get("architecture") == "set":
            message = f"is a Set-Encoder whose tokenizer lacks {INTERACTION_TOKEN}; are its files complete?"
            raise InputError(message, path=folder)
        _add_interaction_token(transformer, tokenizer)
    return SetScorer(transformer, set_size=settings.get("set_size")), tokenizer


def _classifier(auto: Any, folder: Path) -> Any:
    """Load a sequence classifier; an encoder gets an output layer with one label, and a pooler if it has none."""
    is_encoder = not _is_classifier(_read_config(folder))
    return _weights(auto, folder, has_new_head=is_encoder, **({"num_labels": 1} if is_encoder else {}))


def _weights(auto: Any, folder: Path, *, has_new_head: bool = False, **settings: Any) -> Any:
    """Load weights in float32; what the folder lacks is an error, except for a new output layer."""
    model, report = auto.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **settings
    )
    prefix = f"{model.base_model_prefix}."
    missing = sorted(
        name
        for name in [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
        if not (has_new_head and (not name.startswith(prefix) or ".pooler." in name))
    )
    if missing:
        message = f"its weights lack {missing[0]} ({len(missing)} entries in all); is the download complete?"
        raise InputError(message, path=folder)
    return model


def _head_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / _HEAD_FILE
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot be read ({error}); is the folder complete?", path=path) from None


def _add_interaction_token(transformer: Any, tokenizer: Any) -> None:
    """Add [INT] to the vocabulary; its vector begins as that of the first token, which also stands for a whole text."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    if first is None:
        raise InputError("has a tokenizer without a first token ([CLS]), behind which [INT] would stand")
    tokenizer.add_special_tokens({"additional_special_tokens": [INTERACTION_TOKEN]}, replace_extra_special_tokens=False)
    added = tokenizer.convert_tokens_to_ids(INTERACTION_TOKEN)
    rows = max(added + 1, transformer.config.vocab_size)
    transformer.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        table = transformer.get_input_embeddings().weight
        table[added] = table[first]
