"""`compare` from the command line: result files and model folders, each judge, and what is refused."""

import io
import json
import sys
from pathlib import Path

import pytest
from support.answers import make_result
from support.chat_servers import completion, serve
from support.classifiers import make_classifier, save
from support.command_line import Bench, json_lines, pairs, refused, run

from dpo_lightning.evaluation.result_file import read_result

PROMPTS = ["What is 46?", "수도는?", [{"role": "user", "content": "Hello"}]]
CPU = ("--accelerator", "cpu", "--precision", "32-true")


@pytest.fixture
def files(place):
    """Result files of three models in the working folder."""
    for nth, answers in enumerate((["46", "서울", "Hi"], ["47", "부산", "Hi"], ["x", "y", "z"])):
        make_result(place / f"{nth}.json", list(zip(PROMPTS, answers, strict=True)))
    return place


@pytest.fixture(scope="module")
def bench(tiny_llama, tmp_path_factory):
    """A DPO run of a few steps."""
    bench = Bench(tmp_path_factory.mktemp("compare"), tiny_llama)
    assert bench.fit("--trainer.max_epochs=2").code == 0
    return bench


def compare(*args, judge="reward_model", output="c.json"):
    return run("compare", *args, "--judge", judge, "--output", output, *CPU)


def read(name="c.json"):
    return json.loads(Path(name).read_text("utf-8"))


def test_a_reward_model_judges_files(files):
    model = save(files / "reward", make_classifier())
    ran = compare("0.json", "1.json", "2.json", "--judge_model", model)
    assert ran.code == 0, ran
    assert "A 0.json  against  B 1.json" in ran.out
    assert "strength (Bradley-Terry)" in ran.out
    report = read()
    assert report["made_by"]["judge"]["model"] == model
    assert [model["name"] for model in report["models"]] == ["A 0.json", "B 1.json", "C 2.json"]
    assert report["models"][0]["sha256"] == read("0.summary.json")["items"]["sha256"]
    for row in report["rows"]:
        first, second, _ = row["scores"]
        assert row["outcomes"][0] == (first > second) + 0.5 * (first == second)
    assert report["rows"][2]["outcomes"][0] == 0.5
    assert "<title>Comparison of A 0.json" in (files / "c.html").read_text("utf-8")
    again = read()
    assert compare("0.json", "1.json", "2.json", "--judge_model", model).code == 0
    assert read() == again


def test_a_server_judges_files(files):
    with serve(lambda payload: completion("[[2]]")) as server:
        ran = compare("0.json", "1.json", "--judge_model", server.url, judge="llm")
        assert ran.code == 0, ran
        assert "orders disagree 2" in ran.out
        assert len(server.asked) == 5
        ran = compare("0.json", "1.json", "--judge_model", server.url, judge="llm")
        assert (ran.code, len(server.asked)) == (0, 6), "the verdicts are kept"
    assert (files / "c.verdicts.jsonl").exists()


def test_the_judges_prompt_may_be_a_file(files):
    (files / "own.txt").write_text("OWN {prompt}|{answer_1}|{answer_2}", "utf-8")
    with serve(lambda payload: completion("[[tie]]")) as server:
        options = ("--judge_model", server.url, "--judge_name", "m", "--judge_prompt", "own.txt")
        assert compare("0.json", "1.json", *options, judge="llm").code == 0
        texts = [payload["messages"][0]["content"] for _, _, payload in server.asked]
    assert sorted(texts) == sorted(
        ["OWN What is 46?|46|47", "OWN What is 46?|47|46", "OWN 수도는?|서울|부산", "OWN 수도는?|부산|서울"]
    )


def test_a_local_model_judges_files(files, tiny_llama):
    ran = compare("0.json", "2.json", "--judge_model", tiny_llama, "--judge_tokens", 2, judge="llm")
    refused(ran, 65, "256 positions")
    (files / "own.txt").write_text("{prompt}|{answer_1}|{answer_2}", "utf-8")
    options = ("--judge_model", tiny_llama, "--judge_tokens", 2, "--judge_prompt", "own.txt")
    ran = compare("0.json", "2.json", *options, judge="llm")
    assert ran.code == 0, ran
    assert "without a verdict 3, replies without a verdict 18" in ran.out


