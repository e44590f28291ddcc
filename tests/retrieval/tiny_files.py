"""A model and a collection small enough to train in a second: made from words, no download, same bytes every time."""

import json
import re
from pathlib import Path

from beir_folder import jsonl, make_collection

# subject → (what it is, where it lives, what it eats or needs, what it is known for)
FACTS = {
    "otter": ("a swimming mammal with thick brown fur", "rivers and cold coasts", "fish crabs and mussels"),
    "heron": ("a grey wading bird with long legs", "shallow lakes and marshes", "frogs fish and insects"),
    "maple": ("a tall tree with broad red leaves", "northern forests and gardens", "moist soil and winter cold"),
    "glacier": ("a slow river of packed ice", "high mountains and polar land", "heavy snow and long frost"),
    "violin": ("a small string instrument with four strings", "concert halls and folk bands", "dry air and a bow"),
    "lemon": ("a sour yellow fruit with a thin peel", "warm groves near the sea", "sun water and light soil"),
    "turbine": ("a machine whose blades turn in wind", "windy hills and open sea", "steady wind and clean oil"),
    "beetle": ("an insect with hard folded wings", "rotten wood and dry leaves", "roots seeds and dung"),
    "comet": ("a ball of dust and ice with a tail", "the dark edge of the solar system", "heat of the sun to glow"),
    "cheese": ("a solid food made from sour milk", "cool cellars and farm kitchens", "salt rennet and patience"),
    "harbour": ("a sheltered place where ships anchor", "quiet bays behind a sea wall", "deep water and strong piers"),
    "vitamin": (
        "a small molecule that the body must eat",
        "fresh fruit and green plants",
        "no heat and no light",
    ),
    "volcano": ("a hill that grew from molten rock", "the rim of moving plates", "gas pressure far below the ground"),
    "saddle": ("a leather seat for a horse rider", "stables and old workshops", "oil wax and a soft cloth"),
    "beacon": ("a bright light that warns sailors", "rocks cliffs and narrow straits", "power lenses and a keeper"),
}
DOCUMENT_FORMS = (
    ("{0}", "The {0} is {1}."),
    ("Where the {0} is found", "You find the {0} in {2}; few others look like {1}."),
    ("What the {0} needs", "The {0} needs {3}. Without them it does not last."),
    ("", "In short: {0}, {1}, from {2}, with {3}."),
)
QUERY_FORMS = ("what is {1}", "where is the {0} found", "what does the {0} need", "tell me all about the {0}")
SPLITS = {"train": range(9), "dev": range(9, 12), "test": range(12, 15)}


def documents() -> list[dict[str, str]]:
    """60 documents, four of each subject."""
    return [
        {"_id": f"{subject}-{form}", "title": title.format(subject, *facts), "text": text.format(subject, *facts)}
        for subject, facts in FACTS.items()
        for form, (title, text) in enumerate(DOCUMENT_FORMS)
    ]


def queries() -> dict[str, str]:
    """60 queries, one for each document."""
    return {
        f"q-{subject}-{form}": text.format(subject, *facts)
        for subject, facts in FACTS.items()
        for form, text in enumerate(QUERY_FORMS)
    }


def qrels() -> dict[str, dict[str, dict[str, int]]]:
    """Grade 3 for a query's own document, 2 for the summary of its subject, 1 for another, 0 for a neighbour."""
    subjects, splits = list(FACTS), {}
    for split, numbers in SPLITS.items():
        judged = splits[split] = {}
        for number in numbers:
            subject, neighbour = subjects[number], subjects[(number + 1) % len(subjects)]
            for form in range(len(QUERY_FORMS)):
                grades = {f"{subject}-{form}": 3, f"{neighbour}-{form}": 0}
                if form != 3:
                    grades[f"{subject}-3"] = 2
                grades.setdefault(f"{subject}-{(form + 1) % 3}", 1)
                judged[f"q-{subject}-{form}"] = grades
    return splits


def make_tiny_collection(folder: Path) -> Path:
    """Write the BEIR folder."""
    return make_collection(folder, documents(), queries(), qrels())


def make_tiny_model(folder: Path) -> Path:
    """Write a sentence-transformers folder: BERT with random weights, mean pooling, unit vectors.

    Hidden size 32, 2 layers, 2 heads, 64 positions; the vocabulary is the collection's words and single characters.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    plain = folder.with_name(f"{folder.name}-bert")
    plain.mkdir(parents=True)
    texts = [*(f"{d['title']} {d['text']}" for d in documents()), *queries().values()]
    words = sorted(set(re.findall(r"\w+", " ".join(texts).lower())))
    characters = [chr(c) for c in range(33, 127) if chr(c) == chr(c).lower()]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), *words]
    vocabulary = list(dict.fromkeys(vocabulary))
    (plain / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(plain / "vocab.txt"), do_lower_case=True, model_max_length=64).save_pretrained(plain)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,  # with BERT's 0.02 a model of this size makes all texts one vector
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(plain)
    transformer = Transformer(str(plain))
    transformer.max_seq_length = 64
    SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu").save(
        str(folder), create_model_card=False
    )
    return folder


def rows_file(path: Path, rows: list[dict]) -> Path:
    """Write training rows."""
    path.write_text(jsonl(rows))
    return path


def read_jsonl(path: Path) -> list[dict]:
    """Read JSON lines, strictly: NaN and infinity are no JSON."""

    def refuse(name):
        raise ValueError(f"{path}: {name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
