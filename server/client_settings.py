"""The client's settings while the server runs: pushed by the client, or asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from lsprotocol import types
from pygls.lsp.server import LanguageServer

from .settings import SECTION


class ClientSettings:
    """What the client said last counts; a bad answer counts as none.

    Args:
        server: asks the client.
        take: receives settings as `settings.from_options` reads them, None for the initial ones.
        warn: receives messages for the user's log.
    """

    def __init__(
        self,
        server: LanguageServer,
        take: Callable[[object], None],
        warn: Callable[[list[str]], None],
    ) -> None:
        """Ask nothing yet."""
        self._server = server
        self._take = take
        self._warn = warn
        self._asking: asyncio.Task[None] | None = None

    def begin(self) -> bool:
        """Register for changes and ask, each if the client can; whether an answer will come."""
        workspace = self._server.client_capabilities.workspace
        changes = workspace and workspace.did_change_configuration
        if changes and changes.dynamic_registration:
            self._follow()
        return self._ask()

    def changed(self, options: object) -> None:
        """Take what came with didChangeConfiguration; when that is nothing, ask if possible."""
        section = options
        if isinstance(options, Mapping) and SECTION in options:
            section = options[SECTION]
        is_nothing = section is None or section == {}
        if not (is_nothing and self._ask()):
            self._stop()
            self._take(None if is_nothing else options)

    def _ask(self) -> bool:
        workspace = self._server.client_capabilities.workspace
        if workspace is None or not workspace.configuration:
            return False
        self._stop()
        self._asking = asyncio.ensure_future(self._take_answer())
        return True

    def _stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _take_answer(self) -> None:
        item = types.ConfigurationItem(section=SECTION)
        params = types.ConfigurationParams(items=[item])
        options = None
        try:
            # Shielded: pygls fails on the reply when the task that awaits it was cancelled (#621).
            asked = asyncio.ensure_future(self._server.workspace_configuration_async(params))
            asked.add_done_callback(lambda done: done.cancelled() or done.exception())
            answer = await asyncio.shield(asked)
            if not isinstance(answer, list | tuple) or len(answer) != 1:
                raise ValueError(f"not a list of one: {answer!r:.80}")
            options = answer[0]
        except Exception as error:
            self._warn([f"the editor was asked for its settings in vain: {error}"])
        self._take(options)

    def _follow(self) -> None:
        registration = types.Registration(
            id="keyturn-settings",
            method=types.WORKSPACE_DID_CHANGE_CONFIGURATION,
            register_options=types.DidChangeConfigurationRegistrationOptions(section=SECTION),
        )
        params = types.RegistrationParams(registrations=[registration])
        future = self._server.client_register_capability(params)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