def test_a_person_judges_files(files, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n"))
    ran = compare("0.json", "1.json", judge="person")
    refused(ran, 75, "stopped before comparison 2 of 2")
    monkeypatch.setattr(sys, "stdin", io.StringIO("s\n"))
    ran = compare("0.json", "1.json", judge="person")
    assert ran.code == 0, ran
    assert read()["comparisons"][0]["prompts"] == 2
    assert read()["comparisons"][0]["judge"] == {"skipped": 1}


def test_a_model_against_itself(files, bench):
    model = bench.folder / "run" / "final_model"
    ran = compare("0.json", "0.json", "--judge_model", model, "--max_length", 128, judge="implicit")
    assert ran.code == 0, ran
    assert "all answers are equal" in ran.out


def test_implicit_scores_are_those_of_evaluate(bench, place):
    """The chosen answers against the rejected ones: the scores are their log-ratios, found by another way."""
    model = bench.folder / "run" / "final_model"
    data = bench.folder / "eval.jsonl"
    ran = run(
        "evaluate", "--model", model, "--data", data, "--output", "e.json", "--no_generate", *CPU, "--max_length", 128
    )
    assert ran.code == 0, ran
    items = read_result("e.json").items
    for name in ("chosen", "rejected"):
        make_result(place / f"{name}.json", [(item["prompt"], item[name]) for item in items])
    ran = compare("chosen.json", "rejected.json", "--judge_model", model, "--max_length", 128, judge="implicit")
    assert ran.code == 0, ran
    report = read()
    for item, row in zip(items, report["rows"], strict=True):
        ratios = [item[f"{name}_logps"] - item[f"reference_{name}_logps"] for name in ("chosen", "rejected")]
        assert row["scores"] == pytest.approx(ratios, abs=1e-4)
        assert row["scores"][0] - row["scores"][1] == pytest.approx(item["logratio_margin"], abs=1e-4)
    assert report["comparisons"][0]["wins"] == sum(item["logratio_margin"] > 0 for item in items)
    assert report["made_by"]["judge"]["reference"] == str(bench.model)


def test_an_implicit_judge_takes_messages(bench, files):
    model = bench.folder / "run" / "final_model"
    ran = compare(
        "0.json",
        "2.json",
        "--judge_model",
        model,
        "--judge_reference",
        bench.model,
        "--max_length",
        128,
        judge="implicit",
    )
    assert ran.code == 0, ran
    assert all(score != 0 for row in read()["rows"] for score in row["scores"])


def test_an_implicit_judge_needs_a_reference(files, tiny_llama):
    ran = compare("0.json", "1.json", "--judge_model", tiny_llama, "--max_length", 128, judge="implicit")
    refused(ran, 64, "needs a reference", "--judge_reference")


def test_model_folders_answer_the_prompts(bench, place):
    """With the same seeds, so that a model against itself gives equal answers; again, and nothing is generated."""
    data = json_lines(place / "prompts.jsonl", [{"prompt": "What is 46?"}, {"prompt": "Hello"}])
    model = bench.folder / "run" / "final_model"
    options = (bench.model, model, bench.model, "--data", data, "--max_new_tokens", 6, "--max_length", 128)
    options += ("--judge_model", model)
    ran = compare(*options, judge="implicit")
    assert ran.code == 0, ran
    report = read()
    assert [model["file"] for model in report["models"]] == ["c.A.jsonl", "c.B.jsonl", "c.C.jsonl"]
    assert report["comparisons"][1]["equal"] == 2
    assert report["models"][1]["made_by"]["model"]["path"] == str(model)
    assert report["models"][0]["made_by"]["sampling"]["max_new_tokens"] == 6
    before = (place / "c.A.jsonl").stat().st_mtime_ns
    assert compare(*options, judge="implicit").code == 0
    assert (place / "c.A.jsonl").stat().st_mtime_ns == before


def test_a_checkpoint_answers_and_judges(bench, place):
    """As the model of its run, which has the same weights at the end."""
    data = json_lines(place / "prompts.jsonl", [{"prompt": "What is 46?"}, {"prompt": "Hello"}])
    run_folder = bench.folder / "run"
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    options = (bench.model, checkpoint, run_folder / "final_model", "--data", data, "--max_new_tokens", 6)
    scores = []
    for judge in (checkpoint, run_folder / "final_model"):
        ran = compare(*options, "--max_length", 128, "--judge_model", judge, judge="implicit")
        assert ran.code == 0, ran
        assert read()["comparisons"][2]["equal"] == 2
        scores.append([score for row in read()["rows"] for score in row["scores"]])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    gone = compare(
        bench.model, "run/none.ckpt", "--data", data, "--max_new_tokens", 6, judge="person", output="gone.json"
    )
    refused(gone, 66, "the checkpoint does not exist", "run/none.ckpt")


def test_prompts_of_pairs_are_used(bench, place):
    options = (bench.model, bench.folder / "run" / "final_model", "--data", bench.folder / "eval.jsonl")
    ran = compare(
        *options,
        "--limit_rows",
        2,
        "--max_new_tokens",
        2,
        "--max_length",
        128,
        "--judge_model",
        bench.folder / "run" / "final_model",
        judge="implicit",
    )
    assert ran.code == 0, ran
    assert read()["prompts"] == 2


HH = [
    {"chosen": f"\n\nHuman: Hi {n}\n\nAssistant: good", "rejected": f"\n\nHuman: Hi {n}\n\nAssistant: bad"}
    for n in range(2)
]


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (HH, ()),
        ([{"query": row["prompt"], "topic": n} for n, row in enumerate(pairs(2))], ("--columns.prompt", "query")),
        ([{"query": "Hi", "topic": 1}, {"query": 5}], ("--data.columns.prompt=query", "--bad_rows", "drop")),
    ],
    ids=["transcripts", "a column of another name", "a bad row"],
)
def test_prompts_of_rows_without_a_column_prompt(tiny_llama, place, rows, options):
    data = json_lines(place / "rows.jsonl", rows)
    small = ("--data", data, "--max_new_tokens", 2, "--max_length", 128, "--judge_model", tiny_llama)
    reward = save(place / "reward", make_classifier())
    ran = compare(tiny_llama, tiny_llama, *small, "--judge_model", reward, *options)
    assert ran.code == 0, ran
    assert read()["prompts"] == (1 if "drop" in options else 2)
    assert read_result("c.A.jsonl").items[0]["chosen"] is None


