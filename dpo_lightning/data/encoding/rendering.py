"""Texts into token ids: chat templates, control tokens, BOS and EOS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property, partial
from typing import Any, Literal, Protocol

from dpo_lightning.data.encoding.chat_templates import dated, template_source
from dpo_lightning.data.encoding.kept_texts import check_rendering, left_out, name_of
from dpo_lightning.data.encoding.template_limits import rendered, token_ids
from dpo_lightning.data.examples import TRAIN, Message, Origin, Text
from dpo_lightning.data.formats.tool_calls import convert_arguments, takes_text
from dpo_lightning.errors import ExitCode, Problem, UserError

Template = Literal["auto", "chat", "raw"]
SpecialTokens = Literal["refuse", "neutralize"]

SENTINEL = re.compile("([\ud800-\udbff][\udc00-\udfff])")
"""Two surrogates stand for a neutralized control token while a template renders: no valid text holds any."""

SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer; this floor does not import transformers."""

    chat_template: Any
    eos_token: str
    eos_token_id: int
    bos_token: str | None
    bos_token_id: int | None
    unk_token_id: int | None
    added_tokens_decoder: dict[int, Any]

    def __call__(self, text: str, **options: Any) -> Any:
        """Encode a text; the result holds `input_ids`."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages."""

    def get_chat_template(self, chat_template: Any = None, tools: Any = None) -> str:
        """The template that renders, of several."""

    def decode(self, token_ids: Any) -> str:
        """The text of ids."""


