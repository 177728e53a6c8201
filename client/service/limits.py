"""How much one call may ask for: so that no caller, however odd, costs the others more than a moment."""

from dataclasses import dataclass

from client.service.refusal import invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that a call may hold.

    Attributes:
        interactions: Of a history, or of a state and what is taken in.
        items: That are asked for.
        diverse_items: The same of a diverse list, which costs more than sorting.
        names: Items that are excluded, or that alone may be recommended.
        name_bytes: Of an item's id or title, of an attribute's name or value; UTF-8.
        attributes: Of a user.
        users: Of a batch.
        state_bytes: Of a user's state.
        message_bytes: Of a call; larger ones are not even read.
        metadata_bytes: Of a call's headers.
    """

    interactions: int = 1_000
    items: int = 1_000
    diverse_items: int = 100
    names: int = 10_000
    name_bytes: int = 512
    attributes: int = 32
    users: int = 1_000
    state_bytes: int = 1 << 20
    message_bytes: int = 4 << 20
    metadata_bytes: int = 16 << 10


def check_count(what: str, got: int, most: int) -> None:
    """Refuse too many.

    Raises:
        RefusedError: There are more than ``most``.
    """
    if got > most:
        raise invalid(f"{what}: got {got:,}, wanted at most {most:,}")


def check_name(what: str, name: str, limits: Limits) -> str:
    """Return a name.

    Raises:
        RefusedError: It is empty or too long.
    """
    if not name:
        raise invalid(f"{what}: must not be empty")
    if len(name) > limits.name_bytes or len(name.encode()) > limits.name_bytes:
        raise invalid(f"{what}: got {len(name.encode()):,} bytes, wanted at most {limits.name_bytes:,}")
    return name
