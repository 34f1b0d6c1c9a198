"""The recipes of docs/RECIPES.md, each by the flags that give it, and llama.cpp's types beside them."""

from __future__ import annotations

from dataclasses import dataclass

from llava_export.cli.flags import add_recipe_flags, chosen_recipe
from llava_export.recipe import AWQ_GPTQ, CALIBRATED, Recipe
from llava_runner.arguments import ArgumentParser

BUDGET = 1.05  # of the bytes of the default's program


@dataclass(frozen=True)
class Entry:
    """A recipe of the page. ``name`` is that in the results, and ``flags`` are those of ``llava export``.

    With ``has_budget`` linears get 8 bits until the program has ``BUDGET`` times the bytes of the default's. ``timed``
    recipes are exported and their decoding is timed: the algorithm makes no difference to that.
    """

    name: str
    flags: str = ""
    has_budget: bool = False
    timed: bool = False

    @property
    def recipe(self) -> Recipe:
        """The recipe that the flags give."""
        parser = ArgumentParser()
        add_recipe_flags(parser)
        return chosen_recipe(parser.parse_args(self.flags.split()))


@dataclass(frozen=True)
class LlamaCppEntry:
    """A type of llama.cpp's files, a value of ``llava gguf --quantization``. Only weights are rounded."""

    name: str


DEFAULT = Entry("default", timed=True)
RECIPES = (
    Entry("fp32", "--recipe fp32", timed=True),
    Entry("8da8w", "--recipe 8da8w", timed=True),
    DEFAULT,
    Entry("mse-g64", "--group-size 64", timed=True),
    Entry("hqq", "--algorithm hqq"),
    Entry("minmax", "--algorithm minmax"),
    Entry("former-default", "--algorithm minmax --group-size 64 --head 8da4w", timed=True),
    *(Entry(name, f"--algorithm {name}") for name in CALIBRATED),
    Entry(f"{AWQ_GPTQ}-g64", f"--algorithm {AWQ_GPTQ} --group-size 64"),
    Entry("budget", has_budget=True),
    Entry(f"budget-{AWQ_GPTQ}", f"--algorithm {AWQ_GPTQ}", has_budget=True),
)
LLAMA_CPP = tuple(map(LlamaCppEntry, ("q4_0", "q4_k_m", "q5_k_m", "q8_0")))
ENTRIES: dict[str, Entry | LlamaCppEntry] = {
    **{entry.name: entry for entry in RECIPES},
    **{entry.name: entry for entry in LLAMA_CPP},
}
