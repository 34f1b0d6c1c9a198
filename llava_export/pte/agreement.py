"""Says whether transformers reads a golden question as the export does, in a process that ends when it has said so.

``python -m llava_export.pte.agreement`` reads a function that opens the checkpoint, and the question, pickled, from
stdin. It writes the library's name, or an error, pickled, to stdout. transformers takes hundreds of megabytes, which
the process of the float model must not keep.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.processor import Processor, check_question
from llava_export.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Question:
    """A question for the float model: ``image`` uint8 ``[3, H, W]``, and the prompt's tokens before and after it.

    Without an image, ``image`` and ``ids_after`` are empty.
    A token of ``eos_ids`` ends the answer. ``texts`` are those that the tokens were made of, and ``chat_template`` the
    Jinja template that they are from, or None. With ``is_checked``, transformers must make the same tokens of them.
    """

    image: np.ndarray
    ids_before: list[int]
    ids_after: list[int]
    eos_ids: tuple[int, ...]
    texts: list[str]
    chat_template: str | None
    is_checked: bool


def agreement(open_checkpoint: Callable[[], Checkpoint], question: Question) -> str:
    """Return the name of the library that reads a question as the export does; "" where none is installed.

    Raises ``CheckpointError`` where the library reads it otherwise.
    """
    command = [sys.executable, "-m", "llava_export.pte.agreement"]
    done = subprocess.run(command, input=pickle.dumps((open_checkpoint, question)), stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise ChildProcessError(f"{' '.join(command[1:])} ended with code {done.returncode}")
    name, error = pickle.loads(done.stdout)
    if error is not None:
        raise CheckpointError(error)
    return str(name)


def agreement_here(checkpoint: Checkpoint, question: Question) -> str:
    """Return what ``agreement`` does, without a process of its own. Raises ``CheckpointError``."""
    return check_question(
        Processor.open(checkpoint),
        texts=question.texts,
        ids=(question.ids_before, question.ids_after)[: len(question.texts)],
        question=checkpoint.family.question,
        chat_template=question.chat_template,
        adds_bos=checkpoint.tokenizer.rules.adds_bos,
    )


def main() -> None:
    """Answer what is asked on stdin."""
    open_checkpoint, question = pickle.load(sys.stdin.buffer)
    name, reason = "", None
    try:
        name = agreement_here(open_checkpoint(), question)
    except CheckpointError as error:
        reason = str(error)
    sys.stdout.buffer.write(pickle.dumps((name, reason)))


if __name__ == "__main__":
    main()
