"""What an audit looks like: the table with its warnings, JSON, and a picture."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec

import pytest

from retrieval.audit_report import draw, table_lines, to_json
from retrieval.auditing import Audit, BandAudit
from retrieval.doubtful_pairs import DoubtfulPair
from retrieval.false_negatives import Band, MixtureShare, Share

GOOD = MixtureShare(0.25, 0.2, 0.3, 40, True, 0.9, False)
BOUND = MixtureShare(0.5, 0.4, 1.0, 40, True, 0.6, True)
UNMATCHED = MixtureShare(0.0, 0.0, 0.1, 40, False, 0.9, False)
PAIR = DoubtfulPair(
    query_id="q1",
    query="a",
    doc_id="d1",
    rank=2,
    score=None,
    margin=None,
    likeness=0.5,
    repeats=0.25,
    best_positive_id="d2",
    best_positive="b",
    document="c",
)


def made(*, known=None, **changes) -> Audit:
    bands = (
        BandAudit(
            band=Band(1, 10), negatives=1_000, scores=GOOD, likeness=None, near=Share(0, 0, 0), judged=7, known=known
        ),
        BandAudit(band=Band(11, 30), negatives=0, scores=BOUND, likeness=GOOD, near=None, judged=0, known=None),
        BandAudit(band=Band(31, 60), negatives=3, scores=UNMATCHED, likeness=None, near=None, judged=0, known=None),
    )
    values = {"queries": 100, "negatives": 1_234, "outside": 234, "scored_by": "reranker", "doubtful": (PAIR,)}
    return Audit(bands=bands, **(values | changes))


def test_the_table_by_hand():
    lines = table_lines(made())
    assert [re.split(r"  +", line.strip()) for line in lines[:5]] == [
        ["ranks", "negatives", "by scores", "by likeness", "near duplicates"],
        ["1-10", "1,000", "25.0 % [20.0, 30.0]", "–", "0.0 % [0.0, 0.0]"],
        ["11-30", "0", "≤ 50.0 % [40.0, 100.0]", "25.0 % [20.0, 30.0]", "–"],
        ["31-60", "3", "~ 0.0 % [0.0, 10.0]", "–", "–"],
        [""],
    ]
    assert len(set(map(len, lines[:4]))) == 1
    assert lines[5] == "100 queries, 1,234 negatives, 234 of them at ranks of no band"


def test_the_table_warns_of_bounds_and_of_bands_without_positives_of_their_own():
    text = "\n".join(table_lines(made()))
    assert (
        "≤: these scores do not tell relevant documents from others well enough (scores 11-30); it may be lower" in text
    )
    assert "~: compared with all known positives, as too few are known to stand at these ranks (scores 31-60)" in text
    assert "[95 % over queries]: of sampling only, the estimate's own bias is not in it" in text
    sound = made()
    shown = "\n".join(table_lines(Audit(**fields(sound), bands=sound.bands[:1])))
    assert "≤" not in shown
    assert "~" not in shown


def test_an_estimate_from_other_ranks_is_not_called_a_bound():
    # In the last ranks it is too low, so that "at most" would be wrong.
    both = replace(UNMATCHED, is_bound=True)
    bands = tuple(replace(band, scores=both) for band in made().bands[2:])
    text = "\n".join(table_lines(Audit(**fields(made()), bands=bands)))
    assert "~ 0.0 % [0.0, 10.0]" in text
    assert "≤" not in text


def fields(audit) -> dict:
    return {name: getattr(audit, name) for name in ("queries", "negatives", "outside", "scored_by", "doubtful")}


def test_columns_of_judgements_are_there_when_there_are_any():
    heads, first, second, _, *rest = table_lines(made(known=Share(0.007, 0.001, 0.02)))
    assert heads.endswith("judged relevant  judged")
    assert first.endswith("0.7 % [0.1, 2.0]       7")
    assert second.endswith("–       –")
    assert "judged relevant: by --qrels" in "\n".join(rest)


@pytest.mark.parametrize("scored_by", ["reranker", "rows", "nothing"])
def test_json_holds_everything_but_texts(scored_by):
    found = json.loads(json.dumps(to_json(made(scored_by=scored_by)), allow_nan=False))
    assert found["scored_by"] == scored_by
    assert any("scores: " in line for line in table_lines(made(scored_by=scored_by)))
    assert found["bands"][0]["scores"]["low"] == 0.2
    assert found["bands"][1]["near"] is None
    assert found["doubtful"] == [{"query_id": "q1", "doc_id": "d1", "rank": 2, "margin": None, "repeats": 0.25}]


def test_the_picture_is_the_same_bytes_each_time(tmp_path):
    if find_spec("matplotlib") is None:
        pytest.skip("needs the bench extra")
    for name in ("a.png", "b.png"):
        draw(made(known=Share(0.1, 0.05, 0.2)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    nothing = BandAudit(band=Band(1, 2), negatives=0, scores=None, likeness=None, near=None, judged=0, known=None)
    draw(Audit(**fields(made()), bands=(nothing,)), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
