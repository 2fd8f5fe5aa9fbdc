"""The client of chat servers: what is sent, and what a server that is down, busy or another one comes to."""

import threading

import pytest
from support.chat_servers import completion, serve
from support.refusals import refused

from dpo_lightning.errors import ExitCode
from dpo_lightning.evaluation import chat_server
from dpo_lightning.evaluation.chat_server import KEY_VARIABLE, ChatServer
from dpo_lightning.sampling import Sampling

CHAT = [{"role": "user", "content": "안녕?"}]
SAMPLING = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, seed=1)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses between tries, which take no time here."""
    taken = []
    monkeypatch.setattr(chat_server.time, "sleep", taken.append)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return taken


def ask(server, **options):
    return ChatServer(server.url, **options).answer(CHAT, 46, SAMPLING)


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
        assert ChatServer(server.url + end).answer(CHAT, 0, SAMPLING) == "x"
        assert [path for path, *_ in server.asked] == ["/v1/models", "/v1/chat/completions"]
        assert server.asked[1][2]["model"] == "served"


def test_another_path_is_kept():
    assert ChatServer("https://host/openai/v2").base == "https://host/openai/v2"


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "file:///etc/passwd", "http://"])
def test_what_is_no_url(url):
    assert url in refused(ChatServer, url, code=ExitCode.CONFIG)


def test_a_busy_server_is_tried_again(pauses):
    left = [503, 429, 500]
    with serve(lambda payload: (left.pop(), {}) if left else completion("x")) as server:
        assert ask(server, model="m") == "x"
    assert pauses == [1, 2, 4]


def test_a_server_that_is_down(pauses):
    with serve(lambda payload: completion("x")) as server:
        pass
    said = refused(ask, server, code=ExitCode.RESUMABLE)
    assert "does not answer (" in said
    assert server.url in said
    assert pauses == [1, 2, 4, 8, 16]


def test_a_reply_that_takes_too_long(pauses):
    waiting = threading.Event()
    with serve(lambda payload: (waiting.wait(30), completion("x"))[1]) as server:
        client = ChatServer(server.url, "m", timeout=0.05, tries=1)
        assert "timed out" in refused(client.answer, CHAT, 0, SAMPLING, code=ExitCode.RESUMABLE)
        waiting.set()


def test_a_request_that_is_refused_is_not_repeated(pauses):
    with serve(lambda payload: (404, {"error": "no model m"})) as server:
        said = refused(lambda: ask(server, model="m"), code=ExitCode.CONFIG)
    assert "404" in said
    assert "no model m" in said
    assert pauses == []


@pytest.mark.parametrize(
    "content", [b"<html>", {}, {"choices": []}, [1], {"choices": [{"message": None}]}, b"[" * 99999]
)
def test_a_server_of_another_kind(content):
    with serve(lambda payload: (200, content)) as server:
        assert "no chat completion" in refused(lambda: ask(server, model="m"), code=ExitCode.MODEL)


def test_an_answer_without_text_is_empty():
    with serve(lambda payload: completion(None)) as server:
        assert ask(server, model="m") == ""
