"""The page that ``simulations.report`` fills in, and the colours of every page.

A module because Flower app bundles carry no HTML files.
"""

PALETTE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #1b2330; --muted: #5a6575; --line: #dfe3e9;
  --accent: #2456c9; --second: #8fb0f3; --other: #c2571a; --weak: #b9c1cc; --tint: #edf2fe; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161c; --card: #1a2028; --ink: #e6eaf0; --muted: #9da8b7; --line: #313a46;
  --accent: #7fa5ff; --second: #4669b4; --other: #f0a066; --weak: #566170; --tint: #202b40; } }
"""
"""Colours of every page, light and dark; the charts refer to them."""

_STYLE = (
    PALETTE
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main, header > div { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { background: var(--card); border-bottom: 1px solid var(--line); padding: 28px 0 24px; }
h1 { margin: 0 0 4px; font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 36px 0 12px; font-size: 1.2rem; }
h3 { margin: 0 0 6px; font-size: 1rem; }
p { margin: 0 0 12px; }
.muted, figcaption, caption { color: var(--muted); font-size: .9rem; }
.facts { margin: 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 2px 20px; color: var(--muted); }
.facts li, .facts b { overflow-wrap: anywhere; }
.facts b { color: var(--ink); font-weight: 600; }
.keys { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 24px 0 0; }
.card, .keys div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px;
  min-width: 0; }
.keys dt { color: var(--muted); font-size: .85rem; }
.keys dd { margin: 0; }
.keys dd:first-of-type { font-size: 1.5rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.keys dd + dd { color: var(--muted); font-size: .85rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px;
  margin-bottom: 16px; }
.three { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 16px; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", sans-serif !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
caption { text-align: left; padding-bottom: 6px; }
caption b { color: var(--ink); font-size: 1rem; }
th, td { padding: 6px 8px; border-top: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 4px; }
tbody th { font-weight: 400; white-space: normal; }
thead th { color: var(--muted); font-weight: 500; border-top: 0; }
tr.own { background: var(--tint); }
tr.own th { font-weight: 600; }
.tag { color: var(--muted); border: 1px solid var(--line); border-radius: 99px; padding: 0 7px; font-size: .75rem;
  white-space: nowrap; }
ol, ul { margin: 0 0 14px; padding-left: 1.5em; font-size: .93rem; }
ul.support { padding: 0; list-style: none; }
li { overflow-wrap: anywhere; }
ul.support li, ol.ranked li > span { display: flex; justify-content: space-between; gap: 12px; }
.value { color: var(--muted); font-variant-numeric: tabular-nums; flex: none; }
h4 { margin: 12px 0 4px; font-size: .85rem; font-weight: 500; color: var(--muted); }
summary { cursor: pointer; font-weight: 600; }
.settings td { white-space: normal; overflow-wrap: anywhere; }
.settings th { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere; }
footer { margin: 32px 0; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 480px) {
  .card, .keys div { padding: 12px; } .keys { grid-template-columns: 1fr 1fr; } th, td { padding: 6px 3px; }
  .scroll table { font-size: .8rem; } .scroll .tag { font-size: .65rem; padding: 0 5px; }
  .keys dd:first-of-type { font-size: 1.25rem; } }
@media print { .card, .keys div { break-inside: avoid; } }
"""
)

