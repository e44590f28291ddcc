"""What the pages of docs/ name exists, and every command line on them is one."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from statistics import mean

import pytest

from retrieval.cli.flags import add_settings_flags
from retrieval.cli.main import VERBS, Parser
from retrieval.cli.settings import apply_settings
from retrieval.train_config import TrainConfig

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "which-loss.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", PROSE)
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
CONSOLE = "\n".join(re.findall(r"```console\n(.*?)```", "\n".join(PAGES.values()), flags=re.DOTALL))
COMMANDS = [line for line in CONSOLE.replace("\\\n", " ").splitlines() if line.startswith("$ ")]
FLAGS = [span for span in SPANS if span.startswith("--")]
TRAIN = "train --model M --data D --out O "
# Keys of training rows that the page names; the readers of rows know them.
ROW_KEYS = {"positive_labels", "negative_labels", "positive_scores", "negative_scores"}


def parsed(words: list[str]):
    """Parse a command line as the command does, without running it."""
    verb, *rest = words
    assert verb in VERBS, f"no verb {verb!r}"
    module = import_module(f"retrieval.cli.{verb.replace('-', '_')}")
    parser = Parser(prog=f"rankwright {verb}", allow_abbrev=False)
    module.configure(parser)
    add_settings_flags(parser)
    return apply_settings(parser, rest)


def training_loss(words: list[str]):
    """Return the loss of a `train` command line, every setting of it checked."""
    from dataclasses import fields

    from rankers.losses import build_expression

    args = parsed(words)
    known = {field.name for field in fields(TrainConfig)}
    values = {name: value for name, value in vars(args).items() if name in known}
    config = TrainConfig.from_dict(values | args.nested)
    return build_expression(config.loss, config.loss_settings)


def table(head: str) -> list[dict[str, str]]:
    """Return the rows of the table whose first column has this head, by column."""
    lines = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|"))
    assert all(len(row) == len(heads) for row in rows)
    return [dict(zip(heads, row, strict=True)) for row in rows]


def test_the_page_has_what_this_test_reads():
    assert len(COMMANDS) >= 5
    assert len(FLAGS) >= 20
    assert len(table("your labels")) >= 7


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_line_parses(command):
    pytest.importorskip("torch", reason="needs the train extra")
    program, *words = shlex.split(command.removeprefix("$ "))
    assert program == "rankwright"
    parsed(words)
    if words[0] == "train":
        training_loss(words)


@pytest.mark.parametrize("flags", sorted(set(FLAGS)))
def test_every_flag_is_one_of_train_and_its_loss_takes_the_settings(flags):
    pytest.importorskip("torch", reason="needs the train extra")
    name = flags.split()[0]
    loss = training_loss(shlex.split(TRAIN + flags))
    if name == "--loss":
        assert loss.name == shlex.split(flags)[1]


@pytest.mark.parametrize("wrong", ["--loss infonse", "--loss mw --set loss.k=3", "--chunk-sise 64", "--loss 'mw + mw'"])
def test_a_wrong_flag_would_be_found(wrong):
    pytest.importorskip("torch", reason="needs the train extra")
    with pytest.raises(ValueError, match=r"infonse|'k'|chunk-sise|twice"):
        training_loss(shlex.split(TRAIN + wrong))


def test_the_table_holds_every_loss_as_it_is():
    pytest.importorskip("torch", reason="needs the train extra")
    from rankers.losses import LOSSES

    rows = {row["loss"].strip("`"): row for row in table("loss")}
    assert rows.keys() == LOSSES.keys()
    for name, row in rows.items():
        entry = LOSSES[name]
        assert (name, row["labels"], row["cost"]) == (name, entry.labels, entry.cost)
        for setting, value in (pair.split("=") for pair in re.findall(r"`(\w+=[^`]+)`", row["defaults"])):
            default = entry.defaults[setting]
            shown = str(default).lower() if isinstance(default, bool) else default
            assert value == (f"{shown:g}" if isinstance(shown, float) else str(shown)), f"{name}: {setting}"
        assert ("temperature" in entry.defaults) == ("temperature=" in row["defaults"])


def test_every_name_in_the_text_exists():
    """A single word in code is a loss, a regulariser, a setting of one, a verb, a field of training or a row's key."""
    pytest.importorskip("torch", reason="needs the train extra")
    from rankers.losses import LOSSES, REGULARISERS

    settings = {setting for entry in LOSSES.values() for setting in entry.settings}
    fields = set(TrainConfig.__dataclass_fields__)
    known = {*LOSSES, *REGULARISERS, *settings, *VERBS, *fields, *ROW_KEYS}
    named = {span for span in SPANS if re.fullmatch(r"[a-z][a-z0-9_-]*", span)}
    assert {"infonce", "max_list", "selftest"} <= named
    assert named <= known
    pairs = [span.split("=") for span in SPANS if re.fullmatch(r"\w+=\S+", span)]
    assert {name for name, _ in pairs} <= settings


