"""Ask a SuperLink whether it knows a site's key, without becoming its node.

The request is the one that a SuperNode begins with, to activate a node, with a heartbeat interval that Flower refuses.
It looks the key up first and refuses the interval next, so nothing is activated, and a node that runs is not disturbed.
"""

from enum import Enum
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from metarec_shared.errors import TrustError

_NO_INTERVAL = 0.0


class Enrolment(Enum):
    """What the server says of a key."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    NOT_ACCEPTED = "signature not accepted"


def ask_enrolment(server: str, authority: Path, key: EllipticCurvePrivateKey) -> Enrolment:
    """Ask whether the server knows a key.

    Raises:
        TrustError: It gave no answer that a SuperLink of this version gives.
    """
    public = key.public_key()
    interceptors: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, public),
    ]
    request = ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=_NO_INTERVAL)
    try:
        with FleetHttpClient.from_server_address(server, False, authority.read_bytes(), interceptors) as client:
            client.ActivateNode(request)
    except httpx.HTTPStatusError as error:
        return _read(error.response)
    except httpx.HTTPError as error:
        raise TrustError(f"{server}: no answer to a node's request: {type(error).__name__}: {error}") from error
    raise TrustError(f"{server}: answers as no SuperLink of Flower 1.41 does: are versions of MetaRec the same?")


def _read(response: httpx.Response) -> Enrolment:
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return Enrolment.NOT_ACCEPTED
    error = FlowerError.from_json(response.text)
    codes = {
        ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL: Enrolment.KNOWN,
        ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED: Enrolment.UNKNOWN,
    }
    if error is None or error.code not in codes:
        raise TrustError(f"the server answers {response.status_code} to a node's request: it is no SuperLink")
    return codes[ApiErrorCode(error.code)]
