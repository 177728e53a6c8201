"""The page of a study: what was searched, how, what became of the trials, what was best and what mattered."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from metarec_shared.files import write_text
from simulations.report_charts import COLOURS, STYLE, svg
from simulations.report_template import PALETTE
from simulations.tuning.choices import Pruner, Sampler
from simulations.tuning.outcome import figure, in_order, seconds
from simulations.tuning.plan import STARTUP_TRIALS, Plan
from simulations.tuning.space import shown
from simulations.tuning.trials import Trials, error_of, trial_name, value_of

REPORT_FILE = "report.html"

_FEWEST_FOR_IMPORTANCE = 8
_SAMPLERS = {
    Sampler.TPE: f"TPE (tree-structured Parzen estimator), after {STARTUP_TRIALS} trials at random",
    Sampler.RANDOM: "random",
    Sampler.GRID: "grid: every combination",
}
_PRUNERS = {
    Pruner.MEDIAN: "median: a trial ends, from a third of its rounds on, when it is below the median of finished ones",
    Pruner.HYPERBAND: "hyperband: successive halving in brackets, reduction factor 3",
    Pruner.NONE: "none: every trial runs to its end",
}
_ALONE = "; by the model alone, while the objective has its task regression added"


def write_study_report(study: optuna.Study, plan: Plan, path: Path, dataset: str) -> None:
    """Write the report of a study, finished or not.

    Args:
        study: With its trials.
        plan: What it is.
        path: Of the page.
        dataset: Name of the data.
    """
    trials = Trials.of(study)
    weights = importances(study, trials)
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    text = page.render(
        dataset=dataset,
        metric=plan.metric,
        facts=_facts(plan, trials),
        best=_best(plan, trials),
        history=_history(trials, plan),
        importance=None if weights is None else _bars(weights),
        fewest=_FEWEST_FOR_IMPORTANCE,
        space=plan.space.described(),
        defaults=plan.settings.flat(),
        keys=[parameter.key for parameter in plan.space.parameters],
        rows=[
            {
                "name": trial_name(trial),
                "state": "finished" if trial.state == TrialState.COMPLETE else trial.state.name.lower(),
                "figure": "–" if figure(trial) is None else f"{figure(trial):.4f}",
                "rounds": "–" if trial.last_step is None else trial.last_step,
                "seconds": "–" if seconds(trial) is None else f"{seconds(trial):,.0f}",
                "params": trial.params,
                "error": error_of(trial),
            }
            for trial in in_order(trials)
        ],
        shown=shown,
    )
    write_text(path, text)


def importances(study: optuna.Study, trials: Trials) -> dict[str, float] | None:
    """Return how much each setting decides whether a trial is among the best, summing to 1; None for too few trials.

    References:
        Watanabe, Bansal and Hutter (2023), PED-ANOVA: efficiently quantifying hyperparameter importance in arbitrary
        subspaces.
    """
    finished = trials.finished
    if len(finished) < _FEWEST_FOR_IMPORTANCE or len({trial.value for trial in finished}) < 2:
        return None
    return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))


def _facts(plan: Plan, trials: Trials) -> list[tuple[str, str]]:
    federation, longest = plan.settings.federation, plan.space.longest_run(plan.settings)
    took = sum(seconds(trial) or 0.0 for trial in in_order(trials))
    alone = "" if plan.pruner is Pruner.NONE or not plan.settings.regression.enabled else _ALONE
    waiting = f"; {len(trials.waiting)} begun or queued" if trials.waiting else ""
    return [
        ("Objective", plan.metric),
        ("Trials", f"{trials.done} of {plan.trials}: {trials}{waiting}"),
        ("Searched", f"{len(plan.space.parameters)} settings"),
        ("Sampler", f"{_SAMPLERS[plan.sampler]}; seed {plan.seed}"),
        ("Pruner", _PRUNERS[plan.pruner] + alone),
        ("A trial", f"{longest} rounds at most, evaluated every {federation.evaluate_every}, "
                    f"seed{'s' if len(plan.seeds) > 1 else ''} {', '.join(map(str, plan.seeds))}"),
        ("Time", f"{took:,.0f} s of trials"),
    ]  # fmt: skip


def _best(plan: Plan, trials: Trials) -> dict[str, Any] | None:
    best = trials.best
    if best is None:
        return None
    untuned = plan.space.values_of(plan.settings)
    same = [trial for trial in trials.finished if trial.params == untuned]
    gain = f"{value_of(best) / value_of(same[0]) - 1:+.1%}" if same and value_of(same[0]) else ""
    return {
        "name": trial_name(best),
        "value": f"{value_of(best):.4f}",
        "untuned": f"{value_of(same[0]):.4f}" if same else "",
        "gain": gain,
        "params": best.params,
    }


def _history(trials: Trials, plan: Plan) -> Markup | None:
    """Draw every finished trial's value, and the best so far, against the number of trials."""
    ended = in_order(trials)
    points = [(place, value_of(t)) for place, t in enumerate(ended, start=1) if t.state == TrialState.COMPLETE]
    if not points:
        return None
    pruned = [
        (place, value) for place, t in enumerate(ended, start=1)
        if t.state == TrialState.PRUNED and (value := figure(t)) is not None
    ]  # fmt: skip
    places, values = zip(*points, strict=True)
    best = list(itertools.accumulate(values, max))
    with matplotlib.rc_context(STYLE):
        chart = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = chart.add_subplot()
        axes.plot(places, values, "o", color=COLOURS["second"], markersize=5, label="finished")
        if pruned:
            axes.plot(*zip(*pruned, strict=True), "x", color=COLOURS["weak"], label="pruned, when it ended")
        axes.step(places, best, where="post", color=COLOURS["accent"], label="best so far")
        axes.set_xlabel("trial")
        axes.set_ylabel(plan.metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
        return svg(chart, "history", f"{plan.metric} by trial; the best so far ends at {best[-1]:.4f}.")


def _bars(weights: dict[str, float]) -> Markup:
    """Draw the importance of every setting as a bar."""
    names = list(reversed(weights))
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        chart = Figure(figsize=(6.4, 0.8 + 0.3 * len(names)), layout="constrained")
        axes = chart.add_subplot()
        bars = axes.barh(range(len(names)), [weights[name] for name in names], color=COLOURS["accent"], height=0.66)
        axes.bar_label(bars, labels=[f"{weights[name]:.0%}" for name in names], padding=4, fontsize=9)
        axes.set_yticks(range(len(names)), labels=names)
        axes.set_xlim(0, max(weights.values()) * 1.15 or 1)
        axes.set_xlabel("importance (PED-ANOVA)")
        text = ", ".join(f"{name} {weight:.0%}" for name, weight in weights.items())
        return svg(chart, "importance", f"Importance of the searched settings: {text}.")


_PAGE = (
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>MetaRec study: {{ dataset }}</title><style>"""
    + PALETTE
    + """
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 1120px;
  margin: 0 auto; padding: 24px; }
svg { width: 100%; height: auto; } table { border-collapse: collapse; width: 100%; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
th, td { padding: 6px 8px; border-top: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } p { color: var(--muted); } .scroll { overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; } dd { margin: 0; color: var(--muted); }
.warning { border-left: 4px solid var(--other); padding-left: 12px; }
</style></head><body>
<h1>Study of settings: {{ dataset }}</h1>
<dl>{% for name, fact in facts %}<dt>{{ name }}</dt><dd>{{ fact }}</dd>{% endfor %}</dl>
<p class="warning">The figures below are validation figures, and the best one was selected as the best of many: it is
optimistic. No test user was read. Report the chosen settings by test users, in a run of their own
(<code>metarec simulate --config best.toml</code>), best on several seeds, and say how many trials were made.</p>
<h2>Best trial</h2>
{% if best %}<p>Trial {{ best.name }}: {{ best.value }}{% if best.untuned %}; the settings as they were before:
{{ best.untuned }}{% if best.gain %} ({{ best.gain }}){% endif %}{% endif %}. Written to best.toml.</p>
<div class="scroll"><table><thead><tr><th>setting</th><th>best</th><th>before</th><th>searched</th></tr></thead><tbody>
{% for key, value in best.params.items() %}<tr><td>{{ key }}</td><td>{{ shown(value) }}</td>
<td>{{ shown(defaults[key]) }}</td><td>{{ space[key] }}</td></tr>
{% endfor %}</tbody></table></div>
{% else %}<p>No trial is finished.</p>
<div class="scroll"><table><thead><tr><th>setting</th><th>before</th><th>searched</th></tr></thead><tbody>
{% for key in keys %}<tr><td>{{ key }}</td><td>{{ shown(defaults[key]) }}</td><td>{{ space[key] }}</td></tr>
{% endfor %}</tbody></table></div>{% endif %}
<div class="charts">
{% if history %}<div><h2>History</h2>{{ history }}</div>{% endif %}
<div><h2>Importance</h2>{% if importance %}{{ importance }}
<p>Share of each setting in whether a finished trial is among the best tenth. Few trials make it a rough guess.</p>
{% else %}<p>It takes {{ fewest }} finished trials that differ to say what mattered.</p>{% endif %}</div></div>
<h2>Trials</h2>
<div class="scroll"><table><thead><tr><th>trial</th><th>state</th><th>validation</th><th>rounds</th><th>seconds</th>
{% for key in keys %}<th>{{ key }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr><td>{{ row.name }}</td><td>{{ row.state }}{% if row.error %}: {{ row.error }}{% endif %}</td>
<td>{{ row.figure }}</td><td>{{ row.rounds }}</td><td>{{ row.seconds }}</td>
{% for key in keys %}<td>{{ shown(row.params[key]) if key in row.params else "–" }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
</body></html>
"""
)
