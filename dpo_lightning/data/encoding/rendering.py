"""Converts texts to token ids: chat templates, control tokens, BOS and EOS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property, partial
from typing import Any, Literal, Protocol

from dpo_lightning.data.encoding.chat_templates import build_date_options, locate_template
from dpo_lightning.data.encoding.control_tokens import ControlTokens, SpecialTokens
from dpo_lightning.data.encoding.kept_texts import check_rendering, get_tool_name, omission_error
from dpo_lightning.data.encoding.neutral_texts import NeutralEncoder
from dpo_lightning.data.encoding.template_limits import render_template, renders_chat
from dpo_lightning.data.encoding.text_encoder import TextEncoder
from dpo_lightning.data.examples import TRAIN, Message, Origin, Text
from dpo_lightning.data.kinds.tool_calls import convert_arguments, takes_text
from dpo_lightning.errors import ExitCode, Problem, UserError

Template = Literal["auto", "chat", "raw"]


class Tokenizer(Protocol):
    """The interface of a Hugging Face tokenizer that is used here, as the data path does not import transformers."""

    chat_template: Any
    eos_token: str
    eos_token_id: int
    bos_token: str | None
    bos_token_id: int | None
    unk_token_id: int | None
    added_tokens_decoder: dict[int, Any]

    def __call__(self, text: str, **options: Any) -> Any:
        """Encode a text; the ids are under `input_ids` of the result."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages with the chat template, as text with `tokenize=False`."""

    def get_chat_template(self, chat_template: Any = None, tools: Any = None) -> str:
        """Return the source of the template that `apply_chat_template` would choose."""

    def decode(self, token_ids: Any) -> str:
        """Convert ids to text, control tokens included."""


