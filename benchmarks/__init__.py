"""Scripts that measure what the documentation says, and compare with other pipelines and runners.

``page`` measures docs/BENCHMARKS.md and writes it, through ``measuring``, ``differences``, ``page_text``,
``page_tables`` and ``readme``. ``recipes`` does the same for docs/RECIPES.md. Every other module is a script of its
own, and ``python -m benchmarks.NAME --help`` explains it.
"""
