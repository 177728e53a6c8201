"""Invitations and sites for tests."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.site.folder import Site, load_site
from client.site.setup import init_site
from metarec_shared.bundle import installed_bundle, metarec_version
from metarec_shared.invitation import AUTHORITY, BUNDLE, CATALOGUE, Invitation, content_hash, file_hash, seal
from tests.certificates import Authority

ITEMS, USERS = 30, 150
bundle_here = cache(installed_bundle)


def make_invitation(
    folder: Path,
    key: Ed25519PrivateKey,
    *,
    authority: Authority | None = None,
    server: str = "127.0.0.1:9092",
    bundle: bytes | None = None,
    items: int = ITEMS,
    text_encoder: str = "random",
    issued: str = "2026-03-01T12:00:00+00:00",
) -> Path:
    """Write an invitation, to run the installed MetaRec unless a bundle is given; return its folder."""
    (folder / CATALOGUE).mkdir(parents=True)
    titles = [f"{i},A film about number {i}" for i in range(items)]
    (folder / CATALOGUE / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n")
    (authority or Authority.new()).write(folder / AUTHORITY)
    (folder / BUNDLE).write_bytes(bundle_here() if bundle is None else bundle)
    terms = Invitation(
        federation="films",
        server=server,
        metarec=metarec_version(),
        text_encoder=text_encoder,
        authority=file_hash(folder / AUTHORITY),
        bundle=file_hash(folder / BUNDLE),
        catalogue=content_hash(folder / CATALOGUE),
        issued=issued,
    )
    seal(folder, terms, key)
    return folder


def resealed(folder: Path, key: Ed25519PrivateKey, **changes: str) -> None:
    """Sign an invitation's terms anew after changes to them."""
    import json

    terms = Invitation(**json.loads((folder / "invitation.json").read_text()))
    seal(folder, replace(terms, **changes), key)


def make_site(folder: Path, invitation: Path, *, mode: str = "none") -> Site:
    """Make a site with interactions of 150 users."""
    init_site(folder, invitation, "clinic", mode=mode)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    rows = [f"u{user},{item}" for user in range(USERS) for item in rng.permutation(ITEMS)[: rng.integers(4, 15)]]
    (folder / "data" / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    return load_site(folder)
