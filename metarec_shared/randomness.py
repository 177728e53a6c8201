"""Every random draw has an address: the same address gives the same draw, whoever asks, in whatever order.

Draws that concern one user are addressed by a keyed hash of the user's id, so they depend neither on which node
holds the user nor on how many others it holds; that is what makes a federation over any partition, and a resumed
run, equal to one that was never split or stopped.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def keyed_hash(key: int | str, identifier: str) -> int:
    """Return a 64-bit keyed hash (BLAKE2b) of ``identifier``."""
    digest = hashlib.blake2b(identifier.encode(), key=str(key).encode()[:64], digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def user_keys(seed: int, user_ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return the 64-bit keyed hash of each user id, uint64 [users]."""
    ids = user_ids.tolist() if isinstance(user_ids, np.ndarray) else user_ids
    return np.fromiter((keyed_hash(seed, str(user)) for user in ids), dtype=np.uint64)


def generator(seed: int, *address: int | str) -> np.random.Generator:
    """Return the generator at ``address``, for example ``generator(seed, "cohort", round)``.

    The address is hashed to the 128-bit key of a counter-based bit generator (Philox), so that near addresses are
    unrelated and none needs the ones before it.
    """
    label = "\x1f".join(str(part) for part in (seed, *address))
    digest = hashlib.blake2b(label.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def uniforms(keys: NDArray[np.uint64], seed: int, *address: int | str) -> NDArray[np.float64]:
    """Return one uniform draw in [0, 1) a key at ``address``, float64 [keys], without a generator a key.

    Keys are mixed with the hashed address by the finalizer of SplitMix64.

    References:
        Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, figure 14 (mix64variant13).
    """
    return _to_unit_interval(_mix(keys + _offset(seed, address)))


def uniform_table(keys: NDArray[np.uint64], count: int, seed: int, *address: int | str) -> NDArray[np.float64]:
    """Return ``count`` uniform draws in [0, 1) a key at ``address``, float64 [keys, count].

    Each key's draws are a SplitMix64 sequence that starts at the mixed key, so a longer table begins with a shorter
    one.
    """
    return _to_unit_interval(_sequences(keys, count, seed, address))


def coin_table(
    keys: NDArray[np.uint64], count: int, chance: float, seed: int, *address: int | str
) -> NDArray[np.bool_]:
    """Toss ``count`` coins a key at ``address``, bool [keys, count], true with ``chance`` to the nearest 1 / 65536."""
    words = _sequences(keys, -(-count // _LANES), seed, address)
    lanes = words.view("<u2").reshape(len(keys), -1)[:, :count]
    return lanes < round(chance * 2**16) if chance < 1.0 else np.ones(lanes.shape, dtype=bool)


_LANES = 4  # 16-bit draws in one 64-bit word
_GAMMA = 0x9E3779B97F4A7C15  # the golden ratio's increment of SplitMix64


def _offset(seed: int, address: tuple[int | str, ...]) -> np.uint64:
    return np.uint64(keyed_hash(seed, "\x1f".join(str(part) for part in address)))


def _sequences(keys: NDArray[np.uint64], count: int, seed: int, address: tuple[int | str, ...]) -> NDArray[np.uint64]:
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return _mix(_mix(keys + _offset(seed, address))[:, None] + steps)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def _to_unit_interval(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