def test_every_loss_in_python_builds():
    pytest.importorskip("torch", reason="needs the train extra")
    from rankers.losses import build

    calls = re.findall(r'(?:CrossEncoderLoss\(model|SentenceTransformerLoss\(model|build\(), ?"(\w+)"', PAGE)
    calls += re.findall(r'build\("(\w+)"', PAGE)
    assert len(calls) >= 6
    for name in calls:
        build(name)
    from retrieval import CrossEncoderLoss, SentenceTransformerLoss

    assert CrossEncoderLoss.__name__ in PAGE
    assert SentenceTransformerLoss.__name__ in PAGE


def test_files_modules_and_benchmarks_that_the_page_names_exist():
    root = DOCS.parent
    for page in PAGES.values():
        for path in re.findall(r"`((?:retrieval|benchmarks|rankers)/[\w./]+)`", page):
            assert (root / path).exists(), path
        for name in re.findall(r"python -m benchmarks[. ](\w+)", page):
            assert (root / "benchmarks" / f"{name}.py").is_file(), name
        for name in re.findall(r"\]\(([\w-]+\.\w+)\)", page):
            assert (DOCS / name).is_file(), name


def test_the_rerankers_page_names_what_exists():
    pytest.importorskip("torch", reason="needs the train extra")
    import retrieval
    from rankers.tournaments import STRATEGIES
    from retrieval.cross_encoder_models import ARCHITECTURES

    page = PAGES["rerankers.md"]
    shown = set(re.findall(r"^\| (`[\w`, ]+`)", page, flags=re.MULTILINE))
    named = {name for cell in shown for name in re.findall(r"`(\w+)`", cell)}
    assert set(ARCHITECTURES) <= named
    assert set(STRATEGIES) <= named
    for names in re.findall(r"from retrieval import ([\w, ]+)", page):
        assert set(names.split(", ")) <= set(retrieval.__all__)


