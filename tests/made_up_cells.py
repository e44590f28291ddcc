"""What a finished cell of each benchmark would hold, made up by hand."""

from benchmarks import ltr, mining_speed, reranker_speed, rerankers, speed

MACHINE = {"cpu": "a processor", "cores": 2, "bf16": ["amx_bf16"], "load": 0.5, "threads": 1}


def measured(value=0.5):
    return {
        "mean": {"nDCG@10": value, "RR@10": value},
        "per_query": {measure: {"q1": value, "q2": value} for measure in ("nDCG@10", "RR@10")},
    }


def large_batches_values(settings):
    return {"mib": 100.0, "seconds": [[1.0, 2.0]] if settings["stage"] == "turns" else [0.5]}


def audit_values(settings):
    share = {"value": 0.25, "low": 0.2, "high": 0.3, "separation": 0.9, "positives": 50, "matched": True}
    estimates = {"likeness": {**share, "is_bound": False}, "cross-encoder": {**share, "is_bound": True}}
    estimates |= {"features": None, "miner": {**share, "is_bound": True}, "near": {**share, "is_bound": None}}
    bands = [{"band": band, "negatives": 10, "truth": 0.3, "estimates": estimates} for band in settings["bands"]]
    return {"bands": bands, "queries": 2, "seconds": {"miner": [0.0, 1.0]}}


def doctor_values(settings):
    look = {"problems": [], "remarks": ["few_steps"], "figures": {"auc_model": 0.9}}
    return {"before": look, "after": look, "log": look, "stopped": "", "took": [1.0, 2.0]}


def blind_spot_values(settings):
    point = {"low": 0.4, "high": 0.6, "infonce": [3.0], "mw": [0.5], "auc": [0.5]}
    return {"points": [{"width": 0.0, **point}], "queries": 2, "pairs": [2, 20]}


def heads_values(settings):
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "seeds": [0.5, 0.5, 0.5]}
    one = {
        "measures": dict.fromkeys(settings["bench"].get("measures", ("nDCG@10", "RR@10", "R@100")), estimate),
        "auc": estimate,
        "ece": estimate,
        "fitted_on_dev": True,
        "dev": 0.5,
        "seconds": 1.0,
        "chosen": {"": "lr=0.003"},
    }
    other = one | {"difference": {"value": 0.1, "low": 0.0, "high": 0.2, "p": 0.01}}
    start = other | {"ece": None, "dev": None, "seconds": None, "chosen": {}}
    return {"methods": {"untrained": start, "infonce": one, "mw": other}, "queries": 2, "baseline": "infonce"}


def ltr_values(settings):
    seeds = [{"per_query": {name: {"q1": 0.5, "q2": 0.6} for name in ltr.MEASURES}} for _ in range(ltr.SEEDS)]
    return {"seeds": seeds, "chosen": [{**settings["trials"][0], "dev": 0.5}]}


def rerankers_values(settings):
    if settings["stage"] == "first stage":
        return {name: measured() for name in ("BM25", "untrained", "pool")} | {"documents_per_query": 85.0}
    found = {target: measured() for target in settings["targets"]}
    return found | ({rerankers.AS_IT_IS: measured()} if settings["method"] == "set-encoder" else {})


def distillation_values(settings):
    return measured() if settings["method"] == "untrained" else {name: measured() for name in settings["recipes"]}


def tournaments_values(settings):
    if settings["method"] == "binomial":
        row = {"n": 32, "both_orders": False, "accuracy": 0.75, "predicted": 0.24, "won": 240}
        return {"rows": [row]}
    shown = {"ndcg": 0.5, "first": 0.5, "tau": 0.1, "told": 0.6, "true": 0.5}
    intervals = {"ndcg_interval": [0.4, 0.6], "first_interval": [0.4, 0.6]}
    point = {"line": "sort, top 10", "arm": {"strategy": "sort"}, "calls": 9.0, **shown, **intervals}
    return {"points": [point], "queries": 2}


