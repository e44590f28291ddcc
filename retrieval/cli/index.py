"""Build a FAISS index from a model and a collection, or from embeddings that `encode` wrote.

--factory takes any FAISS factory string: Flat (exact), IVF256,Flat, HNSW32, IVF256,PQ32x4fs,RFlat, …
Texts are found through the corpus file while it lies where it lay; --store-text copies them into the index.
"""

from __future__ import annotations

import argparse
import re

from retrieval.cli.flags import add_flags, add_model_flags, encoder_of
from retrieval.errors import InputError

EXAMPLES = """examples:
  rankwright index --model runs/demo/run --data pydocs --out runs/demo.index
  rankwright index --model runs/demo/run --data my-beir-folder --factory IVF256,Flat --search-parameter nprobe=16 \\
      --store-text --out my.index
  rankwright index --embeddings runs/demo.documents --out runs/demo.index
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    add_flags(parser, "data", "out", "overwrite", required=("out",))
    add_model_flags(parser, required=False)
    parser.add_argument("--embeddings", metavar="DIR", help="take these instead of encoding --data with --model")
    parser.add_argument("--factory", metavar="STR", default="Flat", help="FAISS factory string (default: Flat)")
    parser.add_argument(
        "--search-parameter",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="kept in the index, such as nprobe=16 or efSearch=64 (repeatable)",
    )
    parser.add_argument("--store-text", action="store_true", help="copy the texts into the index folder")


def run(args: argparse.Namespace) -> int:
    """Build and publish."""
    from indexes.storage import check_folder
    from retrieval.collection import Collection
    from retrieval.search import build_index

    if (args.model is None) == (args.embeddings is None):
        raise InputError("an index is built from --model and --data, or from --embeddings")
    if args.model is not None and args.data is None:
        raise InputError("--model needs --data, the collection to encode")
    if args.store_text and args.data is None:
        raise InputError("--store-text needs --data, where the texts are")
    check_folder(args.out, overwrite=args.overwrite)  # before the model is loaded
    collection = None if args.data is None else Collection.load(args.data)
    build_index(
        args.out,
        encoder=None if args.model is None else encoder_of(args),
        collection=collection,
        embeddings=args.embeddings,
        factory=args.factory,
        search_parameters=dict(map(_parameter, args.search_parameter)),
        store_text=args.store_text,
        overwrite=args.overwrite,
    )
    return 0


def _parameter(text: str) -> tuple[str, float]:
    """Read one --search-parameter."""
    name, _, value = text.partition("=")
    if not re.fullmatch(r"\d+(\.\d+)?", value):
        raise InputError(f"--search-parameter got {text!r}; wanted NAME=NUMBER, such as nprobe=16")
    return name, float(value) if "." in value else int(value)
