"""The accounting of a program's file: every byte belongs to exactly one part."""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise

from llava_export.pte.read.container import Container, Span
from llava_export.pte.read.types import Label, Part
from llava_export.pte.read.weights import Weight

# The kinds of bytes that belong to no weight.
FLATBUFFER = "program (flatbuffer)"
PAYLOADS = "delegate payloads"
UNREAD = "named data of other delegates"
UNKNOWN = "other segments"
ALIGNMENT = "alignment"

Row = tuple[tuple[str, ...], Label]  # methods and label: what the bytes of one part have in common


def account(container: Container, weights: Mapping[Span, Weight]) -> Iterator[Part]:
    """Yield the parts of the file. Their sizes add up to its size.

    A byte is in the flatbuffer, in a segment, or between two segments. Within the flatbuffer and the segments it may
    belong to a weight. Raises ``ValueError`` if two pieces of the file overlap.
    """
    if any(span.end > following.start for span, following in pairwise(sorted(weights))):
        raise ValueError("two weights overlap")
    sizes: Counter[Row] = Counter()
    times: Counter[Row] = Counter()
    bytes_of_weights: Counter[Span] = Counter()  # by the flatbuffer or segment they are in
    kinds = _regions(container)
    regions = sorted(kinds)
    for span, weight in {**_inline_payloads(container), **weights}.items():
        region = regions[bisect(regions, span.start, key=lambda it: it.start) - 1]
        if span.end > region.end:
            raise ValueError("a weight ends behind its segment")
        bytes_of_weights[region] += span.size
        row = tuple(sorted(weight.methods)), weight.label
        sizes[row] += span.size
        times[row] += span == weight.place
    end = 0
    for region in [*regions, Span(container.size, 0)]:
        row = (), Label(kinds.get(region, ALIGNMENT))
        if region.start < end or region.size < bytes_of_weights[region]:
            raise ValueError("two segments, or two payloads, overlap")
        sizes[row] += region.size - bytes_of_weights[region]
        times[row] += row[1].kind == PAYLOADS
        sizes[(), Label(ALIGNMENT)] += region.start - end
        end = region.end
    for (methods, label), size in sizes.items():
        if size:
            yield Part(methods, *label, times=times[methods, label], bytes=size)


def _regions(container: Container) -> dict[Span, str]:
    """Return the flatbuffer and the segments, each with the kind of those of its bytes that belong to no weight.

    A segment within that of the constants is left out: it is a constant that XNNPACK reads, too (see ``pte.sharing``).
    """
    program, segments = container.program, container.segments
    tables = [program.get("constant_segment"), *program.get("mutable_data_segments", ())]
    kinds = dict.fromkeys(segments, UNKNOWN)
    kinds |= dict.fromkeys(container.named.values(), UNREAD)
    kinds |= {span: PAYLOADS for (location, _), span in container.payloads.items() if location == "SEGMENT"}
    kinds |= {segments[it["segment_index"]]: ALIGNMENT for it in tables if it and it.get("offsets")}
    for span in container.within_constants():
        kinds.pop(span, None)
    return {Span(0, len(container.flatbuffer)): FLATBUFFER, **{span: kinds[span] for span in kinds if span.size}}


def _inline_payloads(container: Container) -> dict[Span, Weight]:
    """Return the payloads that lie in the flatbuffer. They are counted like weights that no method reads."""
    return {
        span: Weight(span, Label(PAYLOADS))
        for (location, _), span in container.payloads.items()
        if location == "INLINE" and span.size
    }
