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
def package(tiny_pte, tokenizer_model, tmp_path):
    """Return a folder with a program, its tokenizer and an image."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "llava.pte").write_bytes(tiny_pte.read_bytes())
    (folder / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    Image.new("RGB", (40, 30), (10, 200, 30)).save(folder / "image.png")
    return folder


@pytest.fixture
def run(package, capsys):
    """Return a function that runs the command here and returns exit code, stdout and stderr.

    The options given to it replace the defaults.
    """

    def run(**options):
        defaults = {
            "model_path": package / "llava.pte",
            "image_path": package / "image.png",
            "prompt": QUESTION,
            "max_new_tokens": 10,
        }
        options = {name: value for name, value in {**defaults, **options}.items() if value is not None}
        with pytest.raises(SystemExit) as stop:
            main([f"--{name}={value}" for name, value in options.items()])
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