def reranker_speed_values(settings):
    if settings["method"] == "set":
        return {"rates": {what: {"classifier": [2.0], "set": [1.0]} for what in ("score", "train")}}
    rates = {reranker_speed.OURS: [50.0], reranker_speed.DEFAULT: [20.0], reranker_speed.BF16: [40.0]}
    return {"rates": rates, "lowest_correlation": {reranker_speed.OURS: 0.9999}}


def diagnostics_values(settings):
    health = {"n": 9, "dim": 2, "mean_cosine": 0.1, "effective_rank": 2.0, "uniformity": -2.0, "collapsed": None}
    batches = {"mean_cosine": [0.3, 0.6], "effective_rank": [9.0, 7.0], "collapsed": 0, "batches": 3}
    network = {"dim": 2, "batch": 16, "shuffled": True, "loss": 0.2, "cosine": 1.0, "rank": 1.0, "warned": True}
    bad = {"seed": 0, "threshold": 2.0, "rows": 9, "exchanged": 2, "flagged": 2, "hits": 1, "noisy": 0}
    found = {"health": {"documents": health, "batches of 16 neighbours": batches}, "collapse": [network]}
    found |= {"bad_pairs": [bad], "estimates": {"query": 0.9}, "rows": 9}
    return found | ({"trained": {"random": [0.5]}} if settings["data"] == "medquad" else {})


def hard_batches_values(settings):
    found = {"curve": [[0, 0.0, 0.5], [4, 3.0, 0.6]], "seconds": 4.0, "pause_seconds": 1.0, "likeness": []}
    if settings["train"].get("batching") == "proxy":
        found["likeness"] = [[0.5] * 10 + [0.1]]
    if settings["stage"] == "test":
        found |= {"mean": {"nDCG@10": 0.5, "RR@10": 0.5}}
        found["per_query"] = {"nDCG@10": {"q1": 0.4, "q2": 0.6}, "RR@10": {"q1": 0.4, "q2": 0.6}}
    return found


def proxy_cost_values(settings):
    seconds = {"adding": [1.0, 2.0], "closing": [1.0, 1.0], "drawing": [20.0, 30.0], "telling": [1.0, 1.0]}
    checkpoint = {"checkpoint_mb": 384, "checkpoint_seconds": 1.0}
    return {
        **checkpoint,
        "seconds": seconds,
        "before_mb": 300,
        "bank_peak_mb": 900,
        "likeness": [0.5] * 10,
        "random": 0.0,
    }


def mining_speed_values(settings):
    systems = (mining_speed.OURS, mining_speed.DEFAULT, mining_speed.FAISS, mining_speed.OURS_FP32)
    same = {name: {"queries": 1.0, "negatives": 1.0} for name in systems[:3]}
    return {
        "seconds": {run: {name: [2.0, 3.0] for name in systems} for run in mining_speed.RUNS},
        "agreement": dict.fromkeys(mining_speed.RUNS, same),
        "versions": {},
    }


def speed_values(settings):
    if settings["method"] == "profile":
        return {"milliseconds": {"ours": dict.fromkeys(speed.PHASES, 10.0), "none": dict.fromkeys(speed.PHASES, 5.0)}}
    rates = {speed.OURS: [40.0, 60.0, 50.0], speed.DEFAULT: [20.0, 20.0, 20.0], speed.BF16: [40.0, 30.0, 50.0]}
    return {"rates": rates, "lowest_cosine": {speed.OURS: 0.99994}}


# What a finished cell would hold, of the scripts whose cells are not those of `quality`.
MADE_UP = {
    "audit": audit_values,
    "blind_spot": blind_spot_values,
    "diagnostics": diagnostics_values,
    "distillation": distillation_values,
    "doctor": doctor_values,
    "hard_batches": hard_batches_values,
    "heads": heads_values,
    "large_batches": large_batches_values,
    "mining_speed": mining_speed_values,
    "proxy_cost": proxy_cost_values,
    "reranker_speed": reranker_speed_values,
    "ltr": ltr_values,
    "rerankers": rerankers_values,
    "speed": speed_values,
    "tournaments": tournaments_values,
}
