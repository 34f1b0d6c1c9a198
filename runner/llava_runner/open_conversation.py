"""Opens a package with what computes here: the C++ engine, or ExecuTorch's Python runtime."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from llava_runner.checks import MAX_THREADS, whole_number
from llava_runner.contract import TOKENIZER_BIN, TOKENIZER_JSON
from llava_runner.conversation import Conversation
from llava_runner.engine_library import ENGINES, PYTHON_RUNTIME, EngineName, find_library
from llava_runner.errors import PackageError, PromptError
from llava_runner.paths import with_home
from llava_runner.program_file import check_whole, find_program, find_tokenizer
from llava_runner.timings import Stage

BUILD = "runner/build.sh native builds the C++ engine, and pip install llava-runner[python] installs the Python one"


def open_conversation(
    package: str | Path,
    *,
    tokenizer: str | Path | None = None,
    cpu_threads: int | None = None,
    check: bool = False,
    engine: EngineName | None = None,
    draft_model_path: str | Path | None = None,
) -> Conversation:
    """Open a package, as ``Session.load`` says."""
    if engine not in (None, *ENGINES):
        raise PromptError(f"engine {engine!r}: it must be one of {', '.join(ENGINES)}")
    if cpu_threads is not None:
        cpu_threads = whole_number("cpu_threads", cpu_threads, least=1, most=MAX_THREADS)
    load = Stage()
    with load.measure():
        program_path = find_program(with_home(str(package)))
        tokenizer_path = with_home(str(tokenizer)) if tokenizer else None
        draft_path = with_home(str(draft_model_path)) if draft_model_path else None
        library = find_library()
        has_runtime = importlib.util.find_spec("executorch") is not None
        if engine is None:
            is_possible = library is not None and PYTHON_RUNTIME not in sys.modules
            # Where there is nothing else, the engine says what it lacks of a tokenizer.
            is_better = not has_runtime or _engine_reads(tokenizer_path, program_path.parent)
            engine = "cpp" if is_possible and is_better else "python"
        if engine == "cpp":
            if library is None:
                raise PackageError(f"the C++ engine is not here; {BUILD}")
            from llava_runner.engine import Engine
            from llava_runner.engine_conversation import EngineConversation

            opened = Engine(
                program_path,
                library=library,
                tokenizer=tokenizer_path,
                cpu_threads=cpu_threads or 0,
                check=check,
                draft_model_path=draft_path,
            )
            return EngineConversation(opened, load=load)
        if not has_runtime:
            raise PackageError(f"there is nothing to compute with; {BUILD}")
        from llava_runner.draft_model import DraftModel, find_draft
        from llava_runner.model_conversation import ModelConversation
        from llava_runner.program import Program
        from llava_runner.tokenizer_file import load_tokenizer

        # The tokenizers come first, so that a missing one is found before gigabytes are loaded.
        opened_tokenizer = load_tokenizer(tokenizer_path or find_tokenizer(program_path.parent))
        if draft_path:
            draft_path = find_draft(draft_path, tokenizer=opened_tokenizer)
        if check:
            check_whole(program_path)
        program = Program.open(program_path, cpu_threads=cpu_threads)
        if not program.card.num_image_tokens:
            raise PackageError(
                f"{program_path} is a language model without a vision encoder; it can draft for another: "
                "--draft-model-path"
            )
        draft = None
        if draft_path and program.card.logits_to_keep > 1:
            if check:
                check_whole(draft_path)
            draft = DraftModel(Program.open(draft_path), vocab_size=opened_tokenizer.vocab_size)
        return ModelConversation(program, tokenizer=opened_tokenizer, load=load, draft=draft)


def _engine_reads(tokenizer: Path | None, folder: Path) -> bool:
    """Return whether the C++ engine can read a tokenizer, or the one that it finds in a package's folder."""
    if tokenizer is None:
        return (folder / TOKENIZER_BIN).exists() or (folder / TOKENIZER_JSON).exists()
    return tokenizer.suffix in (".bin", ".json")