def records(name: str) -> list[dict]:
    """Return the finished cells of a benchmark."""
    lines = (DOCS.parent / "benchmarks" / "results" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def means(name: str, **wanted: object) -> list[float]:
    """Return nDCG@10 of the finished cells of a benchmark whose settings are these, by training setting or own."""
    chosen = [
        r for r in records(name) if wanted.items() <= {**(r["settings"].get("train") or {}), **r["settings"]}.items()
    ]
    assert chosen, f"no cell of {name} has {wanted}"
    return [record["values"]["mean"]["nDCG@10"] for record in chosen]


def test_measured_figures_are_those_of_the_results():
    measured = {row["loss"].strip("`"): row["what our bench measured"] for row in table("loss")}
    for name, stage in (("pydocs", {"stage": "test"}), ("medquad", {})):
        for method in ("infonce", "untrained"):
            assert f"{mean(means(name, method=method, **stage)):.3f}" in measured["infonce"]
    best = {loss: max(means("pydocs", stage="dev", loss=loss)) for loss in ("infonce", "softmax_ce")}
    assert all(f"{value:.3f}" in measured["softmax_ce"] for value in best.values())
    trials = means("pydocs", stage="dev", seed=0)
    spread = f"within {max(trials) - min(trials):.2f} nDCG@10, and the two losses' best"
    assert f"{spread} {best['infonce'] - best['softmax_ce']:.3f} apart" in PAGE.replace("\n", " ")
    scifact = {}
    for loss, told in measured.items():
        for value, seeds in re.findall(r"SciFact ([0-9.]+), (\d) seeds?", told):
            cells = means("scifact", stage="test", method=loss)
            assert (f"{mean(cells):.3f}", len(cells)) == (value, int(seeds)), loss
            scifact[loss] = cells
    assert scifact.keys() == {"infonce", "bixse", "mw", "sl_at_k", "decoupled_softmax", "softmax_ce"}
    assert f"{min(scifact['infonce']):.3f} and {max(scifact['infonce']):.3f}" in PAGE
    assert f"{mean(means('scifact', stage='test', method='untrained')):.3f}" in PAGE.replace("\n", " ")
    rows = {"infonce": "infonce, grade ≥ 1", "bixse": "bixse, graded", "softmax_ce": "softmax_ce, graded"}
    for loss, method in rows.items():  # the folds hold almost, but not quite, as many queries each
        value = float(re.search(r"cystic_fibrosis ([0-9.]+), 3 seeds", measured[loss])[1])
        cells = means("cystic_fibrosis", method=method)
        assert (mean(cells), len(cells)) == (pytest.approx(value, abs=2e-3), 15)
    heads = {loss: re.findall(r"heads: SciFact ([0-9.]+), MedQuAD ([0-9.]+)", told) for loss, told in measured.items()}
    heads = {loss: found[0] for loss, found in heads.items() if found}
    compared = {name: comparison(name, "ten losses") for name in ("scifact", "medquad")}
    assert heads.keys() == compared["scifact"].keys() - {"untrained"}
    for loss, told in heads.items():
        assert told == tuple(f"{compared[name][loss]['nDCG@10']:.3f}" for name in ("scifact", "medquad")), loss
    pointwise = measured.pop("point_ce")
    seeds = {method: mean(reranked("medquad", method)) for method in ("pointwise", "listwise")}
    tried = {method: max(reranked("pydocs", method)) for method in ("pointwise", "bixse", "listwise")}
    assert f"MedQuAD {seeds['pointwise']:.3f}, `softmax_ce` {seeds['listwise']:.3f}, 3 seeds" in pointwise
    assert f"{tried['pointwise']:.3f}, `bixse` {tried['bixse']:.3f}, `softmax_ce` {tried['listwise']:.3f}" in pointwise
    assert f"rerankers: MedQuAD {seeds['listwise']:.3f}, 3 seeds" in measured["softmax_ce"]
    listwise = f"`softmax_ce` {mean(reranked('scifact', 'listwise')):.3f}, 1 seed"
    for loss, method in (("ranknet", "pairwise"), ("poly1", "poly1")):
        (own,) = reranked("scifact", method)
        assert f"rerankers: SciFact {own:.3f}, {listwise}" in measured[loss]
    del measured["poly1"]
    judged = mean(taught("InfoNCE on judgements"))
    for loss, recipe in (("kl_div", "KL to the teacher"), ("margin_mse", "MarginMSE to the teacher")):
        own = taught(recipe)
        assert len(own) == 3
        told = f"distillation: MedQuAD {mean(own):.3f}, `infonce` on the judgements {judged:.3f}, 3 seeds"
        assert measured.pop(loss) == told
    for loss in ("softmax_ce", "ranknet", "listmle", "approx_ndcg", "ndcg_loss2pp"):
        assert (
            f"features: an MLP {on_features(f'mlp, {loss}')}; LambdaMART {on_features('LambdaMART')}" in measured[loss]
        )
    known = scifact.keys() | heads.keys() | {"listmle", "approx_ndcg", "ndcg_loss2pp"}
    others = {loss: told for loss, told in measured.items() if loss not in known}
    assert set(others.values()) == {"not measured yet"}  # a figure here needs a line above


def on_features(method: str) -> str:
    """Return nDCG@10 of a feature ranker on the three sets, as the README's table has it."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {re.escape(method)} \|(.*)\|$", readme, flags=re.MULTILINE)
    return ", ".join(cell.split(";")[0].strip() for cell in row.split("|"))


def test_the_table_of_collapsing_networks_is_that_of_the_results():
    (found,) = (r["values"]["collapse"] for r in records("diagnostics") if r["settings"]["data"] == "scifact")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (right|shuffled) \|(.*)\|$", PAGES["diagnostics.md"], flags=re.MULTILINE)
    assert len(rows) == len(found) == 12
    for one, (dim, batch, pairs, told) in zip(found, rows, strict=True):
        assert (one["dim"], one["batch"], one["shuffled"]) == (int(dim), int(batch), pairs == "shuffled")
        numbers = [f"{one['loss']:.4f}", f"{one['cosine']:.3f}", f"{one['rank']:.1f}", "yes" if one["warned"] else "no"]
        assert [cell.strip() for cell in told.split("|")] == numbers


def test_the_trials_of_rerankers_are_those_of_the_results():
    """Of a method that was tried twice, the Set-Encoder, the later ones."""
    rows = re.findall(r"^\| (`.*?) \|(.*)\|$", PAGES["rerankers.md"].split("## Which architecture")[0], re.MULTILINE)
    trials = {r["settings"]["method"]: {} for r in records("rerankers") if r["settings"]["stage"] == "dev"}
    for record in records("rerankers"):
        own = record["settings"]
        if own["stage"] == "dev":
            trials[own["method"]][own["train"]["learning_rate"]] = record["values"]["pydocs"]["mean"]["nDCG@10"]
    assert len(rows) == len(trials) == 4
    for (name, told), method in zip(rows, ("pointwise", "bixse", "listwise", "set-encoder"), strict=True):
        found = [f"{trials[method][rate]:.3f}" for rate in (2e-5, 5e-5, 1e-4, 2e-4)]
        if method == "set-encoder":
            found[-1] += f"; 4e-4: {trials[method][4e-4]:.3f}"
        assert [cell.strip() for cell in told.split("|")] == found, name


def reranked(name: str, method: str) -> list[float]:
    """Return nDCG@10 of the finished rerankers of a collection on its own queries."""
    wanted = (name, method)
    found = [r for r in records("rerankers") if (r["settings"]["data"], r["settings"]["method"]) == wanted]
    return [record["values"][name]["mean"]["nDCG@10"] for record in found]


def taught(recipe: str) -> list[float]:
    """Return nDCG@10 of the finished students of a recipe."""
    found = [record["values"] for record in records("distillation") if record["settings"]["method"] == "students"]
    return [values[recipe]["mean"]["nDCG@10"] for values in found]


def comparison(name: str, stage: str, noise: float = 0.0) -> dict[str, dict[str, float]]:
    """Return loss → measure → value of a finished comparison of heads."""
    for record in records("heads"):
        own = record["settings"]
        if (own["data"], own["stage"], own["bench"].get("label_noise", 0.0)) == (name, stage, noise):
            found = record["values"]["methods"].items()
            return {loss: {m: one["value"] for m, one in method["measures"].items()} for loss, method in found}
    raise AssertionError(f"no comparison of {name}, {stage}, {noise:.0%}")


def test_figures_under_noise_are_those_of_the_results():
    names = {"Cystic Fibrosis": "cystic_fibrosis", "Vaswani": "vaswani"}
    rows = table("nDCG@20")
    assert len(rows) == 6
    for row in rows:
        title, start = row["nDCG@20"].split(", untrained ")
        noise = float(row["noise"].rstrip("%")) / 100
        known, detached = (comparison(names[title], stage, noise) for stage in ("noise", "detached"))
        losses = ("infonce", "decoupled_softmax", "sl_at_k")
        wanted = [known[loss]["nDCG@20"] for loss in losses] + [detached["sl_at_k"]["nDCG@20"]]
        assert list(row.values())[2:] == [f"{value:.3f}" for value in wanted]
        assert start == f"{known['untrained']['nDCG@20']:.3f}"
