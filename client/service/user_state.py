"""The state that a caller keeps of a user: the history itself, so that any later model can adapt to it anew.

    "MRU", format (1 byte), CRC-32 of what follows (4 bytes, big-endian), a protobuf message ``UserState``

It is neither secret from its holder nor signed: it holds what the caller said himself, and a caller who changes it gets
recommendations for another history, which he could have asked for anyway. The checksum tells damage from a history.
What is read is checked as a history is that comes with a call.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from client.interaction import Interaction
from client.service.limits import Limits, check_count, check_name
from client.service.proto.metarec.v1 import recommender_pb2 as pb
from client.service.refusal import invalid

FORMAT = 1
_MAGIC = b"MRU"
_HEADER = len(_MAGIC) + 1 + 4
_LARGEST_HASH = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a user.

    Attributes:
        interactions: The history, as it was told.
        attributes: Hashes of what the user tells of himself.
    """

    interactions: tuple[Interaction, ...] = ()
    attributes: tuple[int, ...] = ()


def pack_state(known: Known) -> bytes:
    """Return what is known of a user as bytes for the caller to keep."""
    message = pb.UserState(interactions=map(_told, known.interactions), attributes=known.attributes)
    payload = message.SerializeToString(deterministic=True)
    return _MAGIC + bytes([FORMAT]) + zlib.crc32(payload).to_bytes(4, "big") + payload


def unpack_state(state: bytes, limits: Limits) -> Known:
    """Read what ``pack_state`` returned.

    Raises:
        RefusedError: It is damaged, too large, of another format, or holds what no history may.
    """
    if len(state) > limits.state_bytes:
        raise invalid(f"state: got {len(state):,} bytes, wanted at most {limits.state_bytes:,}")
    if len(state) < _HEADER or not state.startswith(_MAGIC):
        raise invalid(f"state: got {len(state):,} bytes that Adapt did not return; send its state unchanged")
    if state[len(_MAGIC)] != FORMAT:
        raise invalid(f"state: got format {state[len(_MAGIC)]}, wanted {FORMAT}; adapt to the history anew")
    payload = state[_HEADER:]
    if zlib.crc32(payload) != int.from_bytes(state[_HEADER - 4 : _HEADER], "big"):
        raise invalid("state: damaged, its checksum does not fit; send the state of Adapt unchanged")
    try:
        message = pb.UserState.FromString(payload)
    except DecodeError as error:
        raise invalid("state: damaged, it holds no user; send the state of Adapt unchanged") from error
    check_count("state, attributes", len(message.attributes), limits.attributes)
    if not all(1 <= value <= _LARGEST_HASH for value in message.attributes):
        raise invalid(f"state, attributes: wanted hashes from 1 to {_LARGEST_HASH}")
    return Known(
        interactions=read_interactions(message.interactions, "state", limits), attributes=tuple(message.attributes)
    )


def read_interactions(told: Sequence[pb.Interaction], where: str, limits: Limits) -> tuple[Interaction, ...]:
    """Read interactions that came with a call.

    Raises:
        RefusedError: There are too many, an item has no name, or a rating or a time is no finite number.
    """
    check_count(f"{where}, interactions", len(told), limits.interactions)
    return tuple(_interaction(one, f"{where}, interaction {place}", limits) for place, one in enumerate(told, start=1))


def _interaction(one: pb.Interaction, where: str, limits: Limits) -> Interaction:
    rating = one.rating if one.HasField("rating") else None
    time = one.time if one.HasField("time") else None
    for name, value in (("rating", rating), ("time", time)):
        if value is not None and not math.isfinite(value):
            raise invalid(f"{where}: {name} must be a finite number, got {value!r}")
    return Interaction(item=check_name(f"{where}, item", one.item, limits), rating=rating, time=time)


def _told(one: Interaction) -> pb.Interaction:
    return pb.Interaction(item=one.item, rating=one.rating, time=one.time)
