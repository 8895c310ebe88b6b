"""Who a bearer token belongs to."""

from __future__ import annotations

import secrets

from imagewright.database import Database
from imagewright.server.security import ADMIN, EVERYBODY, Caller, unauthorised
from imagewright.server.settings import Settings


class Keys:
    """The keys that the server knows."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings = database, settings

    async def caller(self, token: str | None) -> Caller:
        """The owner of a token. Raises ApiError (401). Without any key, a server on loopback serves everybody."""
        admin = self.settings.admin_key
        if admin is None:
            return EVERYBODY
        if token is not None and secrets.compare_digest(token.encode(), admin.encode()):
            return ADMIN
        raise unauthorised()
