"""An encoder without a model or torch: bags of hashed words, so that tests of files and of search take no time."""

import zlib

import numpy as np

from retrieval.encoder import Side


class StubEncoder:
    """What `encode_collection` and `build_index` use of an Encoder. Equal texts get equal vectors.

    `fail_at` is a text at whose block it raises, `poison` a text that gets a NaN; `seen` lists the texts encoded.
    """

    def __init__(self, dim=16, *, fail_at=None, poison=None, **fingerprint):
        self.dim, self.fail_at, self.poison, self.changes = dim, fail_at, poison, fingerprint
        self.query, self.document = Side("", 64), Side("", 128)
        self.source = "stub"
        self.seen = []

    def fingerprint(self):
        known = {
            "source": self.source,
            "weights_sha256": "0" * 64,
            "modules": ["Stub"],
            "dim": self.dim,
            "similarity": "cosine",
            "query_prompt": "",
            "document_prompt": "",
            "query_max_length": 64,
            "document_max_length": 128,
            "pooling": None,
            "precision": "fp32",
        }
        return known | self.changes

    def encode_blocks(self, blocks, side, *, total=None, unit="docs"):
        for block in blocks:
            if self.fail_at in block:
                raise RuntimeError(f"stopped at {self.fail_at}")
            self.seen += block
            yield self._vectors(block)

    def encode_query(self, texts):
        return self._vectors(list(texts))

    def _vectors(self, texts):
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, zlib.crc32(word.strip(".,;:").encode()) % self.dim] += 1
            if text == self.poison:
                vectors[row, 3] = np.nan
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)
