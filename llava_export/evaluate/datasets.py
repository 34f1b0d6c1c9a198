"""Opens a data set, and looks before anything is asked whether its images and questions can be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava_export.errors import DatasetError, some
from llava_export.evaluate.items import Item, check_items, digest
from llava_export.evaluate.layouts import LAYOUTS, Source, layout_of
from llava_export.evaluate.reading import Reader
from llava_export.evaluate.scores import METRICS, Metric
from llava_runner.errors import ImageError
from llava_runner.image import load_image


@dataclass(frozen=True)
class Dataset:
    """Items that are asked, and how answers are scored. ``folder`` is where the paths of images start from."""

    name: str
    layout: str
    metric: Metric
    items: tuple[Item, ...]
    folder: Path

    def header(self) -> dict[str, str | int]:
        """Return what tells the data set from others."""
        sha256 = digest(self.items, folder=self.folder)
        return {"name": self.name, "layout": self.layout, "items": len(self.items), "sha256": sha256}


def open_dataset(
    source: Source,
    *,
    layout: str | None = None,
    metric: str | None = None,
    suffix: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """Return the data set at a path, with its layout's metric and suffix of questions unless others are named.

    ``limit`` takes the first items only. Raises ``DatasetError``.
    """
    if not source.path.exists():
        raise DatasetError(f"{source.path} does not exist")
    if source.images is not None and not source.images.is_dir():
        raise DatasetError(f"{source.images} is not a folder of images")
    found = LAYOUTS[layout] if layout else layout_of(source.path)
    items, folder = found.read(source)
    check_items(items, name=str(source.path))
    suffix = found.suffix if suffix is None else suffix
    asked = tuple(replace(item, question=item.question + suffix) for item in items[:limit])
    scored = METRICS[metric or found.metric]
    for item in asked:
        if reason := scored.refuses(item.answers):
            raise DatasetError(f"item {item.id} of {source.path} cannot be scored by {scored.name}: {reason}")
    return Dataset(source.path.name or str(source.path), found.name, scored, asked, folder)


def unreadable(items: Iterable[Item], *, folder: Path, on_item: Callable[[], None]) -> dict[str, str]:
    """Return the reason for each image that cannot be read, by its path. ``on_item`` is called after each item."""
    reasons: dict[str, str] = {}
    fine: set[str] = {""}
    for item in items:
        if item.image not in fine and item.image not in reasons:
            try:
                load_image(folder / item.image)
                fine.add(item.image)
            except ImageError as error:
                reasons[item.image] = str(error)
        on_item()
    return reasons


def refuse_unreadable(reasons: dict[str, str]) -> None:
    """Raise ``ImageError`` if there are images that cannot be read."""
    if reasons:
        first = next(iter(reasons.values()))
        raise ImageError(f"{some(list(reasons), 'image')} unreadable: {first}; --skip-unreadable goes on without them")


def check_lengths(items: Sequence[Item], readers: Sequence[Reader]) -> None:
    """Raise ``DatasetError`` for questions that leave no position of the context for an answer."""
    for reader in readers:
        context = reader.card.max_context_len
        long = [item.id for item in items if reader.positions(item) >= context]
        if long:
            raise DatasetError(
                f"{some([f'item {id}' for id in long], 'question')} too long for the {context} positions of the "
                "context; llava export --max-context-len makes a longer one"
            )