@dataclass(frozen=True)
class Renderer:
    """A tokenizer, and how prompts and answers are put into it. Training and generation share it."""

    tokenizer: Tokenizer
    template: Template = "auto"
    special_tokens: SpecialTokens = "refuse"
    end_ids: frozenset[int] = field(default_factory=frozenset)
    """Ids that end an answer besides the tokenizer's EOS (a generation config may list several)."""

    day: date | None = None
    """The day that a template writes which writes the date; None is the day of the rendering."""

    _dated: dict[bool, dict[str, str]] = field(default_factory=dict)
    """The options with which a template writes the day, without and with tools."""

    def messages(self, text: Text, role: str) -> tuple[Message, ...] | None:
        """The text as chat messages, or None where it is read raw."""
        if not isinstance(text, str):
            return text
        chat = self.template == "chat" or (self.template == "auto" and bool(self.tokenizer.chat_template))
        return ({"role": role, "content": text},) if chat else None

    def prompt_ids(self, prompt: Text, tools: Sequence[Any] = (), origin: Origin | None = None) -> list[int]:
        """Ids of a prompt up to where the model's answer begins, the same in training and in generation."""
        messages = self.messages(prompt, "user")
        if messages is None:
            if tools:
                raise UserError(
                    ExitCode.DATA,
                    Problem("the row has tools, which only a chat template writes, and is read raw", str(origin or "")),
                    fix="--data.chat_template FILE (and no --data.template raw), or remove the column",
                )
            return [*self.raw_prefix, *self.encode(self._guarded(str(prompt), origin))]
        return self.chat_ids(messages, tools, origin, add_generation_prompt=True)

    def chat_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any],
        origin: Origin | None,
        *,
        add_generation_prompt: bool,
    ) -> list[int]:
        """Ids of rendered messages; BOS and EOS are the template's own."""
        return self.encode(self.chat_text(messages, tools, origin, add_generation_prompt=add_generation_prompt))

    def chat_text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any],
        origin: Origin | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Rendered messages, with a sentinel for each neutralized control token in them."""
        if not self.tokenizer.chat_template:
            raise UserError(
                ExitCode.MODEL,
                Problem("the tokenizer has no chat template, and the rows are chats", where=str(origin or "")),
                fix="--data.chat_template FILE, or --data.template raw for rows of plain strings",
            )
        guarded = [self.guarded_message(message, origin) for message in messages]
        return self._render(guarded, self._guarded_value(list(tools), origin), origin, add_generation_prompt)

    def raw_ids(self, prompt: str, answer: str, origin: Origin | None = None) -> list[int]:
        """Ids of a plain prompt and answer read as one text."""
        return [*self.raw_prefix, *self.encode(self._guarded(prompt + answer, origin))]

    def strip_eos(self, answer: str) -> str:
        """The answer without an EOS that was written out at its end: exactly one is added later."""
        return answer.removesuffix(self.tokenizer.eos_token)

    def encode(self, text: str) -> list[int]:
        """Ids of a text whose neutralized control tokens become plain text."""
        ids: list[int] = []
        for piece, control in self._pieces(text):
            options = {"split_special_tokens": True} if control else {}
            ids += token_ids(self.tokenizer, piece, **options)
        return ids

    def check_one_bos(self, ids: Sequence[int], origin: Origin | None = None) -> None:
        """Refuse a template that writes the BOS twice: models have seen one.

        Raises:
            UserError: 67.
        """
        bos = self.tokenizer.bos_token_id
        if bos is not None and list(ids[:2]) == [bos, bos]:
            raise UserError(
                ExitCode.MODEL,
                Problem(f"the chat template writes {self.tokenizer.bos_token}, the BOS, twice", str(origin or "")),
                fix="--data.chat_template with one that writes it once",
            )

    @cached_property
    def stops(self) -> frozenset[int]:
        """Every id that ends an answer."""
        return self.end_ids | {self.tokenizer.eos_token_id}

    @cached_property
    def unknown_id(self) -> int | None:
        """The id for what the tokenizer lacks, where it stands for nothing else."""
        unknown = self.tokenizer.unk_token_id
        return None if unknown in self.stops | {self.tokenizer.bos_token_id} else unknown

    @cached_property
    def raw_prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts before a plain text: its BOS, or nothing."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        return tuple(whole[: whole.index(plain[0])])

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        """Strings that the tokenizer reads as control tokens, longest first."""
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(sorted((str(token) for token in added if token.special), key=len, reverse=True))

    @cached_property
    def calls_as_text(self) -> bool:
        """Whether the template takes the arguments of tool calls as JSON text, not as objects."""
        return takes_text(partial(rendered, self.tokenizer, tokenize=False))

    @property
    def wrote_date(self) -> bool:
        """Whether `day` stands in what was rendered so far."""
        return any(self._dated.values())

    def guarded_message(self, message: Message, origin: Origin | None) -> dict[str, Any]:
        """A message as the template is given it: no EOS at the end of an answer, its control tokens guarded."""
        content = message.get("content")
        if isinstance(content, str) and message["role"] == "assistant":
            message = {**message, "content": self.strip_eos(content)}
        plain = {key: value for key, value in self._called(message).items() if key != TRAIN}
        return self._guarded_value(plain, origin)

    def _called(self, message: Message) -> Message:
        """The message with the arguments of its tool calls as the template takes them."""
        return convert_arguments(message, as_text=self.calls_as_text) if message.get("tool_calls") else message

    def converts(self, *texts: Text) -> bool:
        """Whether a tool call in these has its arguments in another form than the template takes."""
        messages = (message for text in texts if not isinstance(text, str) for message in text)
        return any(self._called(message) != message for message in messages)

    def _guarded_value(self, value: Any, origin: Origin | None) -> Any:
        """A message or a tool whose every text is guarded: templates also write out calls, names and schemas."""
        if isinstance(value, str):
            return self._guarded(value, origin)
        if isinstance(value, Mapping):
            return {self._guarded(str(key), origin): self._guarded_value(item, origin) for key, item in value.items()}
        return [self._guarded_value(item, origin) for item in value] if isinstance(value, (list, tuple)) else value

    def _guarded(self, text: str, origin: Origin | None) -> str:
        """Refuse control tokens in a user's text, or stand a sentinel in for each: they could forge a turn."""
        if SURROGATE.search(text):
            raise UserError(
                ExitCode.DATA,
                Problem("a text is not valid Unicode", where=str(origin or ""), text=text),
                fix="write it in UTF-8",
            )
        for k, control in enumerate(self.control_tokens):
            if control not in text:
                continue
            if self.special_tokens == "refuse":
                raise UserError(
                    ExitCode.DATA,
                    Problem(f"control token {control} in a text", where=str(origin or ""), text=text),
                    fix="remove it, or --data.special_tokens neutralize to read it as plain text",
                )
            text = text.replace(control, chr(0xD800 + k // 1024) + chr(0xDC00 + k % 1024))
        return text

    def _pieces(self, text: str) -> Iterable[tuple[str, bool]]:
        """The text cut at its sentinels: pieces to encode, and whether each is a neutralized control token."""
        for piece in SENTINEL.split(text):
            if SENTINEL.fullmatch(piece):
                yield self.control_tokens[(ord(piece[0]) - 0xD800) * 1024 + ord(piece[1]) - 0xDC00], True
            elif piece:
                yield piece, False

    def _render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[Any],
        origin: Origin | None,
        generation: bool,
    ) -> str:
        from jinja2 import TemplateError

        render: Callable[..., str] = partial(rendered, self.tokenizer)
        try:
            written = self._day_written(tools)
            text = render(messages, tools=tools or None, tokenize=False, add_generation_prompt=generation, **written)
        except (TemplateError, TypeError, ValueError) as error:
            if not self._takes_a_chat():
                raise UserError(
                    ExitCode.MODEL,
                    Problem(f"the chat template renders no conversation: {error}", template_source(self.tokenizer)),
                    fix="mend the template, or give another by --data.chat_template FILE",
                ) from None
            raise UserError(
                ExitCode.DATA if origin else ExitCode.MODEL,
                Problem(f"the chat template refuses the conversation: {error}", where=str(origin or "")),
                fix=f"{_remedy(error, messages)}, or give a template that takes it by --data.chat_template FILE",
            ) from None
        check_rendering(messages, tools, text, origin)
        if tools and generation and self._renders(messages, add_generation_prompt=True, **written) == text:
            raise left_out("the tools", name_of(tools[0]), origin)  # whose names a message may hold as well
        return text

    def _day_written(self, tools: Sequence[Any]) -> dict[str, str]:
        """The options with which the template writes `day`; none where it writes no date."""
        if self.day is not None and bool(tools) not in self._dated:
            source = self.tokenizer.get_chat_template(tools=list(tools) or None)
            self._dated[bool(tools)] = dated(source, self.day)
        return self._dated.get(bool(tools), {})

    def _takes_a_chat(self) -> bool:
        """Whether the template renders a plain exchange: what it refuses is then the row's own fault."""
        exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return self._renders(exchange) is not None

    def _renders(self, messages: Sequence[dict[str, Any]], **options: Any) -> str | None:
        """What the template makes of messages, or None where it fails."""
        try:
            return rendered(self.tokenizer, messages, tokenize=False, **options)
        except Exception:  # a template may raise anything
            return None


def _remedy(error: Exception, messages: Sequence[Mapping[str, Any]]) -> str:
    """What may be wrong with messages that a template refuses."""
    first = next((message["role"] for message in messages if message["role"] not in ("system", "developer")), "")
    if first == "assistant":
        return "write a user's turn before the assistant's first"
    if type(error).__name__ != "TemplateError":  # not of the template's own raise_exception
        return "mend the values in the row's messages that the template reads"
    return "mend the order of roles in the row"
