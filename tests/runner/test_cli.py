import io
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from llava_runner.cli import main
from llava_runner.session import Session
from tests.runner.conftest import train_tokenizer

QUESTION = "What is in the image?"


@pytest.fixture
def package(package):
    """Return the folder of a package with an image in it."""
    Image.new("RGB", (40, 30), (10, 200, 30)).save(package / "image.png")
    return package


@pytest.fixture
def run(package, capsys):
    """Return a function that runs the command here and returns exit code, stdout and stderr.

    The options given to it replace the defaults. A list is for a flag that is given several times.
    """

    def run(**options):
        defaults = {
            "model_path": package / "llava.pte",
            "image_path": package / "image.png",
            "prompt": QUESTION,
            "max_new_tokens": 10,
        }
        options = {name: value for name, value in {**defaults, **options}.items() if value is not None}
        flags = [
            (name, each) for name, value in options.items() for each in (value if type(value) is list else [value])
        ]
        with pytest.raises(SystemExit) as stop:
            main([f"--{name}={value}" for name, value in flags])
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def test_answer_on_stdout_and_timings_on_stderr(run, package):
    session = Session.load(package)
    expected = "".join(session.generate(package / "image.png", QUESTION, max_new_tokens=10))
    code, out, err = run()
    assert (code, out) == (0, expected + "\n")
    assert all(line.startswith("llava_print_timings: ") for line in err.splitlines())


def test_options_reach_the_session(run, package):
    session = Session.load(package, tokenizer=package / "tokenizer.model")
    pieces = session.generate(
        package / "image.png",
        "<image>\nIs it? ASSISTANT:",
        max_new_tokens=20,
        temperature=1.5,
        top_p=0.9,
        top_k=30,
        min_p=0.01,
        repetition_penalty=1.4,
        seed=5,
        image_aspect_ratio="crop",
        seq_len=40,
    )
    _, out, _ = run(
        tokenizer_path=package / "tokenizer.model",
        prompt=r"<image>\nIs it? ASSISTANT:",  # as a shell hands it over
        max_new_tokens=20,
        temperature=1.5,
        top_p=0.9,
        top_k=30,
        min_p=0.01,
        repetition_penalty=1.4,
        seed=5,
        image_aspect_ratio="crop",
        seq_len=40,
    )
    assert out == "".join(pieces) + "\n"


def test_image_tensor_and_no_image(run, package):
    torch.save(torch.zeros(3, 28, 20, dtype=torch.uint8), package / "image.pt")
    code, with_tensor, _ = run(image_path=package / "image.pt")
    assert code == 0
    code, without_image, _ = run(image_path=None)
    assert code == 0
    assert with_tensor != without_image


def test_several_images_of_one_turn(run, package):
    Image.new("RGB", (20, 9), (200, 30, 60)).save(package / "second.png")
    images = [package / "image.png", package / "second.png"]
    session = Session.load(package)
    expected = {order: session.ask(images[::order], QUESTION, max_new_tokens=10) for order in (1, -1)}
    for order, text in expected.items():
        assert run(image_path=images[::order])[:2] == (0, text + "\n")
    code, _, err = run(image_path=images, prompt="<image> Which?")
    assert (code, err) == (2, "error: the prompt has <image> 1 times, and the number of images is 2\n")


def test_stop_strings_end_the_answer(run):
    _, whole, _ = run()
    first, second = whole[3:5], whole[6:8]
    code, out, _ = run(stop=["never", second, first])
    assert (code, out) == (0, whole[: min(whole.index(first), whole.index(second))] + "\n")
    assert run(prompt=r"Two\nlines", stop=[r"\n"])[0] == 0


def test_json_has_the_whole_answer(run, package):
    session = Session.load(package)
    text = session.ask(package / "image.png", QUESTION, max_new_tokens=10, logprobs=2)
    answer = session.last
    assert answer.logprobs is not None
    code, out, err = run(json="true", logprobs=2)
    assert (code, err, out.count("\n"), out.isascii()) == (0, "", 1, True)
    found = json.loads(out)
    assert list(found) == ["text", "ids", "stop_reason", "timings", "draft", "logprobs"]
    assert (found["text"], found["ids"], found["stop_reason"]) == (text, list(answer.ids), "length")
    stages = ("image", "prompt", "sample", "eval")
    names = ["load_ms", *(f"{stage}_{what}" for stage in stages for what in ("ms", "tokens")), "total_ms"]
    assert list(found["timings"]) == names
    counts = {stage: getattr(answer.timings, stage).count for stage in stages}
    assert {stage: found["timings"][f"{stage}_tokens"] for stage in stages} == counts
    assert found["draft"] == {"drafted": answer.timings.drafted, "accepted": answer.timings.accepted}
    assert found["timings"]["total_ms"] >= found["timings"]["load_ms"] > 0
    assert found["logprobs"] == [
        {"id": it.id, "logprob": it.logprob, "top": [{"id": top.id, "logprob": top.logprob} for top in it.top]}
        for it in answer.logprobs
    ]
    assert "logprobs" not in json.loads(run(json="true")[1])


