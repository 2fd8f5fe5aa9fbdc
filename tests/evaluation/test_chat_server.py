"""The client of chat servers: what is sent, and what a server that is down, busy or another one comes to."""

import threading

import pytest
from support.chat_servers import Cut, completion, serve
from support.refusals import refused

from dpo_lightning.errors import ExitCode
from dpo_lightning.evaluation.chat_server import ChatRequest, ChatServer
from dpo_lightning.evaluation.endpoint import KEY_VARIABLE
from dpo_lightning.sampling import Sampling

CHAT = [{"role": "user", "content": "안녕?"}]
SAMPLING = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, seed=1)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses between tries, which take no time here."""
    taken = []
    monkeypatch.setattr("time.sleep", taken.append)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return taken


def ask(server, model=None):
    """The text of an answer."""
    return ChatServer(server.url, model).answer(ChatRequest(CHAT, 46), SAMPLING).text


def test_what_is_sent():
    with serve(lambda payload: completion("네")) as server:
        assert ask(server, model="m") == "네"
        ((path, headers, payload),) = server.asked
    assert path == "/v1/chat/completions"
    assert payload == {
        "model": "m",
        "messages": CHAT,
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 46,
    }
    assert "Authorization" not in headers, "no token of a hub is sent to any server"


def test_a_key_is_sent_where_it_is_set(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "k")
    with serve(lambda payload: completion("")) as server:
        ask(server, model="m")
        assert server.asked[0][1]["Authorization"] == "Bearer k"


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t"])
def test_white_space_around_a_key_is_left_out(monkeypatch, end):
    monkeypatch.setenv(KEY_VARIABLE, f"sk-secret{end}")
    with serve(lambda payload: completion("")) as server:
        ask(server, model="m")
        assert server.asked[0][1]["Authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize("middle", ["\n", "\r\n", "\x07", "\x7f", "열쇠", "\udcff"])
def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch, middle):
    monkeypatch.setenv(KEY_VARIABLE, f"sk-se{middle}cret")
    said = refused(ChatServer, "http://127.0.0.1:8000", code=ExitCode.CONFIG)
    assert KEY_VARIABLE in said
    assert "sk-" not in said
    assert "cret" not in said


def test_a_redirection_is_not_followed(monkeypatch):
    """Its target would get the key, and the prompt."""
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    with serve(lambda _: completion("yes")) as other:
        with serve(lambda _: (302, {"Location": f"{other.url}/v1/chat/completions"})) as server:
            assert "302" in refused(ask, server, code=ExitCode.CONFIG)
        assert other.asked == []


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_address_may_be_written_in_several_ways(end):
    with serve(lambda payload: completion("x")) as server:
        assert ChatServer(server.url + end).answer(ChatRequest(CHAT, 0), SAMPLING).text == "x"
        assert [path for path, *_ in server.asked] == ["/v1/models", "/v1/chat/completions"]
        assert server.asked[1][2]["model"] == "served"


def test_another_path_is_kept():
    assert ChatServer("https://host/openai/v2").base == "https://host/openai/v2"


@pytest.mark.parametrize(
    "url",
    [
        "host:8000",
        "ftp://host",
        "file:///etc/passwd",
        "http://",
        "http://:8000",
        "http://127.0.0.1/모델",
        "http://호스트/v1",
        "http://[::1",
        "http://localhost:80a/v1",
        "http://localhost:99999/v1",
        "http://local host/v1",
        "http://127.0.0.1:8000/v1 ",
        "http://a..b/v1",
        "http://host/v1?version=1",
        "http://host/v1#part",
    ],
)
def test_what_is_no_url(url):
    assert url in refused(ChatServer, url, code=ExitCode.CONFIG)


def test_control_characters_in_a_url():
    refused(ChatServer, "http://host/\nv1", code=ExitCode.CONFIG)


@pytest.mark.parametrize("url", ["http://user:secret@host/v1", "http://user:secret@host:80a/v1"])
def test_a_password_in_a_url_is_not_shown(url):
    assert "secret" not in refused(ChatServer, url, code=ExitCode.CONFIG)


def test_a_busy_server_is_tried_again(pauses):
    left = [503, 429, 500]
    with serve(lambda payload: (left.pop(), {}) if left else completion("x")) as server:
        assert ask(server, model="m") == "x"
    assert pauses == [1, 2, 4]


def test_a_server_that_was_never_reached(pauses):
    with serve(lambda payload: completion("x")) as server:
        pass
    said = refused(ask, server, code=ExitCode.DEVICE)
    assert "does not answer (" in said
    assert server.url in said
    assert pauses == [1, 2, 4, 8, 16]


def test_a_server_that_goes_down():
    """It may be up again when the same command is started again."""
    with serve(lambda payload: completion("x")) as server:
        client = ChatServer(server.url)
        assert client.name == "served"
    assert "does not answer (" in refused(client.answer, ChatRequest(CHAT, 0), SAMPLING, code=ExitCode.RESUMABLE)


def test_a_server_that_stays_busy():
    with serve(lambda payload: (503, {})) as server:
        assert "503" in refused(lambda: ask(server, model="m"), code=ExitCode.RESUMABLE)


def test_a_reply_that_takes_too_long(pauses):
    waiting = threading.Event()
    with serve(lambda payload: (waiting.wait(30), completion("x"))[1]) as server:
        client = ChatServer(server.url, "m", timeout=0.05, tries=1)
        assert "timed out" in refused(client.answer, ChatRequest(CHAT, 0), SAMPLING, code=ExitCode.DEVICE)
        waiting.set()


def test_a_request_that_is_refused_is_not_repeated(pauses):
    with serve(lambda payload: (404, {"error": "no model m"})) as server:
        said = refused(lambda: ask(server, model="m"), code=ExitCode.CONFIG)
    assert "404" in said
    assert "no model m" in said
    assert pauses == []


OTHERS = [b"<html>", {}, {"choices": []}, [1], {"choices": [{"message": None}]}, b"[" * 99999, b"\xff"]


@pytest.mark.parametrize("content", [*OTHERS, {"error": {"code": 429}}])
def test_a_server_of_another_kind(content, pauses):
    with serve(lambda payload: (200, content)) as server:
        assert "no chat completion" in refused(lambda: ask(server, model="m"), code=ExitCode.MODEL)
    assert len(pauses) == 5


@pytest.mark.parametrize("content", [*OTHERS, {"error": {"code": 429}}, Cut(b'{"choices": [{"mess')])
def test_a_bad_reply_in_between_is_tried_again(content, pauses):
    """Such as a page of a gateway, or a body whose connection was closed."""
    replies = [(200, content), completion("x")]
    with serve(lambda payload: replies.pop(0)) as server:
        assert ask(server, model="m") == "x"
    assert pauses == [1]


def test_bodies_that_are_always_cut():
    """The server may have a fault, but it is one with the right API as far as is known."""
    with serve(lambda payload: (200, Cut(b'{"choices": [{"mess'))) as server:
        assert "more expected" in refused(lambda: ask(server, model="m"), code=ExitCode.RESUMABLE)


def test_a_server_that_lists_no_model(pauses):
    with serve(lambda payload: completion("x")) as server:
        server.model = None
        said = refused(lambda: ask(server), code=ExitCode.MODEL)
    assert "no list of models" in said
    assert "name" in said


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "real"}], "real"),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "real"}],
            "real",
        ),
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "one\ntwo"),
    ],
)
def test_the_text_of_an_answer(content, text):
    with serve(lambda payload: completion(content)) as server:
        assert ask(server, model="m") == text


@pytest.mark.parametrize(
    ("reason", "ended"), [("stop", True), ("length", False), ("tool_calls", None), (None, None), ([], None)]
)
def test_whether_an_answer_ended(reason, ended):
    with serve(lambda payload: completion("x", finish_reason=reason)) as server:
        assert ChatServer(server.url, "m").answer(ChatRequest(CHAT, 0), SAMPLING) == ("x", ended)


def test_tools_and_their_calls_are_sent():
    """As the API has them: each tool with its type, and the arguments of a call as JSON text."""
    schema = {"name": "find", "parameters": {"type": "object"}}
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": {"word": "네"}}}
    chat = [*CHAT, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with serve(lambda payload: completion("x")) as server:
        for tools in ([schema], [{"type": "function", "function": schema}]):
            ChatServer(server.url, "m").answer(ChatRequest(chat, 0, tools), SAMPLING)
        sent = [payload for _, _, payload in server.asked]
    assert [each["tools"] for each in sent] == [[{"type": "function", "function": schema}]] * 2
    (found,) = sent[0]["messages"][1]["tool_calls"]
    assert found["function"] == {"name": "find", "arguments": '{"word": "네"}'}
