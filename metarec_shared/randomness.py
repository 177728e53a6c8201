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
    return np.array([keyed_hash(seed, str(user)) for user in user_ids], dtype=np.uint64)


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
    offset = np.uint64(keyed_hash(seed, "\x1f".join(str(part) for part in address)))
    mixed = keys + offset
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