def test_a_conversation_in_json_is_one_line_an_answer(run, monkeypatch):
    lines = b"Is it?\n\n/reset\nWhat is in the image?"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    code, out, err = run(json="true", interactive="true", max_new_tokens=4)
    answers = [json.loads(line) for line in out.splitlines()]
    assert (code, len(answers)) == (0, 3) and all(len(answer["ids"]) == 4 for answer in answers)
    assert err == "error: the question is empty; /quit ends the conversation\nnote: all is forgotten, the image too\n"


def test_reset_forgets_an_image_that_nothing_was_asked_about(run, package, monkeypatch):
    lines = f"/reset\nWhy?\n/image {package / 'image.png'}\n/reset\nWhy?"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    _, out, _ = run(json="true", interactive="true", prompt=None, max_new_tokens=4)  # with --image
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["timings"]["image_tokens"] for answer in answers] == [0, 0]
    assert answers[0]["ids"] == answers[1]["ids"]


def test_full_context_is_mentioned(run):
    _, _, err = run(max_new_tokens=None)
    assert err.startswith("note: the answer ends where the context of 128 is full\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_path": "nowhere.pte"}, "nowhere.pte"),
        ({"tokenizer_path": "nowhere.bin"}, "nowhere.bin does not exist"),
        ({"image_path": "nowhere.png"}, "nowhere.png does not exist"),
        ({"image_path": __file__}, "is not an image"),
        ({"prompt": ""}, "--prompt is missing"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "circle " * 10_000}, "positions"),
        ({"temperature": -1}, "temperature -1: it must be 0"),
        ({"temperature": "nan"}, "--temperature: 'nan' is not a number"),
        ({"top_p": 0}, "top_p 0: it must be above 0"),
        ({"top_k": -1}, "top_k -1: it must be at least 0"),
        ({"min_p": 1.5}, "min_p 1.5: it must be from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty 0: it must be above 0"),
        ({"stop": ""}, "a stop string is empty"),
        ({"stop": list("abcdefghijklmnopq")}, "there are 17 stop strings; at most 16 are taken"),
        ({"stop": "a\udcff"}, "a stop string is not valid Unicode at character 1"),
        ({"logprobs": 3}, "--logprobs needs --json"),
        ({"logprobs": 101, "json": "true"}, "--logprobs: 101 must be from 0 to 100"),
        ({"seed": -5}, "--seed: -5 must be from 0 to 2^64 - 1"),
        ({"seq_len": 0}, "--seq-len: 0 must be at least 1"),
        ({"seq_len": 129}, "seq_len 129: it must be from 1 to the context, 128"),
        ({"max_new_tokens": 0}, "--max-new-tokens: 0 must be at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, options, message):
    code, out, err = run(**options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_tokenizer_of_another_vocabulary(run, tmp_path):
    other = train_tokenizer(tmp_path / "other.model", user_defined_symbols=["<sep>"], vocab_size=421)
    code, _, err = run(tokenizer_path=other)
    assert code == 2
    assert err == (
        "error: the tokenizer has 421 tokens and the model was trained with 420; "
        "use the tokenizer that was exported with it\n"
    )


def test_help_does_not_wait_for_torch():
    code = """
import sys
from llava_runner.cli import main
try:
    main(["--help"])
finally:
    print([name for name in ("torch", "numpy", "PIL", "sentencepiece") if name in sys.modules], file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert "llava run package --image photo.jpg" in result.stdout
    assert result.stderr == "[]\n"


def test_module_is_the_console_script(package):
    command = [sys.executable, "-m", "llava_runner", "--model_path", package, "--prompt", "Hello", "--seed=x"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --seed: 'x' is not a whole number") and result.stderr.count("\n") == 1
