"""States that callers keep: they come back as they were, and whatever else comes is refused."""

import random
import zlib

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.interaction import Interaction
from client.service.limits import Limits
from client.service.proto.metarec.v1 import recommender_pb2 as pb
from client.service.refusal import RefusedError
from client.service.user_state import Known, pack_state, unpack_state

LIMITS = Limits()
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
interactions = st.builds(
    Interaction, item=st.text(st.characters(codec="utf-8"), min_size=1, max_size=100), rating=numbers, time=numbers
)
KNOWN = Known(
    interactions=(Interaction(item="b0003", rating=5.0, time=0.0), Interaction(item="Köln ☂")), attributes=(1, 1 << 62)
)


def crafted(payload: bytes, form: int = 1) -> bytes:
    return b"MRU" + bytes([form]) + zlib.crc32(payload).to_bytes(4, "big") + payload


def said(state: bytes) -> str:
    with pytest.raises(RefusedError) as refused:
        unpack_state(state, LIMITS)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    return str(refused.value)


@settings(deadline=None, max_examples=50)
@given(st.lists(interactions, max_size=20), st.lists(st.integers(1, (1 << 63) - 1), max_size=5))
def test_a_state_holds_what_was_told(told: list[Interaction], attributes: list[int]) -> None:
    known = Known(interactions=tuple(told), attributes=tuple(attributes))
    assert unpack_state(pack_state(known), LIMITS) == known


def test_every_damage_is_noticed() -> None:
    state = pack_state(KNOWN)
    for place in range(len(state)):
        changed = bytearray(state)
        changed[place] ^= 0x41
        assert "state" in said(bytes(changed))
        said(state[:place])
    said(state + b"\0")
    drawn = random.Random(0)
    for size in (0, 1, 7, 8, 9, 50, 1000):
        said(drawn.randbytes(size))
        said(b"MRU\x01" + drawn.randbytes(size))


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (b"", "state: got 0 bytes that Adapt did not return"),
        (b"x" * (LIMITS.state_bytes + 1), "state: got 1,048,577 bytes, wanted at most 1,048,576"),
        (crafted(b"", form=2), "state: got format 2, wanted 1"),
        (crafted(b"\xff\xff"), "state: damaged, it holds no user"),
        (crafted(pb.UserState(attributes=[0]).SerializeToString()), "wanted hashes from 1 to"),
        (crafted(pb.UserState(attributes=[1 << 63]).SerializeToString()), "wanted hashes from 1 to"),
        (crafted(pb.UserState(attributes=[1] * 33).SerializeToString()), "attributes: got 33, wanted at most 32"),
        (
            crafted(pb.UserState(interactions=[pb.Interaction(item="a")] * 1001).SerializeToString()),
            "state, interactions: got 1,001, wanted at most 1,000",
        ),
        (
            crafted(pb.UserState(interactions=[pb.Interaction()]).SerializeToString()),
            "state, interaction 1, item: must not be empty",
        ),
        (
            crafted(pb.UserState(interactions=[pb.Interaction(item="é" * 257)]).SerializeToString()),
            "item: got 514 bytes, wanted at most 512",
        ),
        (
            crafted(pb.UserState(interactions=[pb.Interaction(item="a", time=float("inf"))]).SerializeToString()),
            "state, interaction 1: time must be a finite number, got inf",
        ),
    ],
)
def test_a_hostile_state_is_refused(state: bytes, what: str) -> None:
    assert what in said(state)


def test_the_largest_history_fits_a_state() -> None:
    longest = Interaction(item="é" * (LIMITS.name_bytes // 2), rating=-1.5, time=1e9)
    known = Known(interactions=(longest,) * LIMITS.interactions, attributes=((1 << 63) - 1,) * LIMITS.attributes)
    assert unpack_state(pack_state(known), LIMITS) == known
