"""Static embeddings small enough to compute by hand."""

from pathlib import Path


def make_static(folder: Path, rows: int = 4, tables: int = 1) -> Path:
    """A word table as wordllama ships it: weights/words.safetensors, tokenizers/words_tokenizer_config.json."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    (folder / "weights").mkdir(parents=True)
    (folder / "tokenizers").mkdir()
    (folder / "tokenizers" / "a_tokenizer_settings.json").write_text('{"no": "tokenizer"}')
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizers" / "words_tokenizer_config.json"))
    numbers = torch.arange(2 * rows, dtype=torch.float16).reshape(rows, 2)
    save_file({f"table{i}": numbers.clone() for i in range(tables)}, folder / "weights" / "words.safetensors")
    return folder / "weights" / "words.safetensors"