_BODY = """
{% macro comparison_table(title, comparison) %}
<div class="card scroll" role="region" tabindex="0" aria-label="{{ title }}">
<table>
<caption><b>{{ title }}</b>
{%- if comparison.users is not none %}, {{ "{:,}".format(comparison.users) }} test users{% endif %}</caption>
<thead><tr><th scope="col">Method</th>
{%- for metric in comparison.metrics %}<th scope="col">{{ metric }}</th>{% endfor %}</tr></thead>
<tbody>
{% for method in comparison.methods %}
<tr{% if method.key == "metarec" %} class="own"{% endif %}>
<th scope="row">{{ method.name }}{% if method.centralized %} <span class="tag">centralized</span>{% endif %}</th>
{%- for value in method.values %}<td>
{%- if value is not none and show(value) == comparison.best(loop.index0) %}<strong>{{ show(value) }}</strong>
{%- else %}{{ show(value) }}{% endif -%}
</td>{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
<header><div>
<h1>{{ dataset }}</h1>
<p class="muted">MetaRec: federated meta-learning of a cold-start recommender</p>
<ul class="facts">{% for name, fact in facts %}<li>{{ name }} <b>{{ fact }}</b></li>{% endfor %}</ul>
</div></header>
<main>
<dl class="keys">
{% for name, value, note in key_figures %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd><dd>{{ note }}</dd></div>
{% endfor %}</dl>

<section aria-labelledby="curves"><h2 id="curves">Learning curves</h2>
{% if curves %}<div class="pair">{% for curve in curves %}<figure class="card">{{ curve }}</figure>{% endfor %}</div>
{% else %}<p>No round was recorded.</p>{% endif %}
</section>

<section aria-labelledby="comparison"><h2 id="comparison">Cold-start users</h2>
{% if orders %}
<p class="muted">Test users were never seen in meta-training. The first {{ support }} interactions are the support
set, the next {{ query }} the query set; the whole catalogue minus the support set is ranked. Best in bold. Centralized
baselines need every interaction in one place. One seed and one split of users: compare several seeds before trusting a
small difference.</p>
<div class="pair">{% for title, table, bars in orders %}{{ comparison_table(title, table) }}{% endfor %}</div>
<div class="pair">{% for title, table, bars in orders %}<figure class="card">{{ bars }}
<figcaption>{{ title }}. Grey: centralized baselines and chance.</figcaption></figure>
{% endfor %}</div>
{% if not has_time %}<p class="muted">The data has no time order, so there are no figures in time order.</p>{% endif %}
{% else %}<p>Not evaluated yet.</p>{% endif %}
</section>

{% if cold_item %}<section aria-labelledby="cold-items"><h2 id="cold-items">Cold items</h2>
<p class="muted">{{ cold_items }} items were removed from every meta-training user and are ranked among themselves
for the test users who touched them.</p>
{{ comparison_table("Cold items", cold_item) }}
</section>{% endif %}

{% if samples %}<section aria-labelledby="samples"><h2 id="samples">Sample recommendations</h2>
<p class="muted">These are interactions of test users: share this page as you would share the data.</p>
<div class="three">
{% for sample in samples %}<article class="card"><h3>Test user {{ loop.index }}</h3>
<h4>Support set: what the model was told, with rating</h4>
<ul class="support">{% for title, rating in sample.support %}<li><span>{{ title }}</span>
{%- if rating is not none %} <span class="value" title="rating">{{ "%g"|format(rating) }}</span>{% endif %}</li>
{% endfor %}</ul>
<h4>Recommended, with score</h4>
<ol class="ranked">{% for title, score in sample.recommended %}<li><span><span>{{ title }}</span>
<span class="value">{{ "%.2f"|format(score) }}</span></span></li>
{% endfor %}</ol></article>
{% endfor %}</div></section>{% endif %}

<section aria-labelledby="privacy"><h2 id="privacy">Privacy</h2>
<div class="card">
{% if privacy %}<ul>{% for name, value in privacy.items() %}<li>{{ name }}: {{ value }}</li>{% endfor %}</ul>
{% else %}<p style="margin: 0">Mode: none. {{ no_privacy }}</p>{% endif %}</div></section>

<section aria-labelledby="settings"><h2 id="settings">Settings</h2>
<details class="card settings"><summary>All {{ settings|length }} settings of this run</summary>
<table><thead><tr><th scope="col">Setting</th><th scope="col">Value</th></tr></thead><tbody>
{% for name, value in settings.items() %}<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</tbody></table></details></section>
<footer class="muted">Written by MetaRec from result.json, metrics.jsonl and settings.json of this run.</footer>
</main>
"""

# The policy lets nothing load and no script run, should a title ever slip through unescaped.
PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ dataset }}: MetaRec report</title>
<style>"""
    + _STYLE
    + "</style>\n</head>\n<body>"
    + _BODY
    + "</body>\n</html>\n"
)
