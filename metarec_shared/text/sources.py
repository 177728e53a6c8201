"""Which text encoder the settings mean, decided within seconds and without loading it."""

import hashlib
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import huggingface_hub

from metarec_shared.errors import SettingsError
from metarec_shared.settings import TextSettings

AUTO_NAME = "sentence-transformers/all-MiniLM-L6-v2"
AUTO_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
HUB_SECONDS = 3.0

_WANTED = "wanted auto, builtin, random, a folder with a transformers BERT, or the name of a model on the hub"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A text encoder, pinned down.

    Attributes:
        kind: Where it comes from.
        location: A folder, or a name on the hub; empty for the built-in encoder.
        revision: The commit of a hub model, else empty.
        identity: What distinguishes it from every other encoder.
        label: What a person is told.
    """

    kind: Literal["builtin", "random", "directory", "hub"]
    location: str
    revision: str
    identity: str
    label: str


BUILTIN = Source(kind="builtin", location="", revision="", identity="", label="builtin")
RANDOM = Source(kind="random", location="", revision="", identity="", label="random")


def choose_source(settings: TextSettings) -> Source:
    """Return the encoder that ``settings`` name; for auto the pinned one of the hub, whether or not it is reachable.

    Raises:
        SettingsError: The settings name a folder or a hub model that is not there.
    """
    if settings.encoder == "auto":
        return _hub_source(AUTO_NAME, settings.revision or AUTO_REVISION)
    if settings.encoder == "builtin":
        return BUILTIN
    if settings.encoder == "random":
        return RANDOM
    folder = Path(settings.encoder).expanduser()
    if settings.encoder and folder.is_dir():
        return _directory_source(folder)
    if not _HUB_NAME.fullmatch(settings.encoder) or folder.is_file():
        raise SettingsError(f"text.encoder: {settings.encoder!r} is no folder; {_WANTED}")
    return _hub_source(settings.encoder, settings.revision)


@lru_cache(maxsize=8)
def hub_commit(name: str, revision: str) -> tuple[str, str]:
    """Ask the hub for the commit behind a revision; return it, or an empty string and the reason there is none.

    The answer comes within :data:`HUB_SECONDS` even where resolving the hub's name hangs, and holds for the process.
    """
    if huggingface_hub.constants.is_offline_mode():
        return "", "HF_HUB_OFFLINE is set"
    answer = ["", f"the hub did not answer within {HUB_SECONDS:g} s"]

    def ask() -> None:
        url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision or None)
        try:
            found = huggingface_hub.get_hf_file_metadata(url, timeout=HUB_SECONDS)
            answer[:] = [found.commit_hash or revision, ""]
        except Exception as error:  # whatever it is, it is the reason
            answer[1] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return answer[0], answer[1]


def _hub_source(name: str, revision: str) -> Source:
    commit, reason = (revision, "") if _COMMIT.fullmatch(revision) else hub_commit(name, revision)
    commit = commit or _downloaded_commit(name, revision)
    if not commit:
        raise SettingsError(
            f"text.encoder: {name!r} is no folder, was never downloaded, and cannot be fetched ({reason}); {_WANTED}"
        )
    label = f"{name}@{commit}"
    return Source(kind="hub", location=name, revision=commit, identity=label, label=label)


def _downloaded_commit(name: str, revision: str) -> str:
    """Return the commit of a hub model that was downloaded before; empty where it was not."""
    try:
        config = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision or "main")
    except huggingface_hub.errors.HFValidationError as error:
        raise SettingsError(f"text.encoder: {name!r} is no folder and no name of a hub model; {_WANTED}") from error
    return Path(config).parent.name if isinstance(config, str) else ""


def _directory_source(folder: Path) -> Source:
    if not (folder / "config.json").is_file():
        raise SettingsError(
            f"text.encoder: {folder} holds no BERT that transformers can load: no config.json; {_WANTED}"
        )
    names = sorted(
        path for path in folder.iterdir() if path.suffix in {".json", ".txt", ".model", ".safetensors", ".bin"}
    )
    digest = hashlib.blake2b(digest_size=16)
    for path in names:
        with path.open("rb") as contents:
            digest.update(path.name.encode() + hashlib.file_digest(contents, "blake2b").digest())
    label = f"directory:{folder.resolve().name}"
    return Source(kind="directory", location=str(folder), revision="", identity=digest.hexdigest(), label=label)
