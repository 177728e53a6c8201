"""What a site approved: hashes of the one bundle that may run here and of the one catalogue that it may read."""

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from metarec_shared.errors import TrustError
from metarec_shared.files import write_text
from metarec_shared.invitation import Invitation


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What was approved.

    Attributes:
        federation: Name of the federation.
        server: Where its server listens, as the invitation says.
        signing_key: Fingerprint of the coordinator's key that signed the invitation.
        bundle: SHA-256 of the bundle of apps, hex.
        catalogue: Content hash of the catalogue, hex.
        text_encoder: What makes text vectors of the items.
        metarec: Version of MetaRec that the bundle calls.
        time: When it was approved, UTC.
        issued: When the invitation was made; empty where an older MetaRec approved it.
    """

    federation: str
    server: str
    signing_key: str
    bundle: str
    catalogue: str
    text_encoder: str
    metarec: str
    time: str
    issued: str = ""

    @classmethod
    def of(cls, invitation: Invitation, signing_key: str) -> "Approval":
        """Approve an invitation now."""
        return cls(
            federation=invitation.federation,
            server=invitation.server,
            signing_key=signing_key,
            bundle=invitation.bundle,
            catalogue=invitation.catalogue,
            text_encoder=invitation.text_encoder,
            metarec=invitation.metarec,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            issued=invitation.issued,
        )


def write_approval(path: Path, approval: Approval) -> None:
    """Write what was approved, for the owner alone."""
    write_text(path, json.dumps(asdict(approval), indent=2, ensure_ascii=False) + "\n", mode=0o600)


def read_approval(path: Path) -> Approval:
    """Read what was approved.

    Raises:
        TrustError: The file is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrustError(f"{path}: cannot read what was approved: {error}; run `metarec site approve`") from error
    names = {field.name for field in fields(Approval)}
    if (
        not isinstance(values, dict)
        or set(values) | {"issued"} != names
        or not all(isinstance(v, str) for v in values.values())
    ):
        raise TrustError(f"{path}: wanted texts {', '.join(sorted(names))}; run `metarec site approve`")
    return Approval(**values)
