"""What a call is refused with: one of gRPC's status codes, and what was wrong, got and wanted."""

import grpc

from metarec_shared.errors import MetaRecError


class RefusedError(MetaRecError):
    """A call that is not answered.

    Args:
        code: The status it ends with.
        message: What was wrong; the caller reads it, no log does.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> RefusedError:
    """Return the refusal of what makes no sense or is too much."""
    return RefusedError(grpc.StatusCode.INVALID_ARGUMENT, message)