@dataclass(frozen=True)
class Renderer:
    """Converts prompts and answers to ids of a tokenizer, in the same way for training and generation."""

    tokenizer: Tokenizer
    template: Template = "auto"
    special_tokens: SpecialTokens = "refuse"
    end_ids: frozenset[int] = field(default_factory=frozenset)
    """Ids that end an answer besides the tokenizer's EOS: a generation config may list several."""

    day: date | None = None
    """The date for a template that writes one; None is the date of the rendering."""

    _date_options: dict[bool, dict[str, str]] = field(default_factory=dict)
    """Options with which the template writes `day`, by whether there are tools: these may have another template."""

    def to_messages(self, text: Text, role: str) -> tuple[Message, ...] | None:
        """Convert a text to messages; None if it is used as raw text."""
        if not isinstance(text, str):
            return text
        chat = self.template == "chat" or (self.template == "auto" and bool(self.tokenizer.chat_template))
        return ({"role": role, "content": text},) if chat else None

    def encode_prompt(self, prompt: Text, tools: Sequence[Any] = (), origin: Origin | None = None) -> list[int]:
        """Encode a prompt up to where the model's answer begins.

        Raises:
            UserError: 65 for a control token in the prompt, or tools without a chat template; 67 for the template.
        """
        messages = self.to_messages(prompt, "user")
        if messages is not None:
            return self.encode_chat(messages, tools, origin, add_generation_prompt=True)
        return [*self.raw_prefix, *self.encode(self.render_raw_prompt(str(prompt), tools, origin))]

    def render_raw_prompt(self, prompt: str, tools: Sequence[Any] = (), origin: Origin | None = None) -> str:
        """Guard a prompt that is used as raw text: use `raw_prefix` and `encode` for the ids.

        Raises:
            UserError: 65 for a control token in the prompt, or tools, which only a chat template writes.
        """
        if tools:
            raise UserError(
                ExitCode.DATA,
                Problem("the row has tools, but no chat template is used to write them", str(origin or "")),
                fix="--data.chat_template FILE (without --data.template raw), or remove the column",
            )
        return self.control.guard_text(prompt, origin)

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any],
        origin: Origin | None,
        *,
        add_generation_prompt: bool,
    ) -> list[int]:
        """Render and encode messages; BOS and EOS are those that the template writes."""
        return self.encode(self.render_chat(messages, tools, origin, add_generation_prompt=add_generation_prompt))

    def render_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any],
        origin: Origin | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Render messages, with a sentinel for each neutralized control token: use `encode` for the ids."""
        self.check_template(origin)
        guarded = [self.guard_message(message, origin) for message in messages]
        return self.render_guarded(guarded, self.control.guard(list(tools), origin), origin, add_generation_prompt)

    def check_template(self, origin: Origin | None) -> None:
        """Check that there is a template to render messages with.

        Raises:
            UserError: 67 if there is none.
        """
        if not self.tokenizer.chat_template:
            raise UserError(
                ExitCode.MODEL,
                Problem("the row has messages, but the tokenizer has no chat template", where=str(origin or "")),
                fix="--data.chat_template FILE, or rows of strings (from pairs of transcripts by --data.format pairs)",
            )

    def render_raw(self, prompt: str, answer: str, origin: Origin | None = None) -> str:
        """Join and guard a raw prompt and answer, without EOS: use `raw_prefix` and `encode` for the ids."""
        return self.control.guard_text(prompt + self.strip_eos(answer), origin)

    def strip_eos(self, answer: str) -> str:
        """Remove an EOS that is written out at the end of an answer: exactly one is added later."""
        return answer.removesuffix(self.tokenizer.eos_token)

    def encode(self, text: str) -> list[int]:
        """Encode a text; neutralized control tokens are encoded as plain text.

        Raises:
            UserError: 67 if the Rust code of the tokenizer panics.
        """
        (ids,) = self.encode_texts([text])
        if isinstance(ids, UserError):
            raise ids
        return ids

    def encode_texts(self, texts: Sequence[str]) -> list[list[int] | UserError]:
        """Encode several texts, which is faster in one call; an error is returned in place of the ids of its text."""
        split = [[(text, False)] if text and text.isascii() else list(self.control.split(text)) for text in texts]
        ordinary = iter(self._encoder.encode(["".join(dict(pieces)) for pieces in split if not has_control(pieces)]))
        return [self._neutral.encode(pieces) if has_control(pieces) else next(ordinary) for pieces in split]

    def check_one_bos(self, ids: Sequence[int], origin: Origin | None = None) -> None:
        """Refuse ids that begin with the BOS twice: models are pretrained with one.

        Raises:
            UserError: 67 if they do.
        """
        bos = self.tokenizer.bos_token_id
        if bos is not None and list(ids[:2]) == [bos, bos]:
            raise UserError(
                ExitCode.MODEL,
                Problem(f"the chat template writes {self.tokenizer.bos_token}, the BOS, twice", str(origin or "")),
                fix="give a template that writes it once by --data.chat_template FILE",
            )

    @cached_property
    def stops(self) -> frozenset[int]:
        """Ids that end an answer: the tokenizer's EOS and `end_ids`."""
        return self.end_ids | {self.tokenizer.eos_token_id}

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of the unknown token; None if there is none, or the same id is also the BOS or ends an answer."""
        unknown = self.tokenizer.unk_token_id
        return None if unknown in self.stops | {self.tokenizer.bos_token_id} else unknown

    @cached_property
    def raw_prefix(self) -> tuple[int, ...]:
        """Ids that the tokenizer adds before a raw text: its BOS, or none."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        return tuple(whole[: whole.index(plain[0])])

    @cached_property
    def control(self) -> ControlTokens:
        """The control tokens of the tokenizer."""
        return ControlTokens(self.tokenizer, self.special_tokens)

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer)

    @cached_property
    def _neutral(self) -> NeutralEncoder:
        return NeutralEncoder(self._encoder, self.control.texts)

    @cached_property
    def calls_as_text(self) -> bool:
        """Whether the template takes the arguments of tool calls as JSON text, not as objects."""
        return takes_text(partial(render_template, self.tokenizer, tokenize=False))

    @property
    def wrote_date(self) -> bool:
        """Whether a conversation that was rendered so far contains `day`."""
        return any(self._date_options.values())

    def guard_message(self, message: Message, origin: Origin | None) -> dict[str, Any]:
        """Prepare a message for the template: answers without EOS, control tokens refused or replaced by sentinels."""
        content = message.get("content")
        if isinstance(content, str) and message["role"] == "assistant":
            message = {**message, "content": self.strip_eos(content)}
        plain = {key: value for key, value in self._convert_calls(message).items() if key != TRAIN}
        return self.control.guard(plain, origin)

    def _convert_calls(self, message: Message) -> Message:
        """Convert the arguments of a message's tool calls to the form that the template takes."""
        return convert_arguments(message, as_text=self.calls_as_text) if message.get("tool_calls") else message

    def needs_conversion(self, *texts: Text) -> bool:
        """Whether a tool call in the texts has its arguments in another form than the template takes."""
        messages = (message for text in texts if not isinstance(text, str) for message in text)
        return any(self._convert_calls(message) != message for message in messages)

    def render_guarded(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[Any],
        origin: Origin | None,
        generation: bool,
    ) -> str:
        """Render guarded messages and check the result; an error is 65 for the row, or 67 for the template."""
        from jinja2 import TemplateError

        render: Callable[..., str] = partial(render_template, self.tokenizer)
        try:
            written = self._get_date_options(tools)
            text = render(messages, tools=tools or None, tokenize=False, add_generation_prompt=generation, **written)
        except (TemplateError, TypeError, ValueError) as error:
            if not renders_chat(self.tokenizer):  # the fault is in the template, not in the row
                raise UserError(
                    ExitCode.MODEL,
                    Problem(f"the chat template fails for any chat: {error}", locate_template(self.tokenizer)),
                    fix="correct the template, or give another by --data.chat_template FILE",
                ) from None
            raise UserError(
                ExitCode.DATA if origin else ExitCode.MODEL,
                Problem(f"the chat template rejects the conversation: {error}", where=str(origin or "")),
                fix=f"{_suggest_fix(error, messages)}, or give a template that takes it by --data.chat_template FILE",
            ) from None
        check_rendering(messages, tools, text, origin)
        if tools and generation and self._try_render(messages, add_generation_prompt=True, **written) == text:
            raise omission_error("the tools", get_tool_name(tools[0]), origin)  # a message may contain their names
        return text

    def _get_date_options(self, tools: Sequence[Any]) -> dict[str, str]:
        """Return the options with which the template writes `day`; empty if it writes no date."""
        if self.day is not None and bool(tools) not in self._date_options:
            source = self.tokenizer.get_chat_template(tools=list(tools) or None)
            self._date_options[bool(tools)] = build_date_options(source, self.day)
        return self._date_options.get(bool(tools), {})

    def _try_render(self, messages: Sequence[dict[str, Any]], **options: Any) -> str | None:
        """Render messages; None if the template fails."""
        try:
            return render_template(self.tokenizer, messages, tokenize=False, **options)
        except Exception:  # a template may raise anything
            return None


def has_control(pieces: Sequence[tuple[str, bool]]) -> bool:
    """Whether one of the pieces of a text is a neutralized control token."""
    return any(control for _, control in pieces)


def _suggest_fix(error: Exception, messages: Sequence[Mapping[str, Any]]) -> str:
    """Suggest how to correct messages that a template rejects."""
    first = next((message["role"] for message in messages if message["role"] not in ("system", "developer")), "")
    if first == "assistant":
        return "write a user's turn before the assistant's first"
    if type(error).__name__ != "TemplateError":  # raised by Jinja or Python, not by `raise_exception` in the template
        return "correct the values in the row's messages that the template reads"
    return "correct the order of roles in the row"
