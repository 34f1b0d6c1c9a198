import pytest

from llava_runner.errors import PackageError
from llava_runner.program_file import find_program


def test_a_file_is_the_program_whatever_its_name(tmp_path):
    path = tmp_path / "model.bin"
    path.touch()
    assert find_program(path) == path


def test_the_one_program_of_a_folder(tmp_path):
    for name in ("llava.pte", "llava.json", "tokenizer.model"):
        (tmp_path / name).touch()
    assert find_program(tmp_path) == tmp_path / "llava.pte"


def test_no_program_and_several(tmp_path):
    with pytest.raises(PackageError, match=r"has no program; a package has one \.pte, or name the file itself"):
        find_program(tmp_path)
    for name in ("b.pte", "a.pte"):
        (tmp_path / name).touch()
    with pytest.raises(PackageError, match=r"has 2 programs: a\.pte, b\.pte; a package has one"):
        find_program(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(PackageError, match="nowhere does not exist"):
        find_program(tmp_path / "nowhere")
