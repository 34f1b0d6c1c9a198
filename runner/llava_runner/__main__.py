"""``python -m llava_runner``: the same as the console script ``llava-run``."""

from llava_runner.cli import main

main()
