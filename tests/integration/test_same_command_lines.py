"""Both runners take the same command lines, refuse the same in the same words, and hold the same conversations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llava_runner.session import Session

QUESTION = "--prompt=What is it?"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--seed", text] for text in ("", " 5", "5 ", "1_0", "0x10", "1e3", "5.", "nan", "-1", "+-1", f"{2**64}")),
        *([f"--max-new-tokens={text}"] for text in ("0", "-1", "+0", "1_0", "2147483648", "9" * 400, "ten", "٣")),
        *([f"--temperature={text}"] for text in ("nan", "inf", "-inf", "1e999", "1_0", "0x1p3", ".", "e5", "1e", " 1")),
        *(["--temperature", text] for text in ("-1", "-1e-9", "-x", "--seed")),
        *(["--top-p", text] for text in ("0", "1.0001", "-0.5", "-0")),
        *(["--top-k", text] for text in ("-1", "0.5", "2147483648", "", "ten")),
        *([f"--min-p={text}"] for text in ("-0.1", "1.0001", "nan", "")),
        *(["--repetition-penalty", text] for text in ("0", "-1", "-0", "inf", "1e999", "x")),
        *([f"--logprobs={text}", "--json"] for text in ("-1", "101", "1.5", "")),
        *(["--stop", "a", *flags] for flags in (["--stop="], ["--stop"], ["--stop=b"] * 16)),
        *([f"--draft-max={text}"] for text in ("-1", "16", "1.5", "")),
        *([f"--draft-model-path={text}"] for text in ("", "nowhere", "/usr", "{image}")),
        ["--model_draft="],
        ["--logprobs=0"],
        ["--logprobs=0", "--json", "--json=false"],
        ["--json=yes"],
        *([f"--threads={text}"] for text in ("0", "-1", "1025", "99999999999", "two")),
        *([f"--interactive={text}"] for text in ("", "yes", "1", "False", "perhaps")),
        *([flag] for flag in ("-x", "-", "-hx", "--nothing", "--temp=1", "--SEED=1", "---seed=1", "-seed=1")),
        *([flag] for flag in ("--help=no", "--version=3", "--seed", "--prompt", "--interactive=false")),
        *([flag, ""] for flag in ("--image", "--image_path", "--model_path", "--tokenizer-path")),
        ["--image-aspect-ratio", "square"],
        ["--image_aspect_ratio="],
        ["--prompt="],
        ["--prompt= \t\n"],
        ["--prompt=<image>"],
        ["--prompt=\u00a0<image>", "--image=nowhere.png"],
        ["--image=nowhere.png"],
        ["--image", "-nowhere.png"],
        ["--image={image}", "--image=nowhere.png"],
        ["--image={image}", "--image="],
        ["--image={image}", "--image_path", "{image}", "--prompt=<image>"],
        [flag for _ in range(12) for flag in ("--image", "{image}")],  # more than the context holds
        ["--model-path=nowhere.pte"],
        ["--tokenizer-path=nowhere.bin"],
        ["--seq-len=0"],
        ["--seq-len=100000"],
        ["--seq-len=10"],
    ],
    ids=str,
)  # fmt: skip
def test_the_same_mistakes_are_told_in_the_same_words(arguments, both, tiny_package):
    arguments = [argument.replace("{image}", f"{tiny_package.folder}/image.png") for argument in arguments]
    prompt = [] if any("--prompt" in argument or "--interactive" in argument for argument in arguments) else [QUESTION]
    python, cpp = both([f"--model-path={tiny_package.folder}", *prompt, *arguments])
    assert (python.code, cpp.code) == (2, 2)
    assert python.mistake == cpp.mistake


@pytest.mark.parametrize(
    "arguments",
    [
        *([f"--depth={text}"] for text in ("", ",", "0,", ",0", "0,,1", "0, 1", "0;1", "1_0", "2147483648")),
        *([f"--decode-tokens={text}"] for text in ("0", "-1", "1e3")),
        *([f"--prompt-tokens={text}"] for text in ("0", "1_0", "100000")),
        *([f"--depth={text}"] for text in ("-1", "768", "0,760")),
        ["--image=nowhere.png"],
        ["--image="],
        ["--dep=0"],
        ["--prompt-tokens=5", "--image={image}"],
        ["--etdump-path", ""],
        ["--etdump-path=/nowhere", "--image=nowhere.png"],
        ["-1"],
        ["word"],
        ["--depth", "0", "--", "--image"],
    ],
    ids=str,
)
def test_the_same_mistakes_in_timing(arguments, both, tiny_package):
    found = [argument.format(image=tiny_package.folder / "image.png") for argument in arguments]
    python, cpp = both([f"--model_path={tiny_package.folder}", *found], program="llava_bench")
    assert (python.code, cpp.code) == (2, 2)
    assert python.mistake == cpp.mistake


@pytest.mark.parametrize("program", ["llava_main", "llava_bench"])
def test_without_a_package_there_is_nothing_to_do(program, both):
    for arguments in ([], [QUESTION] if program == "llava_main" else ["--depth=0"]):
        python, cpp = both(arguments, program=program)
        assert (python.code, cpp.code) == (2, 2)
        assert "--model-path" in python.mistake and "--model-path is missing" in cpp.mistake


@pytest.mark.parametrize(
    "arguments", [["-h"], ["--help"], ["--threads=x", "-h", "--nothing"], ["--version", "--threads"]]
)
@pytest.mark.parametrize("program", ["llava_main", "llava_bench"])
def test_help_and_version_come_before_mistakes(program, arguments, both):
    for ended in both(arguments, program=program):
        assert (ended.code, ended.err) == (0, "") and ended.out
        assert ended.out.startswith("usage: ") is ("--version" not in arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prompt", "-x"],
        ["--prompt", "--max_new_tokens"],
        ["--prompt", "--"],
        ["--prompt=--help", "--"],
        [QUESTION, "--temperature=-0", "--seed=+007", "--max_new_tokens", "+5", "--top_p", "1.", "--seq-len=0768"],
        [QUESTION, "--max-new-tokens=9", "--max_new_tokens=3", "--temperature=1", "--temperature", ".0e5"],
        [QUESTION, "--interactive", "--interactive=false"],
        [QUESTION, "--prompt", r"Two\nlines? ASSISTANT:"],
        [QUESTION, "--stop", "--json", "--stop=[a, image]", "--stop", "is", "--top_k", "0", "--min-p=0"],
        [QUESTION, "--repetition_penalty=1.5", "--top-k=5"],
    ],
    ids=str,
)
def test_odd_command_lines_that_work(arguments, both, tiny_package):
    python, cpp = both([f"--model-path={tiny_package.folder}", *arguments], stdin=b"never read\n")
    assert (python.code, cpp.code) == (0, 0), (python, cpp)
    assert python.out == cpp.out and ">" not in python.out
    assert python.notes == cpp.notes == []


@pytest.mark.parametrize("options", [["--stop=triangle"], ["--repetition-penalty=3"], ["--repetition-penalty=0.5"]])
def test_answers_in_json_are_the_same(options, both, tiny_package):
    flags = [f"--model-path={tiny_package.folder}", f"--image={tiny_package.folder}/image.png", "--json"]
    questions = b"What is in the image?\n\nHow many shapes are there?\nWhere is the circle?\n/reset\nWhy?\n"
    flags += ["--interactive", "--logprobs=4", "--max-new-tokens=12", *options]
    python, cpp = both(flags, stdin=questions)
    assert python.notes == cpp.notes and len(python.notes) == 2 and "total" not in python.err + cpp.err
    found, expected = ([json.loads(line) for line in ended.out.splitlines()] for ended in (cpp, python))
    assert len(expected) == len(found) == 4
    assert [answer["stop_reason"] for answer in expected].count("stop") == (options == ["--stop=triangle"])
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other) and list(one["timings"]) == list(other["timings"])
        assert all(one[name] == other[name] for name in ("text", "ids", "stop_reason"))
        counts = [{key: it for key, it in each["timings"].items() if key.endswith("_tokens")} for each in (one, other)]
        # After /reset the C++ runner does not read again what its cache still holds of the beginning.
        assert counts[0] == counts[1] or one is found[3]
        assert one["draft"] == other["draft"]
        assert [token["id"] for token in one["logprobs"]] == one["ids"]
        for token, same in zip(one["logprobs"], other["logprobs"], strict=True):
            # The last bits of sums differ between the runners, and the unlikeliest tokens show it most.
            assert token["logprob"] == pytest.approx(same["logprob"], abs=0.3)
            values = [likely["logprob"] for likely in token["top"]]
            assert len(values) == len(same["top"]) == 4 and values == sorted(values, reverse=True)


SLIPS = [
    b"",
    b" \t ",
    b"caf\xc3\xa9 \xff?",
    b"cut \xe2\x82",
    b"zero\0byte",
    b"x" * 65537,
    b"/image",
    b"/image /nowhere.png",
    b"/image " + b"a" * 5000,
    b"/images",
    b"/",
    b"y " * 20000,
]


def test_a_conversation_survives_every_slip(both, tiny_package):
    image = str(tiny_package.folder / "image.png").encode()
    turns = [
        b"What is in the image?",
        b"\xc2\xa0",
        b"Is <image> a cat? ASSISTANT: no</s>\r",
        b" /quit",
        b"/image \t" + image + b" ",
    ]
    script = b"\n".join(line for turn in turns for line in (*SLIPS, turn)) + b"\nWhat is in the image?\n/quit\nnever"
    flags = [f"--model-path={tiny_package.folder}", f"--image={tiny_package.folder}/image.pt", "--interactive"]
    python, cpp = both([*flags, "--max-new-tokens=4"], stdin=script)
    assert (python.code, cpp.code) == (0, 0)
    assert python.out == cpp.out
    assert python.notes == cpp.notes and len(python.notes) == len(turns) * len(SLIPS) + 1
    assert sum(line.startswith("error: ") for line in python.notes) == len(turns) * len(SLIPS)
    assert python.err.count("total time") == cpp.err.count("total time") == len(turns)  # the last names an image


@pytest.mark.parametrize("how", ["prompt", "markers", "interactive"])
def test_several_images_are_shown_in_their_order(how, both, tiny_package, scenes):
    images = sorted(scenes.parent.glob("*.png"))[:2]
    marked = "USER: <image> and <image>\nWhat is in the image? ASSISTANT:"
    question = marked if how == "markers" else "What is in the image?"
    given = {"stdin": question.encode()} if how == "interactive" else {}
    found = []
    for shown in (images, images[::-1]):
        flags = [f"--image={shown[0]}", f"--image_path={shown[1]}", "--max-new-tokens=20"]
        flags += ["--interactive"] if given else [f"--prompt={question}"]
        with Session.load(tiny_package.folder) as session:
            expected = session.ask(shown, question, max_new_tokens=20)
        for ended in both([f"--model-path={tiny_package.folder}", *flags], **given):
            assert (ended.code, ended.notes) == (0, [])
            assert ended.out == (f"> {expected}\n> \n" if given else f"{expected}\n")
        found.append(expected)
    assert found[0] != found[1]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n/quit", b"\n/quit\nWhat?"])
def test_a_question_in_a_conversation_is_one_alone(end, both, tiny_package):
    """The first line gives the answer that ``--prompt`` gives, however the conversation ends."""
    flags = [f"--model-path={tiny_package.folder}", f"--image={tiny_package.folder}/image.png"]
    alone = both([*flags, "--prompt=What is in the image?"])[0].out
    for ended in both([*flags, "--interactive"], stdin=b"What is in the image?" + end):
        assert (ended.code, ended.notes) == (0, [])
        assert ended.out == f"> {alone}> " + ("" if end.startswith(b"\n/quit") else "\n")


def test_reset_forgets_an_image_that_nothing_was_asked_about(both, tiny_package):
    image = tiny_package.folder / "image.png"
    flags = [f"--model-path={tiny_package.folder}", f"--image={image}", "--interactive", "--json", "--max-new-tokens=4"]
    for ended in both(flags, stdin=f"/reset\nWhy?\n/image {image}\n/reset\nWhy?".encode()):
        first, second = (json.loads(line) for line in ended.out.splitlines())
        assert first["ids"] == second["ids"] and first["timings"]["image_tokens"] == 0


def test_a_full_context_is_told_and_reset_helps(both, tiny_package):
    script = b"circle " * 600 + b"\nAnd?\nWhat is that, then, if it is not a circle?\n/reset\nHow are you?\n"
    python, cpp = both([f"--model-path={tiny_package.folder}", "--interactive"], stdin=script)
    assert (python.code, python.notes) == (cpp.code, cpp.notes) == (0, python.notes)
    assert [line.split()[-1] for line in python.notes] == ["full", "afresh", "afresh", "too"]
    answers = [ended.out.splitlines()[-2].removeprefix("> > > ") for ended in (python, cpp)]
    assert answers[0] == answers[1] and answers[0].strip("> ")


def run_shell(command: Sequence[str | Path], redirection: str) -> subprocess.CompletedProcess[str]:
    """Run a command with redirections of a shell."""
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", *map(str, command)],
        capture_output=True,
        text=True,
    )


STREAMS = [
    (">&- 2>&- <&-", 0),
    ("2>&-", 0),
    ("> /dev/full", 2),
    ("2> /dev/full", 2),
    ("| true", 141),
    ("--interactive 0> /dev/null", 2),  # stdin that cannot be read
]


@pytest.mark.parametrize(
    ("runner", "redirection", "code"),
    [("python", *each) for each in STREAMS] + [("cpp", *each) for each in (*STREAMS, ("2>&1 | true", 141))],
)
def test_streams_that_are_closed_full_or_given_up(runner, redirection, code, native_build, tiny_package):
    command = [sys.executable, "-m", "llava_runner"] if runner == "python" else [native_build / "llava_main"]
    done = run_shell([*command, f"--model-path={tiny_package.folder}", QUESTION, "--max-new-tokens=3"], redirection)
    assert done.returncode == code
    lines = [line for line in done.stderr.splitlines() if not re.match("llava_print_timings|note: pack", line)]
    assert len(lines) == (redirection in ("> /dev/full", "--interactive 0> /dev/null")), done.stderr
    assert all(line.startswith("error: ") for line in lines)
    if redirection == "2>&-":
        assert done.stdout.count("\n") == 1


def test_timings_fit_a_narrow_terminal(both, tiny_package, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for ended in both([f"--model-path={tiny_package.folder}", QUESTION, f"--image={tiny_package.folder}/image.png"]):
        lines = [line for line in ended.err.splitlines() if not line.startswith("note: packing")]
        rows = [line.split() for line in lines]
        assert [row[0] for row in rows] == ["load", "image", "sample", "prompt", "eval", "total", "peak"]
        assert max(map(len, lines)) <= 40
        assert all(row[3].isdigit() and row[4].endswith("/s") for row in rows[1:5])


def test_a_tilde_is_the_home_folder(both, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = [f"--model-path={tmp_path}/x.pte", QUESTION, "--image=~/nowhere.png"]
    mistakes = {ended.mistake for ended in both(flags)}
    assert mistakes == {f"error: {tmp_path}/nowhere.png does not exist"}
