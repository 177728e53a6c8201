"""The model card that lies beside every checkpoint: what was trained, on what, how well, and what it gives away."""

import json
from collections.abc import Mapping
from typing import Any

from metarec_shared.comparison import Comparison, compare, show

NO_PRIVACY = (
    "Times stay on their node, but raw item counts, raw moments of tasks and raw gradients leave the "
    "nodes, neither clipped nor noised, and so does the sum of a node's ratings where the model predicts ratings. "
    "There is no guarantee: counts and moments of a node with one user are that user's items and much of their order, "
    "the sum is that user's mean rating, and gradients often tell which items a node's users touched."
)

_ORDERS = {"random": "random order", "time": "time order"}

_CARD = """\
{header}
# MetaRec cold-start recommender{trained_on}

{use}

## Data and training

{facts}

## Evaluation

{evaluation}

## Privacy

{privacy}

## Limits

- Figures are of one data set; on another catalogue, or after long use of this one, expect others.
- Histories are replayed. Nobody was shown these recommendations: what users would do with them is not measured.
- What was popular among the training users is recommended more often, also to users unlike them.
- The figures are of one seed and one split of users: compare several seeds before trusting a small difference.
"""

_RANKING_USE = """\
A meta-initialization for a new user with few interactions: adapt it to the user's history (the support set) in
milliseconds, then rank the whole catalogue. It was meta-trained by federated learning; what left the
nodes stands under Privacy.

## How to use

```sh
metarec recommend --model RUN --history FILE
```

`RUN` is the folder this card lies in or under, `FILE` the user's interactions. Nothing is sent anywhere."""

_RATING_USE = """\
A meta-initialization for a new user with few ratings: a ridge regression on them (the support set), in milliseconds,
predicts how the user rates any item. It was meta-trained by federated learning; what left the nodes stands under
Privacy.

## How to use

```python
model = metarec_shared.checkpoint.load_checkpoint(RUN).rating_model()
```

`RUN` is the folder this card lies in or under. The model ranks nothing by itself: `metarec recommend` refuses it."""

_PROTOCOL = """\
Users are split by a keyed hash into meta-training, validation and test users. Every figure is a mean over test users,
who were never seen in meta-training; the round was selected on validation users. Of a test user's interactions the
first {support} are the support set and the next {query} the query set; the whole catalogue minus the support set is
ranked. Centralized baselines need every interaction in one place; they are computed on the same users."""


