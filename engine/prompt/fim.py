"""Fill-in-the-middle formats: which marks a model takes in which order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..wire.config import WANTED, CompletionParams
from ..wire.errors import BadRequest, ModelLoadError
from .fim_families import FAMILIES, Family

SIDECAR = "fim.json"
# Of a model that does not say; a smaller figure shows less text and never too many tokens.
UNKNOWN_CHARS_PER_TOKEN = 3.0
_MOST_CHARS = 1 << 20
_MARKS = ("prefix", "suffix", "middle")
_FILES = ("marked", "separated", "inside")


@dataclass(frozen=True, slots=True)
class FimTemplate:
    """One model's fill-in-the-middle format.

    Attributes:
        family: whose format it is.
        prefix_id: token before the text before the cursor (PRE); SUF's where there is none.
        suffix_id: token before the text after the cursor (SUF).
        middle_id: token that asks for the middle (MID).
        layouts: orders the model was trained on: "spm" (PRE SUF suffix MID prefix) and "psm"
            (PRE prefix SUF suffix MID).
        layout: the order to use.
        end_ids: tokens that end a middle.
        regenerate_white_space: whether white space before the cursor is taken off and generated
            again, for models not trained on cuts at any character.
        bos_first: whether the sequence starts with the tokenizer's beginning-of-text token.
        window_tokens: longest prompt the model was trained on; 0 if not known.
        chars_per_token: characters of code a token stands for.
        header_ids: tokens before the path of a file, for models that were trained to see it there;
            empty if this one was not.
        languages: what the model was trained on, as LSP identifiers; empty if it does not say.
        middle_last: "spm" is SUF suffix PRE prefix MID.
        repository_ids: tokens before the name of a repository, where other files of it come first.
        spaced_layouts: of the layouts, those whose prefix begins with a space of its own.
        files: where paths and `header_ids` stand: "marked", both before every file, that of the
            prompt included; "separated", a path before every file, and the ids before all but the
            first; "inside", the ids before every file, and the path after the first mark of one
            that is to be filled in, said only where other files or their repository are.
        wanted_ids: names of `wire.config.WANTED`, and of each the token that says behind a prompt
            that such a middle is wanted; empty if the model was not trained to be told.
    """

    family: str
    prefix_id: int
    suffix_id: int
    middle_id: int
    layouts: tuple[str, ...]
    layout: str
    end_ids: frozenset[int]
    regenerate_white_space: bool
    bos_first: bool
    window_tokens: int
    chars_per_token: float
    header_ids: tuple[int, ...] = ()
    languages: tuple[str, ...] = ()
    middle_last: bool = False
    repository_ids: tuple[int, ...] = ()
    spaced_layouts: tuple[str, ...] = ()
    files: str = "marked"
    wanted_ids: tuple[tuple[str, int], ...] = ()

    def wanted_id(self, wanted: str) -> int | None:
        """Return the token that says what is wanted; None if there is none for it."""
        return dict(self.wanted_ids).get(wanted)


def find_template(
    token_id: Callable[[str], int | None],
    *,
    sidecar: Path | None = None,
    marks: Mapping[str, int] | None = None,
    end_ids: frozenset[int] = frozenset(),
    vocab_size: int,
    names: str = "",
) -> FimTemplate | None:
    """Find a model's format.

    Args:
        token_id: returns a token's id by name, None if the vocabulary lacks it.
        sidecar: a `fim.json` beside the model, which wins over everything else but `end_ids`.
        marks: "prefix", "suffix" and "middle" ids that the model file itself names.
        end_ids: tokens that end any text of the model.
        vocab_size: rows of the model's embedding.
        names: what the model and its folder are called, for families with the marks of another.

    Returns:
        The format, or None for a model that only continues text.

    Raises:
        ModelLoadError: the sidecar is not usable.
    """
    if sidecar is not None and sidecar.is_file():
        described = read_sidecar(sidecar, vocab_size)
        return replace(described, end_ids=described.end_ids | end_ids)

    def known(name: str) -> int | None:
        found = token_id(name)
        return None if found is None or found >= vocab_size else found

    for family in FAMILIES:
        found = [known(name) for name in (family.prefix, family.suffix, family.middle)]
        other = known(family.known_by or family.middle)
        if None in found or other is None or family.called not in names.lower():
            continue
        ends = {known(name) for name in family.ends} - {None}
        header, repository = (
            () if (at := known(name)) is None else (at,)
            for name in (family.file_mark, family.repository_mark)
        )
        return replace(
            _template(family, found, end_ids | ends),  # pyright: ignore
            header_ids=header,
            repository_ids=repository,
        )
    if marks is not None and all(marks.get(key, -1) in range(vocab_size) for key in _MARKS):
        family = Family("named by the model file", *_MARKS, (), ("psm",), False, "", "")
        return _template(family, [marks[key] for key in _MARKS], end_ids)
    return None


def _template(family: Family, marks: Sequence[int], end_ids: frozenset[int]) -> FimTemplate:
    return FimTemplate(
        family=family.name,
        prefix_id=marks[0],
        suffix_id=marks[1],
        middle_id=marks[2],
        layouts=family.layouts,
        layout=family.layouts[0],
        end_ids=end_ids | frozenset(marks),  # a mark in the middle of a middle ends it, too
        regenerate_white_space=False,
        bos_first=family.bos_first,
        window_tokens=0,
        chars_per_token=UNKNOWN_CHARS_PER_TOKEN,
        middle_last=family.middle_last,
        spaced_layouts=family.spaced_layouts,
        files=family.files,
    )


def wanted_of(template: FimTemplate | None, params: CompletionParams) -> str:
    """Return what the prompt of a completion says is wanted; "" where the model has no mark for it.

    The mark stands before what is assumed to be written already, and so speaks of that too.

    Raises:
        BadRequest: nobody knows what is wanted there.
    """
    wanted = params.wanted
    if wanted not in ("", *WANTED):
        raise BadRequest(f"wanted '{wanted:.80}' is not known; use one of {', '.join(WANTED)}")
    if wanted and "\n" in params.assumed:
        wanted = "block"
    return "" if template is None or template.wanted_id(wanted) is None else wanted


def read_sidecar(path: Path, vocab_size: int) -> FimTemplate:
    """Read a `fim.json`: the fields of `FimTemplate`, ids as numbers, other keys ignored.

    Raises:
        ModelLoadError: it is not JSON, or a field is missing or of the wrong kind.
    """
    try:
        with path.open(encoding="utf-8") as file:
            fields: dict[str, Any] = json.loads(file.read(_MOST_CHARS))
        template = FimTemplate(
            family=str(fields["family"]),
            prefix_id=int(fields["prefix_id"]),
            suffix_id=int(fields["suffix_id"]),
            middle_id=int(fields["middle_id"]),
            layouts=tuple(fields["layouts"]),
            layout=fields["layout"],
            end_ids=frozenset(int(at) for at in fields["end_ids"]),
            regenerate_white_space=bool(fields["regenerate_white_space"]),
            bos_first=bool(fields["bos_first"]),
            window_tokens=int(fields["window_tokens"]),
            chars_per_token=float(fields["chars_per_token"]),
            header_ids=tuple(int(at) for at in fields.get("header_ids", ())),
            languages=tuple(map(str, fields.get("languages", ()))),
            middle_last=bool(fields.get("middle_last", False)),
            repository_ids=tuple(int(at) for at in fields.get("repository_ids", ())),
            spaced_layouts=tuple(map(str, fields.get("spaced_layouts", ()))),
            files=str(fields.get("files", "marked")),
            wanted_ids=tuple(
                (str(k), int(v)) for k, v in dict(fields.get("wanted_ids", {})).items()
            ),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{path} is no usable description ({error!r}); remove it") from None
    marks = (template.prefix_id, template.suffix_id, template.middle_id)
    marks += (*template.header_ids, *template.repository_ids)
    marks += tuple(at for _, at in template.wanted_ids)
    token_ids = {*marks, *template.end_ids}
    if not all(0 <= at < vocab_size for at in token_ids):
        raise ModelLoadError(f"{path}: a token id is not in the vocabulary of {vocab_size}")
    if template.window_tokens < 0 or not template.chars_per_token > 0:
        raise ModelLoadError(f"{path}: window_tokens or chars_per_token is out of range")
    if template.layout not in template.layouts or not set(template.layouts) <= {"spm", "psm"}:
        raise ModelLoadError(
            f'{path}: layout "{template.layout}" of {template.layouts} is not spm or psm'
        )
    if template.files not in _FILES:
        raise ModelLoadError(f'{path}: files "{template.files}" is none of {", ".join(_FILES)}')
    if unknown := [name for name, _ in template.wanted_ids if name not in WANTED]:
        raise ModelLoadError(f'{path}: wanted_ids "{unknown[0]}" is none of {", ".join(WANTED)}')
    return template
