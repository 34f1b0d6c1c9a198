"""The C++ runner against the Python one: the same bytes, the same ids, the same answers."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import cmake
import numpy as np
import pytest
from PIL import Image

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.pte.package.tokenizer import write_tokenizer
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.errors import ImageError
from llava_runner.image import prepare_image
from llava_runner.prompt import chunk_text, prompt_chunks, question_chunks
from llava_runner.timings import peak_memory
from llava_runner.tokenizer import TextStream, Tokenizer
from llava_runner.tokenizer_file import load_tokenizer
from tests.conversations import card_of, conversations, with_template
from tests.integration.parity import assert_same_answers

ROOT = Path(__file__).parents[2]
CTEST = Path(cmake.CMAKE_BIN_DIR) / "ctest"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
ALPHABET = (
    "abcdefghijklmnopqrstuvwxyz      ABC0123456789.,:;!?'\"-\n\t"
    "äöüßéè是在有人🙂🚀👩‍👩‍👧\u0301\u200d\u00a0\u2028\x7f▁абв"
)
WORDS = ("A", "chat", "USER:", "ASSISTANT:", "What is", "image?", "</s>", "<s>", "<unk>", "<0x0A>", "<image>", "▁the")


@pytest.fixture
def parts(native_build):
    def call(*arguments, stdin: bytes = b"") -> bytes:
        done = subprocess.run([native_build / "build/parts", *map(str, arguments)], input=stdin, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def random_image(index: int, folder: Path) -> Path:
    """Return the path of an image: of many sizes, modes and formats, noisy or smooth."""
    generator = np.random.default_rng(index)
    width, height = (int(side) for side in generator.integers(20, 700, 2))
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if index % 2:
        image = image.resize((max(2, width // 20), max(2, height // 20))).resize((width, height))
    kind = index % 7
    path = folder / f"{index}{'.jpg' if kind in (1, 2) else '.ppm' if kind == 6 else '.png'}"
    if kind == 1:
        image.save(path, quality=int(generator.integers(30, 96)))
    elif kind == 2:
        exif = Image.Exif()
        exif[0x0112] = 1 + index // 7 % 8  # orientation
        image.save(path, exif=exif)
    elif kind == 3:
        image.convert("L").save(path)
    elif kind == 4:
        image.putalpha(Image.fromarray(generator.integers(0, 256, (height, width), dtype=np.uint8)))
        image.save(path)
    elif kind == 5:
        image.quantize(64).save(path)
    else:
        image.save(path)
    return path


def test_the_parts_programs_pass(native_build):
    done = subprocess.run(
        [CTEST, "--test-dir", native_build / "build", "--output-on-failure"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "100% tests passed" in done.stdout and "Test #2" in done.stdout


def test_images_are_prepared_to_the_same_bytes(parts, tmp_path):
    compared = 0
    for index in range(112):
        path = random_image(index, tmp_path)
        size, how = (56, 112, 336)[index % 3], ("pad", "crop")[index // 2 % 2]
        try:
            expected = prepare_image(path, image_size=size, image_mean=CLIP_MEAN, image_aspect_ratio=how)
        except ImageError:
            continue  # too thin
        assert parts("image", path, size, how) == expected.tobytes(), (index, path.name, size, how)
        compared += 1
    assert compared >= 100


def test_the_tensor_of_a_package_is_read(parts, tiny_package):
    expected = prepare_image(
        tiny_package.folder / "image.pt", image_size=112, image_mean=CLIP_MEAN, image_aspect_ratio="pad"
    )
    assert parts("image", tiny_package.folder / "image.pt", 112, "pad") == expected.tobytes()


def random_strings(count: int) -> list[str]:
    generator = random.Random(0)
    strings = []
    for index in range(count):
        if index % 3 == 0:
            strings.append("".join(generator.choice(ALPHABET) for _ in range(generator.randint(1, 40))))
        elif index % 3 == 1:
            strings.append(" ".join(generator.choice(WORDS) for _ in range(generator.randint(1, 12))))
        else:
            points = [generator.choice((generator.randint(1, 0xD7FF), generator.randint(0xE000, 0x10FFFF)))]
            points += [generator.randint(32, 0x2FF) for _ in range(generator.randint(0, 30))]
            strings.append("".join(map(chr, points)))
    return strings


def test_texts_become_the_same_ids_and_ids_the_same_texts(parts, tiny_package):
    path = tiny_package.folder / "tokenizer.bin"
    tokenizer = load_tokenizer(path)
    strings = random_strings(5000)
    lines = parts("encode", path, stdin="\0".join(strings).encode() + b"\0").decode().splitlines()
    found = [[int(token) for token in line.split()] for line in lines]
    assert found == [tokenizer.encode(text) for text in strings]

    generator = random.Random(1)
    found += [[generator.randrange(600) for _ in range(generator.randint(1, 30))] for _ in range(2000)]
    decoded = parts("decode", path, stdin="".join(f"{' '.join(map(str, ids))}\n" for ids in found).encode())
    for ids, line in zip(found, decoded.decode().splitlines(), strict=True):
        stream = TextStream(tokenizer)
        assert bytes.fromhex(line).decode() == "".join(map(stream.push, ids)) + stream.flush()


def test_both_runners_give_the_same_answers(llava_main, tiny_package, tmp_path):
    assert_same_answers([llava_main], tiny_package.program, scenes=15, folder=tmp_path)


ENDINGS = ("<|end|>", "</s>", "ASSISTANT:", "<image>", "<image><image>")


@pytest.mark.parametrize("scheme", ["first", "always", "never", "prepend"])
@pytest.mark.parametrize("name", ["phi3", "inst", "llama3"])
def test_turns_are_spelled_and_read_the_same(name, scheme, parts, tmp_path):
    folder = with_template(tmp_path / "model", name, prepend_scheme=scheme, rstrip=scheme == "always")
    checkpoint = open_checkpoint(str(folder))
    write_tokenizer(checkpoint.tokenizer, tmp_path)
    card, model = card_of(folder)
    if name == "inst":
        card = replace(card, prompt=replace(card.prompt, image_last=True, image_start="[", image_end="</s>"))
    elif name == "phi3":
        card = replace(card, prompt=replace(card.prompt, image_start="<|system|>", image_end="<|end|>"))
    tokenizer = ChatTokenizer.of(card, Tokenizer.from_model(model))
    generator = random.Random(scheme)
    lines, expected = [], []
    for asked in (turn for turns in conversations(60, seed=1) for turn in turns):
        is_question, before = generator.random() < 0.6, generator.choice((None, 300, 514))
        text = asked.question + (
            "" if is_question else generator.choice(("<|end|>", "</s>", "ASSISTANT:", "<image>", "<image><image>"))
        )
        num_images = text.count("<image>") if not is_question else 0
        if num_images == 0 and asked.has_image:
            num_images = generator.randint(1, 3)
        answer = [generator.randrange(card.vocab_size) for _ in range(8)]
        turn = {
            "text": text,
            "is_question": is_question,
            "num_images": num_images,
            "before": before,
            "answer": answer,
        }
        lines.append(json.dumps(turn))
        if is_question:
            chunks = question_chunks(text, template=card.prompt, num_images=num_images, first_turn=before is None)
        else:
            chunks = prompt_chunks(text, template=card.prompt, num_images=num_images)
        stream = TextStream(tokenizer)
        shown = "".join(map(stream.push, answer)) + stream.flush()
        ids = tokenizer.encode_turn(chunks, before=before)
        expected.append({"texts": list(map(chunk_text, chunks)), "ids": ids, "shown": shown})
    content = (card.to_json() + "\0" + "".join(f"{line}\n" for line in lines)).encode()
    found = parts("turn", tmp_path / "tokenizer.bin", stdin=content)
    assert list(map(json.loads, found.splitlines())) == expected


def ask(llava_main: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([llava_main, *flags], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model-path": "nowhere.pte"}, "nowhere.pte does not exist"),
        ({"--model-path": "{folder}/tokenizer.bin"}, "is not an ExecuTorch program"),
        ({"--tokenizer-path": "{folder}/llava.pte"}, "is not a tokenizer that can be read (tokenizer.bin or"),
        (
            {"--tokenizer-path": "{folder}/tokenizer.model"},
            "a tokenizer.model of SentencePiece; the C++ runner",
        ),
        ({"--image": "nowhere.png"}, "nowhere.png does not exist"),
        ({"--image": "{folder}/tokenizer.bin"}, "neither JPEG nor PNG"),
        ({"--prompt": ""}, "--prompt is missing"),
        ({"--prompt": "<image> <image>"}, "<image> 2 times"),
        ({"--temperature": "-1"}, "temperature -1"),
        ({"--seq-len": "10"}, "the limit is 10"),
        ({"--model-path": "{folder}/.."}, "has no program; a package has one .pte"),
        ({"--nothing": "1"}, "there is no option --nothing"),
        ({"--workspace-sharing": "some"}, "choose from disabled, per_model, global"),
        ({"--packed-cache-path": ""}, "--packed-cache-path: the path is empty"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(changes, message, llava_main, tiny_package):
    flags = {
        "--model-path": "{folder}/llava.pte",
        "--image": "{folder}/image.png",
        "--prompt": "What is in the image?",
        "--packed-cache-path": "off",
        **changes,
    }
    done = ask(llava_main, *(f"{flag}={value.format(folder=tiny_package.folder)}" for flag, value in flags.items()))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and done.stdout == ""


def test_a_missing_image_is_noticed_before_the_program(llava_main):
    done = ask(llava_main, "--model-path=nowhere.pte", "--image=nowhere.png", "--prompt=What?")
    assert (done.returncode, done.stderr) == (2, "error: nowhere.png does not exist\n")


@pytest.mark.parametrize("program", ["llava_main", "llava_bench"])
def test_output_that_cannot_be_written_is_an_error(program, native_build, tiny_package):
    flags = [f"--model-path={tiny_package.program}"]
    flags += ["--prompt=What?", "--max-new-tokens=2"] if program == "llava_main" else ["--prompt-tokens=5", "--depth=0"]
    with open("/dev/full", "w") as full:
        done = subprocess.run([native_build / program, *flags], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the output cannot be written")


def test_closed_descriptors_do_no_harm(llava_main, tiny_package):
    """Otherwise the next file that is opened, such as the packed weights, would get what is printed."""
    package = [f"--model-path={tiny_package.program}", "--prompt=What?", "--max-new-tokens=3"]
    assert ask(llava_main, *package).returncode == 0
    before = {path: path.read_bytes() for path in tiny_package.folder.iterdir() if path.is_file()}
    command = f"{shlex.join([str(llava_main), *package])} >&- 2>&- <&-"
    assert subprocess.run(["bash", "-c", command]).returncode == 0
    assert {path: path.read_bytes() for path in tiny_package.folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("memory", "memory has run out"),
        ("bug", "index 7 of 3; this is a bug of the program, please report it"),
        ("number", "something unknown was thrown; this is a bug of the program, please report it"),
    ],
)
def test_whatever_is_thrown_ends_in_one_line(what, message, native_build):
    done = subprocess.run([native_build / "build/parts", "throw", what], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (70, f"error: {message}\n")


def test_peak_memory_is_that_of_the_process_alone(native_build, tiny_package):
    """The system counts what started a process into ru_maxrss, and this one has loaded PyTorch."""
    work = ["--prompt-tokens=10", "--decode-tokens=1", "--depth=0", "--packed-cache-path=off"]
    done = ask(native_build / "llava_bench", f"--model-path={tiny_package.program}", *work)
    measured = json.loads(done.stdout)
    ours = peak_memory()
    assert ours is not None
    assert measured["anonymous_bytes"] < measured["peak_bytes"] < ours / 2


def test_a_flag_without_its_value_is_named(llava_main):
    done = ask(llava_main, "--model-path=llava.pte", "--prompt")
    assert (done.returncode, done.stderr) == (2, "error: --prompt needs a value; --help lists the options\n")


def test_every_spelling_of_a_flag_is_accepted(llava_main, tiny_package):
    folder = tiny_package.folder
    published = ask(
        llava_main,
        f"--model_path={folder}/llava.pte",
        f"--tokenizer_path={folder}/tokenizer.bin",
        f"--image_path={folder}/image.pt",
        "--prompt=ASSISTANT:",
        "--seq_len=768",
        "--temperature=0",
    )
    assert published.returncode == 0 and published.stdout.strip(), published.stderr
    files = ["--model-path", f"{folder}/llava.pte", "--image", f"{folder}/image.pt", "--threads", "2"]
    # A repeated flag has its last value, and a value may look like a flag.
    for flags in (
        ["--model-path", str(folder), "--prompt=ASSISTANT:"],  # the folder of a package
        ["--prompt", "--max_new_tokens", "--prompt", "ASSISTANT:"],
        ["--cpu_threads=1", "--prompt=ASSISTANT:"],
    ):
        assert ask(llava_main, *files, *flags).stdout == published.stdout
    assert "there is no option --image-pat;" in ask(llava_main, "--image_pat=x").stderr


@pytest.mark.parametrize("program", ["llava_main", "llava_bench"])
def test_help_fits_a_terminal_and_names_every_flag(program, native_build):
    done = ask(native_build / program, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == ask(native_build / program, "-h").stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"usage: {program} --model-path PATH") and max(map(len, lines)) <= 80
    flags = {line.split()[0] for line in lines if line.startswith("  --")}
    common = {"--model-path", "--image", "--threads", "--packed-cache-path", "--check", "--workspace-sharing"}
    own = {
        "llava_main": "--tokenizer-path --prompt --interactive --image-aspect-ratio --seq-len --max-new-tokens --stop "
        "--json --logprobs --draft-max --draft-model-path --temperature --top-k --top-p --min-p --repetition-penalty "
        "--seed",
        "llava_bench": "--prompt-tokens --decode-tokens --depth --rows --accepted --draft-max --seed --etdump-path",
    }
    assert flags == common | {"--version"} | set(own[program].split())


@pytest.mark.parametrize("program", ["llava_main", "llava_bench"])
def test_the_version_is_the_projects_and_executorchs(program, native_build):
    pyproject = next(path for path in (ROOT / "runner/pyproject.toml", ROOT / "pyproject.toml") if path.exists())
    (own,) = re.findall(r'^version = "(.*)"$', pyproject.read_text(), re.MULTILINE)
    done = ask(native_build / program, "--version")
    assert (done.returncode, done.stdout) == (0, f"{program} {own} (ExecuTorch {version('executorch')})\n")


@pytest.mark.parametrize(
    "flag", ["--workspace-sharing=disabled", "--workspace-sharing=global", "--threads=1", "--threads=3"]
)
def test_the_answer_does_not_depend_on_how_it_is_computed(flag, llava_main, tiny_package):
    flags = [f"--model-path={tiny_package.program}", f"--image={tiny_package.folder}/image.png", "--prompt=What?"]
    plain, other = ask(llava_main, *flags), ask(llava_main, *flags, flag)
    assert (other.returncode, other.stdout) == (0, plain.stdout) and plain.stdout.strip()
