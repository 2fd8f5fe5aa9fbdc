"""`Endpoint`: JSON requests to a server, which are sent again while it is down, busy or has a bad reply."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.stopping import raise_if_requested

Found = TypeVar("Found")

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable with the key that is sent, if it is set."""

LONGEST_PAUSE = 30.0
"""Seconds between two tries at most."""

TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504}
"""Statuses of HTTP after which the same request may succeed later."""

OF_THE_CONTENT = {400, 413, 422}
"""Statuses of HTTP for a request whose content cannot be used, such as a prompt that is too long."""

LARGEST_REPLY = 16 << 20
"""Bytes of a reply that are read."""

DOWN = (OSError, http.client.HTTPException)
"""How urllib reports that a server cannot be reached, stops in the middle, or takes too long."""

MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What parsing a reply raises that is not JSON, or JSON of another form."""

EXAMPLE = "http://127.0.0.1:8000/v1"


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Reports a redirection as an error: urllib would send the key to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        """Make no request."""
        return


OPENER = urllib.request.build_opener(NoRedirects)


class BadRequestError(UserError):
    """A server refuses one request for its content; other requests may succeed."""


class Endpoint:
    """A URL below which requests are sent.

    The standard library sends them: the client of huggingface_hub refuses all of them under `HF_HUB_OFFLINE=1`, and
    sends the token of its hub to any server.
    """

    def __init__(self, base: str, timeout: float, tries: int) -> None:
        """Store the address, and the key of the environment.

        Args:
            base: the URL that requests begin with.
            timeout: seconds that one request may take.
            tries: how often a request is sent, with pauses of 1, 2, 4 ... seconds.

        Raises:
            UserError: 64, the key cannot be sent.
        """
        self.base, self._seconds, self._tries = base, timeout, tries
        self._headers = {"Content-Type": "application/json"}
        if key := read_key():
            self._headers["Authorization"] = f"Bearer {key}"
        self._reached = False

    def request(self, path: str, payload: Mapping[str, Any] | None, what: str, parse: Callable[[Any], Found]) -> Found:
        """Send a request until the server has a reply that can be used.

        Args:
            path: below the base.
            payload: what is sent as JSON; None for a GET.
            what: what the reply has to be, for messages.
            parse: returns what is needed of the JSON of the reply; for another form it raises one of `MALFORMED`.

        Raises:
            UserError: after all tries, 69 if nothing has ever come from the server, 75 if something has, and 67 if the
                last reply was another one; 64 at once for a request that is refused, as a `BadRequestError` if for its
                content.
        """
        attempt = 0
        while True:
            attempt += 1
            data = None
            try:
                data = self._send(path, payload)
                return parse(json.loads(data))
            except urllib.error.HTTPError as error:
                self._reached = True
                if error.code not in TEMPORARY:
                    raise self._refusal(error) from None
                reason = f"{error.code} {error.reason}"
            except DOWN as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            except MALFORMED:
                reason = f"the reply is no {what}"
            if attempt >= self._tries:
                raise self._failure(reason, data)
            raise_if_requested()
            pause = min(2.0 ** (attempt - 1), LONGEST_PAUSE)
            logger.info(f"note: {self.base}: {reason}; next try in {pause:.0f} s")
            time.sleep(pause)

    def _send(self, path: str, payload: Mapping[str, Any] | None) -> bytes:
        body = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(f"{self.base}/{path}", body, self._headers)
        with OPENER.open(request, timeout=self._seconds) as response:
            self._reached = True
            data: bytes = response.read(LARGEST_REPLY)
            if response.length and len(data) < LARGEST_REPLY:  # which `read` with a limit does not report
                raise http.client.IncompleteRead(data, response.length)
        return data

    def _refusal(self, error: urllib.error.HTTPError) -> UserError:
        said = b""
        with suppress(*DOWN):
            said = error.read(2000)
        what = f"the server refuses the request ({error.code} {error.reason})"
        problem = Problem(what, self.base, said.decode("utf-8", "replace"))
        if error.code in OF_THE_CONTENT:
            fix = "shorten the prompt if it is too long; otherwise check the name of the model and the options"
            return BadRequestError(ExitCode.CONFIG, problem, fix)
        fix = f"check the URL and the name of the model; a key is taken from {KEY_VARIABLE}"
        return UserError(ExitCode.CONFIG, problem, fix)

    def _failure(self, reason: str, reply: bytes | None) -> UserError:
        after = f"after {self._tries} tries"
        if reply is not None:
            return UserError(
                ExitCode.MODEL,
                Problem(f"{reason}, {after}", self.base, reply[:2000].decode("utf-8", "replace")),
                fix=f"give the URL of a server with OpenAI's chat API, such as {EXAMPLE}",
            )
        return UserError(
            ExitCode.RESUMABLE if self._reached else ExitCode.DEVICE,
            Problem(f"the server does not answer ({reason}), {after}", self.base),
            fix="start the server and run the same command again: it continues",
        )


def read_key() -> str:
    """Return the key of the environment without white space around it; empty without one.

    Raises:
        UserError: 64, no header can hold it. The message does not show it.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isprintable() or any(ord(letter) > 0xFF for letter in key):
        what = "the key has control characters, or others that no header of HTTP can hold"
        raise UserError(ExitCode.CONFIG, Problem(what, KEY_VARIABLE), fix=f"set {KEY_VARIABLE} to the key again")
    return key


def check_url(url: str) -> None:
    """Check that requests can be sent to a URL, and below it.

    Raises:
        UserError: 64. A password is not shown.
    """
    what, fix, shown = "", EXAMPLE, url
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").encode("idna"), parts.port
        if parts.scheme not in ("http", "https") or not host:
            what = "not the URL of a server"
        elif parts.username is not None:
            what, fix = "the URL has a user name or a password", f"leave it out; a key is taken from {KEY_VARIABLE}"
        elif parts.query or parts.fragment:
            what = "the URL has a query or a fragment, so that no path can be appended"
    except ValueError:
        what = "not the URL of a server"
    if not what and (not url.isascii() or not url.isprintable() or " " in url):
        what, fix = "the URL has characters that no URL may have", f"write them as %XX, such as in {EXAMPLE}/a%20b"
    if what:
        shown = "" if "@" in url else url
        raise UserError(ExitCode.CONFIG, Problem(what, text=shown), fix)
