"""Who may ask: programs on this machine, and with a token only those that have it.

A page in a browser can send requests to the loopback address, too. It cannot leave out `Origin`
where it asks for anything to be done, and a name that was pointed at 127.0.0.1 (DNS rebinding)
shows in `Host`.
"""

from __future__ import annotations

import hmac
import re

from starlette.datastructures import Headers

from ..transport import LOOPBACK

_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")


def refusal(headers: Headers, token: str | None) -> tuple[int, str] | None:
    """Return the status and the reason that a request is refused with, None if it is not.

    Args:
        headers: the request's.
        token: what it must bear; None demands that no page of a browser has sent it.
    """
    if token is not None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() == "bearer" and is_right:
            return None
        return 401, "the token is missing or wrong: send it as Authorization: Bearer TOKEN"
    if "origin" in headers:
        return 403, (
            f"a page of {headers['origin']:.80} asks: without a token no browser may; start "
            "keyturn serve --http with one (--token-file)"
        )
    match = _HOST.fullmatch(headers.get("host", ""))
    if match is None or match[1].strip("[]").lower() not in LOOPBACK:
        names = ", ".join(LOOPBACK)
        return 403, f"Host is {headers.get('host', ''):.80}: without a token it must be {names}"
    return None
