"""Errors a person can act on: each message says what, where, got and wanted."""


class MetaRecError(Exception):
    """Root of every error MetaRec raises on purpose; the command line prints it as one line and exits with 2."""


class SettingsError(MetaRecError):
    """A setting is unknown, missing, mistyped or out of range."""


class DataError(MetaRecError):
    """Interactions or the catalogue cannot be read or used."""


class CheckpointError(MetaRecError):
    """A run's folder or checkpoint is missing, cut short, or belongs to something else."""


class WireError(MetaRecError):
    """A message between server and node has the wrong names, shapes or values."""


class NodeError(MetaRecError):
    """A node cannot answer what it was asked."""


class FederationError(MetaRecError):
    """Too few nodes answered for the federation to go on."""


class PrivacyError(MetaRecError):
    """A privacy guarantee cannot be given or kept."""


class Refusal(PrivacyError):  # noqa: N818 - not an error of the node's: what it should do
    """A node refuses what it was asked, for its users' privacy."""


class BudgetSpent(Refusal):
    """The privacy budget does not do for another release."""


class TrustError(MetaRecError):
    """A certificate, key, signature or hash is missing, or is not the one that was trusted."""


class AlreadyAnswered(Refusal):
    """A release was made already; to answer again would be another one, with noise of its own."""


class LedgerError(PrivacyError):
    """The privacy ledger is missing, damaged, rolled back, locked or cannot be written."""


class ServiceError(MetaRecError):
    """A recommendation service cannot listen, cannot be reached, or refuses what it was asked."""
