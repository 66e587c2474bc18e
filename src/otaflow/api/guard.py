"""Who may ask: on TCP nobody without a bearer token or a client certificate gets anything but 401.

The Unix socket needs neither: its mode says who may open it. Which of both a request came through is told by our own
server in the request's `state` (api/serve.py); anything else counts as TCP.
"""

import hmac
from dataclasses import dataclass
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from otaflow.errors import GeneralReject

LOCAL: Final = "otaflow.local"
CERTIFICATE: Final = "otaflow.certificate"
GUARDED: Final = "otaflow.guarded"


@dataclass(frozen=True)
class Credentials:
    """What lets a client in: the bearer `token`, or a certificate that TLS has verified. Either is enough."""

    token: bytes | None = None
    certificates: bool = False

    def admit(self, scope: Scope) -> bool:
        """Whether the request carries one of them."""
        logins = [value for name, value in scope["headers"] if name == b"authorization"]
        if self.token and len(logins) == 1:
            scheme, _, token = logins[0].partition(b" ")
            if scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.token):  # constant time
                return True
        # A browser shows its certificate for whichever page asks; with a token that cannot happen.
        from_a_page = any(name == b"origin" for name, _ in scope["headers"])
        return self.certificates and not from_a_page and bool(scope.get("state", {}).get(CERTIFICATE))


class Guard:
    """401 for everything, before anything of the request is looked at."""

    def __init__(self, app: ASGIApp, credentials: Credentials) -> None:
        self.app = app
        self.credentials = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("state", {}).get(LOCAL):
            await self.app(scope, receive, send)
        elif self.credentials.admit(scope):
            await self.app({**scope, "state": {**scope.get("state", {}), GUARDED: True}}, receive, send)
        else:
            await _refuse(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    answer = JSONResponse(
        {
            "error": GeneralReject.__name__,
            "code": GeneralReject.code,
            "message": "cannot answer: no valid credentials; send the bearer token or a client certificate",
        },
        401,
        # whoever has no credentials does not keep the connection, or send a body on it
        headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
    )
    await answer(scope, receive, send)
