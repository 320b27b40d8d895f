r"""How a sample is laid out: its marks, the order of its parts, and what each target is.

The order is the engine's own (`keyturn.engine.prompt.layout`), and so are the ids of the marks (the
embedded model's fim.json). Prefix, suffix and middle are tokenized apart, as an editor has to do
it; a cut falls on any character.

    context   <file_sep><filename>other/path\n chunk       in a few samples
    header    <file_sep><filename>path\n                   in about 40 %
    PSM       PRE prefix SUF suffix MID middle END          arXiv 2207.14255, section 3
    EFIM      PRE prefix SUF suffix MID typed middle END    arXiv 2505.21889: typed since the freeze
    SPM       PRE SUF suffix MID prefix middle END
    plain     text [END at the end of a file]

Where it is known what is wanted, one token says so behind the prompt's last: `WANTED`. It comes
last so that the cache of the text before it stays what it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from keyturn.engine.files.catalog import EMBEDDED_FILE
from keyturn.engine.prompt.fim import SIDECAR, FimTemplate, read_sidecar
from keyturn.engine.prompt.layout import Segment, SegmentKey, lay_out

VOCABULARY = 49152
END, FILE_SEP, FILENAME = 0, 5, 6  # <|endoftext|>, <file_sep>, <filename>
WANTED = {"line": 11, "block": 12}  # <jupyter_start>, <jupyter_text>: unused otherwise
MAX_TOKENS = 2048  # in a sample

PSM, SPM, EFIM, PLAIN = range(4)
LAYOUTS = ("psm", "spm", "efim", "plain")  # by number

# Classes of a target: nothing to learn, plain text, middle, text that sees the suffix, first token
# of a middle, its end, and places inside where it could have ended (the start of a line).
NONE, OTHER, MIDDLE, SEES_SUFFIX, FIRST, LAST, LINE_START = range(7)
MIDDLE_CLASSES = (MIDDLE, FIRST, LAST, LINE_START)


@functools.cache
def template() -> FimTemplate:
    """Return the format of the embedded model, which the next one keeps."""
    return read_sidecar(EMBEDDED_FILE.with_name(SIDECAR), VOCABULARY)


def segments(before: str, typed: str, after: str, layout: int) -> tuple[Segment, ...]:
    """Return the parts of a prompt in the engine's order.

    Args:
        before: text before the cursor, as it was when the layout was frozen.
        typed: what was typed since; goes behind MID in EFIM and is a part of the prefix in SPM.
        after: text after the cursor.
        layout: PSM, SPM or EFIM.
    """
    text, cursor = before + typed + after, len(before) + len(typed)
    anchor = cursor if layout == SPM else len(before)
    name = "spm" if layout == SPM else "psm"
    return lay_out(text, anchor, cursor, template(), name, (0, len(text)), None).segments


def arrange(
    order: Sequence[Segment], parts: Mapping[str, Sequence[int]]
) -> tuple[list[int], list[int]]:
    """Return a prompt's tokens and their classes.

    Args:
        order: of `segments`.
        parts: kind of a segment ("prefix", "suffix", "tail") to its tokens.
    """
    tokens: list[int] = []
    classes: list[int] = []
    target = OTHER
    for segment in order:
        is_mark = segment.kind == "marks"
        part = segment.token_ids if is_mark else parts[segment.kind]
        tokens += part
        classes += [NONE if is_mark else target] * len(part)
        if segment.kind == "suffix":
            target = SEES_SUFFIX
    return tokens, classes


def by_segment(
    order: Sequence[Segment],
    parts: Mapping[str, Sequence[int]],
    head: Sequence[int] = (),
    wanted: Sequence[int] = (),
) -> dict[SegmentKey, list[int]]:
    """Return the same prompt's tokens by segment, as the engine's cache tells them apart."""
    found: dict[SegmentKey, list[int]] = {("header",): list(head)}
    for segment in order:
        is_mark = segment.kind == "marks"
        found[segment.key] = list(segment.token_ids if is_mark else parts[segment.kind])
    return found | {("marks", "wanted"): list(wanted)}
