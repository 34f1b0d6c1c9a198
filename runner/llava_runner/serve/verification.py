"""How a served package is verified: what its files say, and what ``llava verify`` finds."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from llava_runner.command import installed_commands
from llava_runner.contract import Manifest, golden_path, manifest_path
from llava_runner.errors import PackageError
from llava_runner.serve.child import END_WITH_PARENT, child_command
from llava_runner.serve.documented import Verdict
from llava_runner.serve.refusal import Refusal, stopping

CODE = "from llava_runner.command import main; main(['verify', sys.argv[1]])"
PLAIN = {"COLUMNS": "80", "NO_COLOR": "1"}  # environment variables, for output that is shown on the page


def verify_command(program: Path) -> str:
    """Return the command that compares a program with the original model, for a user to type."""
    is_alone = len(list(program.parent.glob("*.pte"))) == 1
    return f"llava verify {program.parent.resolve() if is_alone else program}"


def verification_of(program: Path, *, is_checked: bool) -> dict[str, str]:
    """Return what the files of a package say of it, and the command that compares it with the original model."""
    command = verify_command(program)
    try:
        manifest = Manifest.from_json(manifest_path(program).read_bytes())
        digest = manifest.files[program.name].sha256 if is_checked else manifest.structure_sha256
    except (OSError, PackageError, KeyError):
        return {"text": "The package has no manifest: nothing says what its program should be.", "command": command}
    what = "All of the program" if is_checked else "The program's structure, without its weights,"
    text = f"{what} was compared with the manifest at the start (SHA-256 {digest})."
    if golden_path(program).is_file():
        text += " The package has a record of what the original model saw and answered; the command compares with it."
    return {"text": text, "command": command}


class Verification:
    """``llava verify`` on a package, in a process of its own. There is one at a time, and its verdict is kept."""

    def __init__(self, program: Path, *, seconds: float) -> None:
        """Look whether the program can be verified here. ``seconds`` limit the time that it may take."""
        self._program = program
        self._seconds = seconds
        has_records = manifest_path(program).is_file() and golden_path(program).is_file()
        self.is_possible = has_records and any(command.name == "verify" for command in installed_commands())
        self._running: asyncio.Task[Verdict] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._verdict: Verdict | None = None
        self._is_ended = False

    async def verdict(self) -> Verdict:
        """Return what ``llava verify`` finds, or found before. Raises ``Refusal`` where it does not come to an end."""
        if not self.is_possible:
            raise Refusal(
                404,
                "a package is verified where llava-export is installed, and against its manifest and its golden "
                f"record: {verify_command(self._program)}",
                code="cannot_verify",
            )
        if self._verdict is not None:
            return self._verdict
        if self._is_ended:
            raise stopping()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._verify())
        return await asyncio.shield(self._running)  # others may wait for it, too

    def end(self) -> None:
        """End the process, if there is one, and start no other."""
        self._is_ended = True
        self._kill()

    async def _verify(self) -> Verdict:
        stdin, held = os.pipe()
        try:
            return await self._verify_while(stdin)
        finally:
            os.close(stdin)
            os.close(held)

    async def _verify_while(self, stdin: int) -> Verdict:
        """Return what the command finds. It ends where the other end of its ``stdin`` is closed."""
        process = self._process = await asyncio.create_subprocess_exec(
            *child_command(END_WITH_PARENT + CODE, self._program.resolve()),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **PLAIN},
        )
        try:
            if self._is_ended:
                raise stopping()
            output, errors = await asyncio.wait_for(process.communicate(), self._seconds)
        except asyncio.TimeoutError:
            raise self._without_end(f"it takes more than {self._seconds:g} seconds") from None
        finally:
            self._kill()
            await process.wait()
        if self._is_ended:
            raise stopping()
        text = output.decode(errors="replace").rstrip()
        last = text.rpartition("\n")[2]
        if process.returncode == 0 and last == "PASS":
            self._verdict = Verdict(verdict="PASS", text=text)
        elif process.returncode == 1 and last.startswith("FAIL"):  # and not a traceback, whose code is 1, too
            self._verdict = Verdict(verdict="FAIL", text=text)
        else:
            said = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise self._without_end(said or f"it ended with code {process.returncode}")
        return self._verdict

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def _without_end(self, why: str) -> Refusal:
        return Refusal(500, f"llava verify came to no verdict: {why}. To try again: {verify_command(self._program)}")
