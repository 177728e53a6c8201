"""The coordinator's folder: where everything lies, and what its settings file says."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metarec_shared.errors import FederationError, SettingsError
from metarec_shared.files import write_json
from metarec_shared.settings import parse_table, read_toml, setting

SETTINGS_FILE = "server.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The table [server] of the coordinator's settings file."""

    federation: str = setting("metarec", "name of the federation, as sites see it")
    host: str = setting("127.0.0.1", "address that the server listens on; 0.0.0.0 for all")
    port: int = setting(9092, "its port, the one that sites must reach", low=1, high=65535)
    address: str = setting("", "host:port that sites connect to; empty: the first of names, and the port")
    names: str = setting("localhost,127.0.0.1", "host names and addresses in the server's certificate, by commas")
    metrics_port: int = setting(0, "loopback port of /metrics (Prometheus) and /health; 0: none", low=0, high=65535)
    log_format: Literal["text", "json"] = setting("text", "lines for people, or one JSON object each")
    text_encoder: str = setting("builtin", "what makes text vectors of items, as text.encoder: the same at every site")

    @property
    def host_names(self) -> tuple[str, ...]:
        """Names and addresses that the server's certificate is for."""
        return tuple(dict.fromkeys(name.strip() for name in self.names.split(",") if name.strip()))

    @property
    def public_address(self) -> str:
        """Where sites connect to, ``host:port``."""
        return self.address or f"{self.host_names[0]}:{self.port}"


@dataclass(frozen=True, slots=True)
class Home:
    """Files in a coordinator's folder."""

    folder: Path

    @property
    def settings_file(self) -> Path:
        """Settings of the server."""
        return self.folder / SETTINGS_FILE

    @property
    def authority_key(self) -> Path:
        """Private key of the federation's own certificate authority."""
        return self.folder / "keys" / "ca.key"

    @property
    def authority(self) -> Path:
        """Certificate of that authority, which sites trust."""
        return self.folder / "keys" / "ca.crt"

    @property
    def server_key(self) -> Path:
        """Private key of the server."""
        return self.folder / "keys" / "server.key"

    @property
    def certificate(self) -> Path:
        """Certificate of the server."""
        return self.folder / "keys" / "server.crt"

    @property
    def signing_key(self) -> Path:
        """Private key that signs invitations."""
        return self.folder / "keys" / "signing.key"

    @property
    def flower(self) -> Path:
        """Flower's own home folder."""
        return self.folder / "flower"

    @property
    def database(self) -> Path:
        """State of Flower's SuperLink."""
        return self.folder / "state.sqlite"

    @property
    def app(self) -> Path:
        """The apps that sites run: a few lines that call the installed MetaRec."""
        return self.folder / "app"

    @property
    def catalogue(self) -> Path:
        """Folder with the items."""
        return self.folder / "catalogue"

    @property
    def invitation(self) -> Path:
        """What sites are given."""
        return self.folder / "invitation"

    @property
    def runs(self) -> Path:
        """Folders of runs, by their names."""
        return self.folder / "runs"

    @property
    def sites_file(self) -> Path:
        """Who is enrolled."""
        return self.folder / "sites.json"

    @property
    def log(self) -> Path:
        """Log of the SuperLink."""
        return self.folder / "logs" / "superlink.log"

    def settings(self) -> ServerSettings:
        """Read the settings file.

        Raises:
            SettingsError: It is missing or malformed.
        """
        if not self.settings_file.exists():
            raise SettingsError(
                f"{self.folder}: no coordinator's folder: {SETTINGS_FILE} is missing; metarec server init"
            )
        document = read_toml(self.settings_file, "server settings")
        if set(document) != {"server"}:
            raise SettingsError(f"{self.settings_file}: wanted one table [server], got {', '.join(document) or 'none'}")
        settings: ServerSettings = parse_table(ServerSettings(), "server", document["server"], str(self.settings_file))
        if not settings.host_names:
            raise SettingsError(f"{self.settings_file}: server.names must name the server at least once")
        return settings

    def sites(self) -> dict[str, dict[str, Any]]:
        """Return who is enrolled: by name, Flower's id of the node and the fingerprint of its key."""
        if not self.sites_file.exists():
            return {}
        try:
            sites: dict[str, dict[str, Any]] = json.loads(self.sites_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FederationError(f"{self.sites_file}: damaged: {error}") from error
        return sites

    def write_sites(self, sites: dict[str, dict[str, Any]]) -> None:
        """Write down who is enrolled."""
        write_json(self.sites_file, sites)
