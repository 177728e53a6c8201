"""What holds of the ranking metrics whatever the scores."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec_shared.metrics import graded_ndcg, ranking_metrics
from metarec_shared.ranks import item_mask

ITEMS, SUPPORT, QUERY = 12, 3, 4


@st.composite
def one_user(draw):
    """Scores with ties, excluded items and a query set."""
    scores = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=ITEMS, max_size=ITEMS))
    order = draw(st.permutations(range(ITEMS)))
    query = order[SUPPORT : SUPPORT + draw(st.integers(1, QUERY))]
    exclude = item_mask(torch.tensor([order[:SUPPORT]]), torch.ones(1, SUPPORT, dtype=torch.bool), ITEMS)
    return torch.tensor([scores]), exclude, torch.tensor([query]), torch.ones(1, len(query), dtype=torch.bool)


cutoffs = st.integers(1, ITEMS + 3)
anything = settings(deadline=None)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=name)


@anything
@given(one_user(), cutoffs)
def test_metrics_lie_between_0_and_1(user, k):
    for name, value in ranking_metrics(*user, k=k).items():
        assert -1e-12 <= value.item() <= 1 + 1e-12, name


@anything
@given(one_user(), cutoffs, st.permutations(range(ITEMS)))
def test_the_order_of_items_in_the_catalogue_does_not_matter(user, k, order):
    scores, exclude, query, mask = user
    position = torch.tensor(order).argsort()
    moved = scores[:, order], exclude[:, order], position[query], mask
    assert_same(ranking_metrics(*user, k=k), ranking_metrics(*moved, k=k))


@anything
@given(one_user(), cutoffs, st.sampled_from([-10.0, 0.25, 10.0, torch.nan, torch.inf]))
def test_scores_of_excluded_items_do_not_matter(user, k, value):
    scores, exclude, query, mask = user
    changed = scores.masked_fill(exclude, value)
    assert_same(ranking_metrics(*user, k=k), ranking_metrics(changed, exclude, query, mask, k=k))


@anything
@given(one_user(), cutoffs, st.lists(st.integers(-1, ITEMS), max_size=3))
def test_padding_of_the_query_set_does_not_matter(user, k, padding):
    scores, exclude, query, mask = user
    padded = torch.cat([torch.tensor([padding], dtype=torch.int64), query], dim=1)
    padded_mask = torch.cat([torch.zeros(1, len(padding), dtype=torch.bool), mask], dim=1)
    assert_same(ranking_metrics(*user, k=k), ranking_metrics(scores, exclude, padded, padded_mask, k=k))


@anything
@given(one_user(), cutoffs)
def test_a_higher_score_for_a_query_item_never_hurts(user, k):
    scores, exclude, query, mask = user
    raised = scores.scatter(1, query[:, :1], 2.0)
    before, after = ranking_metrics(*user, k=k), ranking_metrics(raised, exclude, query, mask, k=k)
    for name in before:
        if name != "auc" or not before[name].isnan():
            assert after[name].item() >= before[name].item() - 1e-12, name


@anything
@given(one_user(), cutoffs)
def test_query_items_on_top_are_the_best_ranking(user, k):
    scores, exclude, query, mask = user
    perfect = ranking_metrics(scores.scatter(1, query, 2.0), exclude, query, mask, k=k)
    for name in (f"ndcg@{k}", f"hr@{k}", f"recall@{k}", "mrr", "auc"):
        torch.testing.assert_close(perfect[name], torch.ones(1, dtype=torch.float64), msg=name)


@anything
@given(one_user(), cutoffs)
def test_graded_ndcg_of_relevance_0_and_1_is_ndcg(user, k):
    scores, exclude, query, mask = user
    relevance = item_mask(query, mask, ITEMS).float()
    for gain in ("linear", "exponential"):
        graded = graded_ndcg(scores, relevance, ~exclude, k, gain)
        torch.testing.assert_close(graded, ranking_metrics(*user, k=k)[f"ndcg@{k}"])
