"""The command ``llava``: one table of subcommands, each a module here with ``main(argv, prog=...)``.

The script itself belongs to ``llava_runner``, which is also installed where the exporter is not.
"""

from __future__ import annotations

from llava_runner.command import RUN, SERVE, Command

COMMANDS = (
    Command("export", "llava_export.cli.export", "turn a checkpoint into a package for ExecuTorch"),
    Command("gguf", "llava_export.cli.gguf", "turn a checkpoint into GGUF files for llama.cpp"),
    Command("verify", "llava_export.cli.verify", "check that a package or GGUF files answer as their checkpoint does"),
    Command("evaluate", "llava_export.cli.evaluate", "score a package on a data set, or measure it on a text"),
    Command("doctor", "llava_export.cli.doctor", "say what a checkpoint or package is, and what is wrong with it"),
    RUN,
    SERVE,
    Command("inspect", "llava_export.cli.inspect", "show what is inside a program"),
    Command("benchmark", "llava_export.cli.benchmark", "time a package stage by stage, and other runners"),
    Command("split", "llava_export.cli.split", "take a checkpoint apart: projector, vision tower, language model"),
)
