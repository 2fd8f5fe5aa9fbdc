"""`ChatServer`: answers of a server with OpenAI's chat API, such as vLLM or llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from dpo_lightning.data.checks.normalization import read_content
from dpo_lightning.data.kinds.tool_calls import convert_arguments
from dpo_lightning.evaluation.endpoint import BadRequestError, Endpoint, check_url

if TYPE_CHECKING:
    from dpo_lightning.sampling import Sampling

ENDED = {"stop": True, "length": False}
"""What a server gives as `finish_reason` -> whether the answer ended by itself."""


class ChatRequest(NamedTuple):
    """A chat to be answered.

    Attributes:
        messages: the chat, ending with a message of the user.
        seed: the seed of this answer, in place of that of the sampling.
        tools: the schemas of the tools that may be called.
    """

    messages: Sequence[Mapping[str, Any]]
    seed: int
    tools: Sequence[Mapping[str, Any]] = ()


class ChatReply(NamedTuple):
    """An answer.

    Attributes:
        text: empty where the server gives none, such as for a call of a tool, or for reasoning that was cut off.
        ended: whether the answer ended before the limit of its tokens; None where the server does not say.
    """

    text: str
    ended: bool | None


Reply: TypeAlias = ChatReply | BadRequestError
"""An answer, or why the server refuses the chat."""


class ChatServer:
    """A server at a URL such as `http://127.0.0.1:8000/v1`."""

    def __init__(self, url: str, model: str | None = None, timeout: float = 300.0, tries: int = 6) -> None:
        """Store the address; nothing is sent yet.

        Args:
            url: the address, with or without `/v1` and `/chat/completions`.
            model: the name of the model at the server; None takes the first that the server lists.
            timeout: seconds that one answer may take.
            tries: how often a request is sent to a server that is down or busy, with pauses of 1, 2, 4 ... seconds.

        Raises:
            UserError: 64, the URL or the key of the environment cannot be used.
        """
        check_url(url)
        base = url.rstrip("/").removesuffix("/chat/completions")
        self.base = base if urlsplit(base).path.strip("/") else f"{base}/v1"
        """The URL that requests begin with, such as `http://127.0.0.1:8000/v1`."""
        self._endpoint = Endpoint(self.base, timeout, tries)
        self._model = model

    @property
    def name(self) -> str:
        """The name of the model at the server.

        Raises:
            UserError: as in `Endpoint.request`.
        """
        if self._model is None:
            what = "list of models, of which the first would be used where no name is given"
            self._model = self._endpoint.request("models", None, what, read_first_name)
        return self._model

    def answer(self, request: ChatRequest, sampling: Sampling) -> ChatReply:
        """Return the answer to a chat.

        Args:
            request: the chat.
            sampling: how tokens are sampled.

        Raises:
            UserError: as in `Endpoint.request`.
        """
        return self._complete(self._make_payload(request, sampling))

    def answer_all(
        self, requests: Sequence[ChatRequest], sampling: Sampling, at_once: int
    ) -> Iterator[tuple[int, Reply]]:
        """Iterate over the answers to several chats as they come, each with the index of its chat.

        Args:
            requests: any number of chats.
            sampling: how tokens are sampled.
            at_once: requests that are sent at a time.

        Raises:
            UserError: as in `Endpoint.request`, after the answers that were on the way.
        """
        stopped, errors = Event(), []
        # With the name of the model, which is found here: each thread in turn would wait for a server that is down.
        payloads = [self._make_payload(request, sampling) for request in requests]

        def send(payload: Mapping[str, Any]) -> Reply | None:
            try:
                return None if stopped.is_set() else self._complete(payload)
            except BadRequestError as refusal:
                return refusal

        with ThreadPoolExecutor(at_once) as pool:
            numbers = {pool.submit(send, payload): number for number, payload in enumerate(payloads)}
            try:
                for future in as_completed(numbers):
                    if failed := future.exception():
                        errors.append(failed)
                        stopped.set()
                    elif (reply := future.result()) is not None:
                        yield numbers[future], reply
            finally:
                stopped.set()  # also where the caller stops
        if errors:
            raise errors[0]

    def _make_payload(self, request: ChatRequest, sampling: Sampling) -> dict[str, Any]:
        payload = {
            "model": self.name,
            "messages": [dict(convert_arguments(message, as_text=True)) for message in request.messages],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
        }
        if request.tools:
            payload["tools"] = [
                dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}
                for tool in request.tools
            ]
        return payload

    def _complete(self, payload: Mapping[str, Any]) -> ChatReply:
        return self._endpoint.request("chat/completions", payload, "chat completion", read_reply)


def read_first_name(listed: Any) -> str:
    """Return the name of the first model that a server lists."""
    name = listed["data"][0]["id"]
    if not isinstance(name, str):
        raise TypeError(name)
    return name


def read_reply(completion: Any) -> ChatReply:
    """Return the answer of a chat completion."""
    choice = completion["choices"][0]
    reason, text = choice.get("finish_reason"), read_content({"content": choice["message"].get("content")})
    return ChatReply(text, ENDED.get(reason) if isinstance(reason, str) else None)