def model_card(result: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Write the model card of a run.

    Args:
        result: The run's result.json; a checkpoint written in mid-training has only what is known by then, or nothing.
        settings: The run's settings.json, tables of kebab-case keys.

    Returns:
        Markdown with a YAML header, as model hubs read it.
    """
    dataset = result.get("dataset") or {}
    rates = (settings.get("model") or {}).get("target") == "rating"
    return _CARD.format(
        use=_RATING_USE if rates else _RANKING_USE,
        header=_header(result),
        trained_on=f" for {_plain(dataset['name'])}" if dataset.get("name") else "",
        facts=_facts(result, settings),
        evaluation=_evaluation(result),
        privacy=_privacy(result.get("privacy")),
    )


def _header(result: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: metarec", "tags:"]
    lines += [f"- {tag}" for tag in ("recommendation", "cold-start", "meta-learning", "federated-learning")]
    name = str((result.get("dataset") or {}).get("name") or "unnamed")
    figures = {order: compare((result.get("cold_user") or {}).get(order)) for order in _ORDERS}
    if any(figures.values()):
        lines += ["model-index:", "- name: MetaRec", "  results:"]
    for order, comparison in figures.items():
        if comparison is not None:
            lines += _index_entry(name, order, comparison)
    return "\n".join([*lines, "---"])


def _index_entry(dataset: str, order: str, comparison: Comparison) -> list[str]:
    """Write MetaRec's own figures as one entry of a model hub's index; JSON strings are YAML strings."""
    values = zip(comparison.metrics, comparison.methods[0].values, strict=True)
    return [
        "  - task:",
        "      type: recommendation",
        f"      name: cold-start users, {_ORDERS[order]}",
        "    dataset:",
        f"      type: {json.dumps(dataset, ensure_ascii=False)}",
        f"      name: {json.dumps(dataset, ensure_ascii=False)}",
        "    metrics:",
        *(f"    - type: {json.dumps(name)}\n      value: {value:.6f}" for name, value in values if value is not None),
    ]


def _facts(result: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    dataset, adaptation = result.get("dataset") or {}, settings.get("adaptation") or {}
    rates = (settings.get("model") or {}).get("target") == "rating"
    rounds = result.get("rounds") or (settings.get("federation") or {}).get("rounds")
    sizes = " × ".join(f"{dataset[key]:,} {key}" for key in ("users", "items", "interactions") if key in dataset)
    facts = {
        "Data set": ", ".join(part for part in (_plain(dataset.get("name") or ""), sizes) if part),
        "Text encoder": _plain(result.get("text_encoder") or (settings.get("text") or {}).get("encoder") or ""),
        "Parameters": f"{result['parameters']:,}" if "parameters" in result else "",
        "Rounds": f"{rounds:,}" if rounds else "",
        "Best round on validation users": f"{result['best_round']:,}" if result.get("best_round") else "",
        "Inner loop": "ridge regression in closed form" if rates else _inner_loop(adaptation),
        "Seed": str(result.get("seed", (settings.get("run") or {}).get("seed", ""))),
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)


def _inner_loop(adaptation: Mapping[str, Any]) -> str:
    if "steps" not in adaptation:
        return ""
    if adaptation["steps"] == 0:
        return "off"
    steps = f"{adaptation['steps']} step{'' if adaptation['steps'] == 1 else 's'}"
    return f"{steps} on {adaptation.get('parameters')}, {adaptation.get('method')}"


def _evaluation(result: Mapping[str, Any]) -> str:
    cold_user = result.get("cold_user") or {}
    tables: list[str] = []
    for order, title in _ORDERS.items():
        block = cold_user.get(order) or {}
        if comparison := compare(block):
            protocol = _PROTOCOL.format(support=block.get("support", "a few"), query=block.get("query", "few"))
            tables += [protocol] if not tables else []
            tables.append(_table(f"Cold-start users, {title}", comparison))
    if comparison := compare(result.get("cold_item")):
        tables.append(_table("Cold items, removed from every meta-training user", comparison))
    if ratings := result.get("ratings"):
        tables.append(_ratings(ratings))
    return "\n\n".join(tables) or "Not evaluated yet: this checkpoint was written during meta-training."


def _ratings(figures: Mapping[str, Any]) -> str:
    """Write the errors of predicted ratings as a table."""
    lines = [
        f"Of each of {figures['users']:,} test users, never seen in meta-training, {figures['support']} random ratings "
        f"were given and up to {figures['query']} others asked for; errors are means over users.",
        "",
        "| Method | MAE | RMSE |",
        "|---|---:|---:|",
    ]
    for key, name in (("metarec", "MetaRec"), ("unadapted", "MetaRec before adaptation")):
        lines.append(f"| {name} | {show(figures[key]['mae'])} | {show(figures[key]['rmse'])} |")
    return "\n".join(lines)


def _table(title: str, comparison: Comparison) -> str:
    users = f" ({comparison.users:,} test users)" if comparison.users is not None else ""
    best = [comparison.best(column) for column in range(len(comparison.metrics))]
    lines = [f"### {title}{users}", "", f"| Method | {' | '.join(comparison.metrics)} |"]
    lines.append("|---|" + "---:|" * len(comparison.metrics))
    for method in comparison.methods:
        cells = [f"**{show(v)}**" if show(v) == top else show(v) for v, top in zip(method.values, best, strict=True)]
        name = f"{_plain(method.name)} (centralized)" if method.centralized else _plain(method.name)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def privacy_facts(privacy: Mapping[str, Any]) -> dict[str, str]:
    """Return what a run's guarantee says, by name, for people to read.

    Args:
        privacy: The entry "privacy" of result.json.
    """
    epsilon, delta = privacy.get("epsilon"), privacy.get("delta")
    guarantee = (
        "none: not everything that left was noised" if epsilon is None else f"epsilon {epsilon:.3g}, delta {delta}"
    )
    mechanisms = [
        f"{one['releases']} x {one['name']} (noise multiplier {one['noise_multiplier']:.3g}, sampling rate "
        f"{one['sampling_rate']:.3g})"
        for one in privacy.get("mechanisms", [])
    ]
    noise = str(privacy.get("noise", ""))
    facts = {
        "Mode": str(privacy.get("mode")),
        "Unit of privacy": f"{privacy.get('unit', 'user')}: one user's whole history",
        "Guarantee": guarantee
        + (f" ({noise}: whoever has the seed can undo it)" if noise == "simulated noise" else ""),
        "Neighbours": str(privacy.get("neighbours", "")),
        "Trusted": str(privacy.get("trusted", "")),
        "Sampling": str(privacy.get("sampling", "")),
        "Not protected": str(privacy.get("not_protected", "")),
        "Releases": ", ".join(mechanisms),
        "Clip norm": f"{privacy['clip_norm']:g}" if "clip_norm" in privacy else "",
        "Accountant": str(privacy.get("accountant", "")),
        "Tuning": "hyper-parameters were fixed beforehand and are not charged; the last round is kept",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _privacy(privacy: Mapping[str, Any] | None) -> str:
    if not privacy:
        return f"- Mode: none\n- Unit of privacy: none, nobody is protected\n- What leaves the nodes: {NO_PRIVACY}"
    return "\n".join(f"- {name}: {_plain(fact)}" for name, fact in privacy_facts(privacy).items())


def _plain(value: object) -> str:
    """Keep a name from being read as Markdown or HTML."""
    text = " ".join(str(value).split())
    for character, written in {"&": "&amp;", "<": "&lt;", "|": "\\|", "*": "\\*", "`": "\\`", "[": "\\["}.items():
        text = text.replace(character, written)
    return text
