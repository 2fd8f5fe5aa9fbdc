"""`ChatServer`: answers of a server with OpenAI's chat API, such as vLLM or llama.cpp."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.stopping import raise_if_requested

if TYPE_CHECKING:
    from dpo_lightning.sampling import Sampling

Messages: TypeAlias = Sequence[Mapping[str, Any]]

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable with the key that is sent, if it is set."""

LONGEST_PAUSE = 30.0
"""Seconds between two tries at most."""

TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504}
"""Statuses of HTTP after which the same request may succeed later."""

LARGEST_REPLY = 16 << 20
"""Bytes of a reply that are read."""

DOWN = (OSError, http.client.HTTPException)
"""How urllib reports that a server cannot be reached, stops in the middle, or takes too long."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Reports a redirection as an error: urllib would send the key to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        """Make no request."""
        return


OPENER = urllib.request.build_opener(NoRedirects)


@dataclass(frozen=True)
class ChatServer:
    """A server at a URL such as `http://127.0.0.1:8000/v1`.

    The standard library sends the requests: the client of huggingface_hub refuses all of them under `HF_HUB_OFFLINE=1`,
    and sends the token of its hub to any server.

    Attributes:
        url: the address, with or without `/v1` and `/chat/completions`.
        model: the name of the model at the server; None takes the first that the server lists.
        timeout: seconds that one answer may take.
        tries: how often a request is sent to a server that is down or busy, with pauses of 1, 2, 4 ... seconds.
    """

    url: str
    model: str | None = None
    timeout: float = 300.0
    tries: int = 6

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(
                ExitCode.CONFIG, Problem("not the URL of a server", text=self.url), fix="http://127.0.0.1:8000/v1"
            )

    @property
    def base(self) -> str:
        """The URL that requests begin with, such as `http://127.0.0.1:8000/v1`."""
        base = self.url.rstrip("/").removesuffix("/chat/completions")
        return base if urlsplit(base).path.strip("/") else f"{base}/v1"

    @cached_property
    def name(self) -> str:
        """The name of the model at the server.

        Raises:
            UserError: as in `answer`; 64 if the server lists no model.
        """
        if self.model is not None:
            return self.model
        listed = self._request("models")
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise UserError(
                ExitCode.CONFIG, Problem("the server lists no model", self.base), fix="give the model's name"
            ) from None

    def answer(self, messages: Messages, seed: int, sampling: Sampling) -> str:
        """Return the answer to a chat.

        Args:
            messages: the chat, ending with a message of the user.
            seed: the seed of this answer, in place of that of `sampling`.
            sampling: how tokens are sampled.

        Raises:
            UserError: 64 if the server refuses the request, 75 if it is down or busy after all tries, 67 if what it
                sends is no chat completion.
        """
        reply = self._request(
            "chat/completions",
            {
                "model": self.name,
                "messages": [dict(message) for message in messages],
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": seed,
            },
        )
        try:
            content = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise self._reply_error(reply) from None
        return content if isinstance(content, str) else ""  # null is a refusal, or nothing but a call of a tool

    def answer_all(
        self, chats: Sequence[Messages], seeds: Sequence[int], sampling: Sampling, requests: int
    ) -> Iterator[tuple[int, str]]:
        """Iterate over the answers to several chats as they come, each with the index of its chat.

        Args:
            chats: any number of them.
            seeds: the seed of each answer.
            sampling: how tokens are sampled.
            requests: requests that are sent at a time.

        Raises:
            UserError: as in `answer`, after the answers that were on the way.
        """
        stopped, errors = Event(), []
        named = replace(self, model=self.name)  # each thread in turn would wait for a server that is down

        def send(chat: Messages, seed: int) -> str | None:
            return None if stopped.is_set() else named.answer(chat, seed, sampling)

        with ThreadPoolExecutor(requests) as pool:
            numbers = {pool.submit(send, *each): number for number, each in enumerate(zip(chats, seeds, strict=True))}
            try:
                for future in as_completed(numbers):
                    if failed := future.exception():
                        errors.append(failed)
                        stopped.set()
                    elif (text := future.result()) is not None:
                        yield numbers[future], text
            finally:
                stopped.set()  # also where the caller stops
        if errors:
            raise errors[0]

    def _request(self, path: str, payload: Mapping[str, Any] | None = None) -> Any:
        """Send a request until the server answers it; return the JSON of its reply."""
        for attempt in range(self.tries):
            try:
                data = self._send(path, payload)
                break
            except urllib.error.HTTPError as error:
                if error.code not in TEMPORARY:
                    said = error.read(2000).decode("utf-8", "replace")
                    raise UserError(
                        ExitCode.CONFIG,
                        Problem(f"the server refuses the request ({error.code} {error.reason})", self.base, said),
                        fix=f"check the URL and the name of the model; a key is taken from {KEY_VARIABLE}",
                    ) from None
                reason = f"{error.code} {error.reason}"
            except DOWN as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt + 1 == self.tries:
                raise UserError(
                    ExitCode.RESUMABLE,
                    Problem(f"the server does not answer ({reason}), after {self.tries} tries", self.base),
                    fix="start the server and run the same command again: it continues",
                )
            raise_if_requested()
            pause = min(2.0**attempt, LONGEST_PAUSE)
            logger.info(f"note: {self.base}: {reason}; next try in {pause:.0f} s")
            time.sleep(pause)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self._reply_error(data.decode("utf-8", "replace")) from None

    def _send(self, path: str, payload: Mapping[str, Any] | None) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        body = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(f"{self.base}/{path}", body, headers)
        with OPENER.open(request, timeout=self.timeout) as response:
            data: bytes = response.read(LARGEST_REPLY)
        return data

    def _reply_error(self, reply: object) -> UserError:
        return UserError(
            ExitCode.MODEL,
            Problem("the server's reply is no chat completion", self.base, str(reply)[:2000]),
            fix="give the URL of a server with OpenAI's chat API, such as http://127.0.0.1:8000/v1",
        )
