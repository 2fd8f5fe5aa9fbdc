"""Language models that reply to a judge's prompts: a local folder, or a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from dpo_lightning.data.encoding.chat_templates import RunDate
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.evaluation.chat_server import ChatReply, ChatRequest, ChatServer
from dpo_lightning.evaluation.loading import find_positions
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.generation import answer
from dpo_lightning.runs.lineage import folder_digest
from dpo_lightning.sampling import Sampling

Chat = Sequence[Mapping[str, str]]


Reply: TypeAlias = str | UserError
"""The text of a reply, or why this chat gets none, such as one that is too long."""


class Speaker(Protocol):
    """A language model that replies to chats."""

    name: str

    def reply(self, chats: Sequence[Chat], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        """Iterate over replies as they come, each with the index of its chat."""


class ServerSpeaker:
    """A model behind OpenAI's chat API, with a few requests at a time."""

    def __init__(self, server: ChatServer, requests: int = 4) -> None:
        """Store the server, and how many requests are sent at a time."""
        self.name = f"{server.name} at {server.base}"
        self._server, self._requests = server, requests

    def reply(self, chats: Sequence[Chat], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        """Iterate over replies as they come; after an error, those on the way are still given, then it is raised."""
        requests = [ChatRequest(chat, sampling.seed) for chat in chats]
        for number, reply in self._server.answer_all(requests, sampling, self._requests):
            yield number, reply.text if isinstance(reply, ChatReply) else reply


class LocalSpeaker:
    """A model folder."""

    def __init__(self, path: str, device: Any, batch_size: int = 8) -> None:
        """Load the model.

        Raises:
            UserError: it cannot be loaded, or has no chat template.
        """
        source = CausalLM(path)
        tokenizer = source.tokenizer()
        if not tokenizer.chat_template:
            raise UserError(
                ExitCode.MODEL, Problem("the judge has no chat template", "--judge_model", path), "use a chat model"
            )
        self.name = f"{path} {folder_digest(path)}".strip()
        day = RunDate(None).choose_day(tokenizer.chat_template)
        self._renderer = Renderer(tokenizer, "chat", "neutralize", source.end_ids(), day)
        self._model = source.build().to(device)
        self._batch_size, self._positions = batch_size, find_positions(source)

    def reply(self, chats: Sequence[Chat], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        """Iterate over replies in the order of the chats, after the chats that are too long."""
        prompts = [self._renderer.encode_prompt(tuple(chat)) for chat in chats]
        for number, prompt in enumerate(prompts):
            if len(prompt) >= self._positions:
                what = f"the judge's prompt has {len(prompt)} tokens, the judge {self._positions:.0f} positions"
                yield number, UserError(ExitCode.DATA, what, fix="a shorter --judge_prompt, or another judge")
        fitting = [number for number, prompt in enumerate(prompts) if len(prompt) < self._positions]
        for start in range(0, len(fitting), self._batch_size):
            numbers = fitting[start : start + self._batch_size]
            batch = [prompts[number] for number in numbers]
            replies = answer(self._model, self._renderer.tokenizer, batch, sampling, self._renderer.stops)
            yield from zip(numbers, replies, strict=True)
