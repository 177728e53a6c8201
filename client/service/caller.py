"""A client of the service, for the command line: histories and states from files, answers as protobuf messages."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from client.history_lines import content_of, lines_in
from client.service.address import is_loopback, joined_address, split_address
from client.service.proto.metarec.v1 import recommender_pb2 as pb
from client.service.proto.metarec.v1 import recommender_pb2_grpc
from client.service.security import bearing, read_token
from metarec_shared.errors import DataError, ServiceError, SettingsError, TrustError
from metarec_shared.files import write_bytes

User = pb.RecommendRequest | pb.ExplainRequest


class Caller:
    """A connection to a service.

    Args:
        address: ``HOST:PORT``.
        authority: Certificate of the authority that signed the service's; None: no TLS.
        token_file: File of the token that calls bear; None: none.
        timeout: Seconds to wait for an answer.

    Raises:
        SettingsError: The address is none, or the token would be sent to another machine without TLS.
        TrustError: The token or the certificate cannot be read.
    """

    def __init__(self, address: str, *, authority: Path | None, token_file: Path | None, timeout: float) -> None:
        host, port = split_address(address, "--address")
        self._address, self._timeout = joined_address(host, port), timeout
        if token_file is not None and authority is None and not is_loopback(host):
            raise SettingsError(f"--token-file: {host} is another machine, and a token is sent by TLS only: --tls-ca")
        self._headers = () if token_file is None else (bearing(read_token(token_file)),)
        if authority is None:
            self._channel = grpc.insecure_channel(self._address)
        else:
            self._channel = grpc.secure_channel(self._address, grpc.ssl_channel_credentials(_authority(authority)))
        self._service = recommender_pb2_grpc.RecommenderStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def recommend(
        self, history: str | None, state: Path | None, k: int, exclude: Sequence[str], diversity: float
    ) -> pb.RecommendResponse:
        """Ask for recommendations for a history, a state, or somebody new.

        Raises:
            DataError: A file cannot be read.
            ServiceError: The service cannot be reached, or refuses.
        """
        request = pb.RecommendRequest(k=k, exclude=exclude, diversity=diversity)
        _tell_user(request, history, state)
        answer: pb.RecommendResponse = self._ask(self._service.Recommend, request)
        return answer

    def similar(self, item: str, k: int) -> pb.SimilarItemsResponse:
        """Ask for items like an item.

        Raises:
            ServiceError: As ``recommend``.
        """
        answer: pb.SimilarItemsResponse = self._ask(self._service.SimilarItems, pb.SimilarItemsRequest(item=item, k=k))
        return answer

    def explain(self, item: str, history: str | None, state: Path | None) -> pb.ExplainResponse:
        """Ask what speaks for an item.

        Raises:
            DataError: As ``recommend``.
            ServiceError: As ``recommend``.
        """
        request = pb.ExplainRequest(item=item)
        _tell_user(request, history, state)
        answer: pb.ExplainResponse = self._ask(self._service.Explain, request)
        return answer

    def adapt(self, history: str, out: Path) -> pb.StateResponse:
        """Ask for a history's state, and write it to a file of mode 0600.

        Raises:
            DataError: As ``recommend``.
            ServiceError: As ``recommend``.
        """
        request = pb.AdaptRequest(history=pb.History(interactions=_read(history)))
        return _kept(self._ask(self._service.Adapt, request), out)

    def update(self, state: Path, history: str, out: Path) -> pb.StateResponse:
        """Ask for a state with further interactions, and write it to a file of mode 0600.

        Raises:
            DataError: As ``recommend``.
            ServiceError: As ``recommend``.
        """
        request = pb.UpdateRequest(state=_read_bytes(state), interactions=_read(history))
        return _kept(self._ask(self._service.Update, request), out)

    def _ask(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout, metadata=self._headers)
        except grpc.RpcError as error:
            raise ServiceError(f"{self._address}: {error.code().name}: {error.details()}") from error


def _tell_user(request: User, history: str | None, state: Path | None) -> None:
    if history is not None and state is not None:
        raise SettingsError("--history and --state: wanted one of them")
    if state is not None:
        request.state = _read_bytes(state)
    elif history is not None:
        request.history.interactions.extend(_read(history))


def _read(history: str) -> list[pb.Interaction]:
    """Read interactions from a file, or standard input where it is ``-``."""
    return [pb.Interaction(item=one.item, rating=one.rating, time=one.time) for one in lines_in(*content_of(history))]


def _kept(answer: pb.StateResponse, out: Path) -> pb.StateResponse:
    write_bytes(out, answer.state, mode=0o600)
    return answer


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _authority(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrustError(f"{path}: cannot be read: {error.strerror}") from error
