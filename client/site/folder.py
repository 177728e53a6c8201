"""A site's folder: what lies where, and what ``site.toml`` says."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from client.site.approval import Approval
from metarec_shared.errors import SettingsError
from metarec_shared.invitation import SITE_NAME
from metarec_shared.settings import Scalar, Settings, parse_table, read_toml, setting

SETTINGS_FILE = "site.toml"
EXCLUDED_FILE = "excluded.txt"
STATE_FOLDER = "state"

_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """The table [site] of ``site.toml``; files are relative to its folder."""

    name: str = setting("", "name of this site, which the server sees")
    server: str = setting("", "where the server listens, host:port")
    root_certificates: str = setting("ca.crt", "certificate of the authority that the server's comes from")
    key: str = setting("site.key", "private key of this site, which never leaves it; site.key.pub is its public half")
    data: str = setting("data", "folder with interactions.csv, interactions.parquet or source.toml")
    catalogue: str = setting("catalogue", "folder with the items that this site approved, or with its own")
    own_catalogue: bool = setting(False, "the items are this site's own, for runs with federation.catalogues = own")
    text_encoder: str = setting(
        "", "what makes text vectors of the items, a folder here say; empty: what the invitation names"
    )
    privacy_file: str = setting("privacy.toml", "what may leave this site, and how noised")
    approved: str = setting("approved.json", "hashes of what this site approved; written by `metarec site approve`")
    host: str = setting("127.0.0.1", "address of the node's own interface, for processes on this machine")
    port: int = setting(9094, "port of the node's own interface", low=1, high=65535)
    metrics_port: int = setting(0, "port for /metrics and /health on 127.0.0.1; 0: none", low=0, high=65535)
    log_format: Literal["text", "json"] = setting("text", "form of log lines: text or json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingSettings:
    """The table [data] of ``site.toml``: how this site's data is read, whatever a run says."""

    on_bad_rows: Literal["error", "skip"] = setting("skip", "rows that cannot be read: error or skip")
    rating_low: float = setting(0.0, "lowest rating of the scale; equal to rating-high: as the layout says")
    rating_high: float = setting(0.0, "highest rating of the scale; equal to rating-low: as the layout says")
    item_vectors: str = setting("", "the site's copy of the file of further item vectors; empty: none")
    user_attributes: str = setting("", "columns of the file of users that they tell the model, by commas; empty: none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A site's folder and settings.

    Attributes:
        folder: The folder, absolute.
        settings: The table [site].
        reading: The table [data].
    """

    folder: Path
    settings: SiteSettings
    reading: ReadingSettings

    @property
    def key(self) -> Path:
        """The private key."""
        return self.folder / self.settings.key

    @property
    def authority(self) -> Path:
        """The certificate of the authority that the server's certificate comes from."""
        return self.folder / self.settings.root_certificates

    @property
    def data(self) -> Path:
        """The folder of interactions."""
        return self.folder / self.settings.data

    @property
    def catalogue(self) -> Path:
        """The folder of items."""
        return self.folder / self.settings.catalogue

    @property
    def privacy_file(self) -> Path:
        """The site's privacy file."""
        return self.folder / self.settings.privacy_file

    @property
    def approved(self) -> Path:
        """The file of what was approved."""
        return self.folder / self.settings.approved

    @property
    def excluded(self) -> Path:
        """The file of users who take no part."""
        return self.folder / EXCLUDED_FILE

    @property
    def state(self) -> Path:
        """The folder of what a running site leaves: status, log, Flower's own files."""
        return self.folder / STATE_FOLDER

    def node_config(self, approval: Approval) -> dict[str, Scalar]:
        """Return the node's configuration, which the ClientApp reads; paths in it are absolute."""
        reading = self.reading
        config: dict[str, Scalar] = {
            "name": self.settings.name,
            "data-path": str(self.data),
            "catalogue-path": str(self.catalogue),
            "privacy-file": str(self.privacy_file),
            "excluded-file": str(self.excluded),
            "on-bad-rows": reading.on_bad_rows,
            "rating-low": reading.rating_low,
            "rating-high": reading.rating_high,
        }
        if self.settings.own_catalogue:
            config["own-catalogue"] = True
        else:
            config["catalogue-hash"] = approval.catalogue
        config["text-encoder"] = self.settings.text_encoder or approval.text_encoder
        if reading.item_vectors:
            config["item-vectors"] = str(self.folder / reading.item_vectors)
        if reading.user_attributes:
            config["user-attributes"] = reading.user_attributes
        return config

    def data_settings(self, approval: Approval) -> Settings:
        """Return settings that read this site's data and catalogue as its ClientApp will."""
        config = self.node_config(approval)
        values: dict[str, Any] = {
            f"data.{key}": config[key]
            for key in ("on-bad-rows", "rating-low", "rating-high", "item-vectors", "user-attributes")
            if key in config
        }
        values |= {"data.path": config["data-path"], "data.catalogue": config["catalogue-path"]}
        return Settings().with_values(values | {"text.encoder": config["text-encoder"]}, SETTINGS_FILE)


def load_site(folder: Path) -> Site:
    """Read a site's folder.

    Raises:
        SettingsError: ``site.toml`` is missing, malformed, or says what cannot be.
    """
    folder = folder.absolute()
    path = folder / SETTINGS_FILE
    document = read_toml(path, "site's settings")
    if unknown := set(document) - {"site", "data"}:
        raise SettingsError(f"{path}: wanted tables [site] and [data], got {', '.join(sorted(unknown))}")
    tables = {name: document.get(name, {}) for name in ("site", "data")}
    if not all(isinstance(table, dict) for table in tables.values()):
        raise SettingsError(f"{path}: site and data must be tables")
    settings: SiteSettings = parse_table(SiteSettings(), "site", tables["site"], str(path))
    reading: ReadingSettings = parse_table(ReadingSettings(), "data", tables["data"], str(path))
    check_name(settings.name, str(path))
    check_server(settings.server, str(path))
    if reading.rating_high < reading.rating_low:
        raise SettingsError(f"{path}: data.rating-high must not be below data.rating-low ({reading.rating_low:g})")
    return Site(folder=folder, settings=settings, reading=reading)


def check_name(name: str, source: str) -> None:
    """Raise a SettingsError if a site cannot be called so."""
    if not SITE_NAME.fullmatch(name):
        raise SettingsError(f"{source}: a site's name is 1 to 63 letters, digits and hyphens, got {name!r}")


def check_server(server: str, source: str) -> tuple[str, int]:
    """Return host and port of ``host:port``.

    Raises:
        SettingsError: It is none.
    """
    found = _SERVER.fullmatch(server)
    if not found or not 0 < int(found[2]) < 65536:
        raise SettingsError(f"{source}: site.server must be host:port, got {server!r}")
    return found[1].strip("[]"), int(found[2])
