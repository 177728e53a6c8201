"""Checks of what a message needs: catalogue, text encoder, interactions, privacy."""

from client.consent import excluded_users
from client.privacy.ledger import Ledger
from client.privacy.policy import load_policy
from client.site.approval import Approval
from client.site.counts import Counts, write_counts
from client.site.exclusion import unknown_places
from client.site.folder import Site
from metarec_shared.errors import LedgerError, MetaRecError, PrivacyError, TrustError
from metarec_shared.invitation import content_hash
from metarec_shared.sources import load_dataset, load_item_features

_PLACES = 20  # of rows that cannot be read, named each


def catalogue(site: Site, approved: Approval) -> str:
    """Check that the catalogue is the approved one, or the site's own."""
    found = content_hash(site.catalogue)
    if site.settings.own_catalogue:
        return f"this site's own, content hash {found}; runs with federation.catalogues = own"
    if found != approved.catalogue:
        raise TrustError(
            f"{site.catalogue} has the content hash {found}, approved is {approved.catalogue}: `metarec site approve`"
        )
    return f"content hash {found}"


def text_encoder(site: Site, approved: Approval) -> str:
    """Check that the vectors of the items' texts can be made; they are kept for the runs."""
    public = load_item_features(site.data_settings(approved))
    return f"{public.features.encoder}, {len(public.items.catalogue):,} items"


def data(site: Site, approved: Approval) -> str:
    """Check that the interactions can be read, and count them."""
    dataset = load_dataset(site.data_settings(approved))
    skipped = sum(problem.count for problem in dataset.problems if problem.handling == "skipped")
    counts = Counts(users=len(dataset.interactions), interactions=len(dataset.interactions.items), skipped=skipped)
    write_counts(site.state, counts)
    said = [
        f"layout {dataset.layout}, {counts.users:,} users, {counts.interactions:,} interactions, "
        f"{len(dataset.catalogue):,} items"
    ]
    return "; ".join(said + [problem.sentence(_PLACES) for problem in dataset.problems])


def excluded(site: Site, approved: Approval) -> str:
    """Check that it is known who takes no part, and count those who are not in the data."""
    users = excluded_users(site.excluded)
    if not users:
        return "0"
    try:
        unknown = f"{len(unknown_places(site, users)):,} of them not in the data"
    except MetaRecError:
        unknown = "whether they are in the data is not known"
    return f"{len(users):,}, {unknown}"


def privacy(site: Site, approved: Approval) -> str:
    """Check the privacy file, that the ledger fits it, and that budget is left."""
    policy = load_policy(site.privacy_file)
    if policy.mode == "none":
        return "mode none: the server sees raw meta-updates; nobody here is protected"
    folder = site.privacy_file.parent
    files = folder / policy.ledger, folder / policy.witness
    if not files[0].exists() and not files[1].exists():
        raise LedgerError(f"no ledger at {files[0]} yet: `metarec privacy init`, with what {site.privacy_file} says")
    ledger = Ledger.open(*files)
    wanted = policy.plan()
    if [(one.name, one.noise_multiplier, one.sampling_rate) for one in wanted] != [
        (one.name, one.noise_multiplier, one.sampling_rate) for one in ledger.plan
    ]:
        raise PrivacyError(
            f"the ledger was planned for {_planned(ledger.plan)}, {site.privacy_file} says {_planned(wanted)}: set the "
            "file to what was planned"
        )
    epsilon, delta = ledger.budget
    left = ledger.affordable(wanted[0])
    said = f"mode {policy.mode}, epsilon {ledger.spent():.3g} of {epsilon:g} spent at delta {delta:g}"
    if left < 1:
        raise PrivacyError(f"{said}: nothing is left; `metarec privacy set-budget` if your users agreed to more")
    return f"{said}, {left:,} meta-updates left"


def _planned(plan: object) -> str:
    return ", ".join(
        f"{one.name} (noise {one.noise_multiplier:g}, sampling rate {one.sampling_rate:g})"
        for one in plan  # type: ignore[attr-defined]
    )
