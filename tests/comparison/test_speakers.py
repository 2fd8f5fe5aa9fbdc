"""Language models that judge: servers and folders, and what becomes of replies that are late, refused or lost."""

import json
import threading

from support.chat_servers import completion, serve
from support.language_judges import BAD, GOOD, PROMPTS, for_good, judge
from support.refusals import refused

from dpo_lightning.comparison.judges.speakers import LocalSpeaker, ServerSpeaker
from dpo_lightning.errors import ExitCode
from dpo_lightning.evaluation.chat_server import ChatServer


def test_a_server_judges(tmp_path):
    with serve(lambda payload: completion(for_good(payload["messages"][0]["content"]))) as server:
        speaker = ServerSpeaker(ChatServer(server.url), requests=3)
        made = judge(tmp_path, speaker)
        assert made.decide(PROMPTS, [GOOD, BAD]).outcomes[0, 1] == [1, 1, 1]
        assert made.describe()["model"] == f"served at {server.url}/v1"
        assert len(server.asked) == 7


def test_a_server_that_goes_down_is_continued(tmp_path, monkeypatch):
    """What is kept is said, and only the rest is sent to it again."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    texts = []

    def reply(payload):
        if len(texts) == 3:
            return 503, {}
        texts.append(payload["messages"][0]["content"])
        return completion(for_good(texts[-1]))

    with serve(reply) as server:
        client = ChatServer(server.url, "m")
        said = refused(judge(tmp_path, ServerSpeaker(client, 1)).decide, PROMPTS, [GOOD, BAD], code=ExitCode.RESUMABLE)
        assert "3 of 6 verdicts are kept" in said
        server.reply = lambda payload: completion(
            for_good(texts.append(payload["messages"][0]["content"]) or texts[-1])
        )
        found = judge(tmp_path, ServerSpeaker(client, 1)).decide(PROMPTS, [GOOD, BAD])
    assert found.outcomes[0, 1] == [1, 1, 1]
    assert len(texts) == len(set(texts)) == 6


def test_replies_on_the_way_are_kept_when_one_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    all_are_sent = threading.Barrier(6)

    def reply(payload):
        all_are_sent.wait(60)
        return (503, {}) if "P q 1 worse" in payload["messages"][0]["content"] else completion("[[1]]")

    with serve(reply) as server:
        speaker = ServerSpeaker(ChatServer(server.url, "m", tries=1), requests=6)
        refused(judge(tmp_path, speaker).decide, PROMPTS, [GOOD, BAD], code=ExitCode.RESUMABLE)
    kept = [json.loads(line) for line in (tmp_path / "c.verdicts.jsonl").read_text().split("\n") if line]
    assert len(kept) == 5


def test_a_prompt_that_the_server_refuses_is_a_tie(tmp_path):
    """It is counted, and sent again by the next start alone; where all are refused, the reason is the error."""

    def reply(payload):
        text = payload["messages"][0]["content"]
        return (400, {"error": "too long"}) if " q " in text else completion(for_good(text))

    with serve(reply) as server:
        speaker = ServerSpeaker(ChatServer(server.url, "m"), 1)
        found = judge(tmp_path, speaker).decide(PROMPTS, [GOOD, BAD])
        assert found.outcomes[0, 1] == [1, 0.5, 1]
        counts = found.counts[0, 1]
        assert (counts["refused by the judge"], counts["without a verdict"]) == (1, 0)
        assert len(server.asked) == 6
        judge(tmp_path, speaker).decide(PROMPTS, [GOOD, BAD])
        assert len(server.asked) == 8
        said = refused(judge(tmp_path, speaker).decide, ["q"], [["good"], ["bad"]], code=ExitCode.CONFIG)
        assert "too long" in said


def test_a_prompt_that_is_too_long_for_a_local_model_is_a_tie(tmp_path, tiny_llama):
    speaker = LocalSpeaker(str(tiny_llama), "cpu", batch_size=2)
    made = judge(tmp_path, speaker, max_new_tokens=2)
    found = made.decide(["p", "long " * 300, "q"], [["good"] * 3, ["bad"] * 3])
    assert found.outcomes[0, 1] == [0.5, 0.5, 0.5]
    counts = found.counts[0, 1]
    assert counts["refused by the judge"] == 1
    assert (counts["without a verdict"], counts["replies without a verdict"]) == (2, 12)


def test_a_local_model_judges(tmp_path, tiny_llama):
    """A model of random weights has no verdicts, so all are ties; the same seed gives the same replies."""
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        speaker = LocalSpeaker(str(tiny_llama), "cpu", batch_size=2)
        found = judge(tmp_path / name, speaker, max_new_tokens=4).decide(["p"], [["good"], ["bad"]])
        assert (found.outcomes[0, 1], found.counts[0, 1]["without a verdict"]) == ([0.5], 1)
        files.append((tmp_path / name / "c.verdicts.jsonl").read_bytes())
    assert files[0] == files[1]


def test_a_local_judge_needs_a_chat_template(tiny_gpt2):
    assert "chat template" in refused(LocalSpeaker, str(tiny_gpt2), "cpu", code=ExitCode.MODEL)