def test_an_unknown_column_is_named_by_an_option_that_exists(tiny_llama, place):
    data = json_lines(place / "rows.jsonl", [{"query": "Hi"}, {"query": "Hello"}])
    reward = save(place / "reward", make_classifier())
    ran = compare(tiny_llama, tiny_llama, "--data", data, "--judge_model", reward)
    refused(ran, 65, "--data.columns.prompt")


def test_prompts_that_a_judge_cannot_render(bench, files):
    """The row is named, and the remedies are options of compare."""
    model = bench.folder / "run" / "final_model"
    chats = [[{"role": "critic", "content": "Hi"}], [{"role": "user", "content": "Hi <|im_end|>"}]]
    for nth in "ab":
        make_result(files / f"{nth}.json", [(chat, nth) for chat in chats])
    options = ("a.json", "b.json", "--judge_model", model, "--max_length", 128)
    refused(compare(*options, judge="implicit"), 65, "rows.jsonl:2", "--data.special_tokens neutralize")
    ran = compare(*options, "--data.special_tokens", "neutralize", judge="implicit")
    assert ran.code == 0, ran
    refused(compare(*options[:4], "--max_length", 3, judge="implicit"), 65, "rows.jsonl:2")


def test_what_is_refused(files, tiny_llama):
    refused(compare("0.json", "1.json"), 64, "needs a model", "--judge_model PATH")
    refused(compare("0.json", judge="person"), 64, "1 models")
    refused(compare("0.json", "none.json", judge="person"), 66, "none.json")
    refused(compare("0.json", "1.json", "--judge_tokens", 0, judge="person"), 64, "--judge_tokens")
    refused(compare("0.json", "1.json", "--requests", 0, judge="person"), 64, "--requests")
    refused(compare("0.json", tiny_llama, judge="person"), 64, "--data")
    refused(compare("0.json", "1.json", judge="person", output="c.txt"), 64, "--output comparison.json")
    refused(compare("0.json", "1.json", "--judge", "coin", judge="person"), 64, "coin")
    refused(compare("0.json", "1.json", judge="llm"), 64, "PATH or URL")
    refused(compare("0.json", "none.json", "--judge_model", "http://[::1", judge="llm"), 64, "URL")
    before = Path("0.json").read_bytes()
    for name in ("0.json", "0.html"):
        refused(
            compare("0.json", "1.json", judge="person", output=name), 73, "something else than a comparison", "0.json"
        )
    assert Path("0.json").read_bytes() == before
    (files / "notes.html").write_text("mine")
    refused(compare("0.json", "1.json", judge="person", output="notes.json"), 73, "notes.html")
    (files / "file").write_text("")
    refused(compare("0.json", "0.json", judge="person", output="file/c.json"), 73, "--output")


def test_other_sampling_is_refused_and_allowed(files):
    make_result(files / "o.json", [(prompt, "a") for prompt in PROMPTS], temperature=1.0)
    refused(compare("0.json", "o.json", judge="person"), 65, "temperature: 0.json has 0.7, o.json has 1.0", "--allow")
    with serve(lambda payload: completion("[[1]]")) as server:
        ran = compare("0.json", "o.json", "--allow", "sampling", "--judge_model", server.url, judge="llm")
    assert "note: temperature: 0.json has 0.7, o.json has 1.0" in ran.out


def test_a_file_of_another_program(files):
    json_lines(files / "other.jsonl", [{"prompt": prompt, "generated": "a"} for prompt in PROMPTS])
    with serve(lambda payload: completion("[[1]]")) as server:
        ran = compare("0.json", "other.jsonl", "--judge_model", server.url, judge="llm")
    assert ran.code == 0, ran
    assert "note: other.jsonl has no summary" in ran.out
    assert read()["models"][1]["made_by"] is None
