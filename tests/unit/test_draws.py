"""Random draws by address, the split of users, and the partition over nodes."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from metarec_shared.errors import SettingsError
from metarec_shared.partition import partition_users
from metarec_shared.randomness import generator, keyed_hash, uniforms, user_keys
from metarec_shared.split import Role, held_out_items, roles


def test_the_same_address_gives_the_same_draw_and_another_address_another() -> None:
    first, again, other = (generator(0, "cohort", r).random(8) for r in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).any()
    assert generator(0, "a", "bc").random() != generator(0, "ab", "c").random()


def test_keyed_hash_is_blake2b() -> None:
    digest = hashlib.blake2b(b"user 7", key=b"3", digest_size=8).hexdigest()
    assert keyed_hash(3, "user 7") == int(digest, 16)


def test_uniform_draws_of_keys_are_uniform_and_independent_between_rounds() -> None:
    keys = user_keys(0, [str(user) for user in range(20_000)])
    first, second = (uniforms(keys, 0, "sampling", r) for r in (1, 2))
    assert stats.kstest(first, "uniform").pvalue > 1e-4
    assert abs(stats.pearsonr(first, second).statistic) < 0.03
    assert 0 <= first.min() < first.max() < 1
    assert (uniforms(keys[5:7], 0, "sampling", 1) == first[5:7]).all()


def test_users_split_by_threshold_into_eight_one_one() -> None:
    keys = user_keys(0, [str(user) for user in range(20_000)])
    shares = np.bincount(roles(keys), minlength=3) / len(keys)
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    expected = [Role.TRAINING if k < 0.8 else Role.VALIDATION if k < 0.9 else Role.TEST for k in keys / 2.0**64]
    assert (roles(keys) == expected).all()


def test_a_users_role_does_not_move_when_data_grows() -> None:
    few, many = ([str(user) for user in range(n)] for n in (100, 1000))
    assert (roles(user_keys(4, few)) == roles(user_keys(4, many))[:100]).all()
    assert not (roles(user_keys(4, many)) == roles(user_keys(5, many))).all()


def test_held_out_items_are_a_share_that_only_seed_and_id_decide() -> None:
    ids = tuple(f"item {i}" for i in range(5000))
    held_out = held_out_items(1, ids, 0.1)
    assert held_out.mean() == pytest.approx(0.1, abs=0.015)
    assert (held_out_items(1, ids[:100], 0.1) == held_out[:100]).all()
    assert not held_out_items(1, ids, 0.0).any()


@pytest.mark.parametrize("kind", ["even", "skewed"])
@pytest.mark.parametrize("nodes", [1, 2, 7, 99, 100])
def test_a_partition_gives_every_user_to_one_node_and_every_node_a_user(kind: str, nodes: int) -> None:
    partition = partition_users(100, nodes, kind, seed=3)  # type: ignore[arg-type]
    parts = [partition.of(node) for node in range(nodes)]
    assert len(partition) == nodes
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    assert min(len(part) for part in parts) >= 1


def test_even_nodes_differ_by_one_user_and_skewed_ones_by_rank() -> None:
    even, skewed = (
        [len(p.of(n)) for n in range(6)] for p in (partition_users(100, 6, k, 0) for k in ("even", "skewed"))
    )  # type: ignore[arg-type]
    assert max(even) - min(even) <= 1
    assert skewed == sorted(skewed, reverse=True)
    assert skewed[0] > 5 * skewed[-1]


def test_more_nodes_than_users_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"federation.nodes must be between 1 and the 5 users of the data, got 6"):
        partition_users(5, 6, "even", 0)
