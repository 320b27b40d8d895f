"""LSP types to our own and back: positions, changes, inline items, menu entries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from lsprotocol import types
from pygls.uris import to_fs_path

from .answers import Answer, Selected
from .documents import Change, Document, Position
from .trim import first_line

# What a client runs, with the item's id, when the user has taken a suggestion.
DID_ACCEPT = "keyturn.didAcceptCompletion"
_WORD_BEFORE = re.compile(r"\w*\Z")
_MAX_LABEL_CHARS = 80
_FIRST = "!"
_EXTENSIONS = {
    "python": "py",
    "javascript": "js",
    "javascriptreact": "jsx",
    "typescript": "ts",
    "typescriptreact": "tsx",
}


def as_position(position: types.Position) -> Position:
    """Return an LSP position as our own."""
    return Position(position.line, position.character)


def path_of(uri: str, folders: Sequence[str], language_id: str) -> str:
    """Return the path that the model is shown of a document.

    Args:
        uri: the document's.
        folders: URIs of the workspace's folders.
        language_id: what the client calls its language, for a document without a file.

    Returns:
        The path relative to the innermost folder that holds it, else the file's name; "/" between
        its parts. Of what has no file: a name with the language's extension, "" if that is unknown.
    """
    path = _file_path(uri)
    if path is None:
        extension = _EXTENSIONS.get(language_id)
        return f"untitled.{extension}" if extension else ""
    roots = [root for root in map(_file_path, folders) if root is not None]
    within = [path.relative_to(root) for root in roots if path.is_relative_to(root)]
    shown = min(within, key=lambda one: len(one.parts), default=PurePath(path.name))
    return shown.as_posix() if shown.parts else path.name


def _file_path(uri: str) -> PurePath | None:
    if not uri.lower().startswith("file:"):
        return None
    try:
        found = to_fs_path(uri)
    except ValueError:
        return None
    return PurePath(found) if found else None


def asks_for_refresh(capabilities: types.ClientCapabilities) -> bool:
    """Whether the client wants `keyturn/refresh`: experimental.keyturn.refresh is true."""
    found: object = capabilities.experimental
    for name in ("keyturn", "refresh"):
        found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
    return found is True


def as_change(item: types.TextDocumentContentChangeEvent) -> Change:
    """Return one content change as our own."""
    if isinstance(item, types.TextDocumentContentChangeWholeDocument):
        return Change(item.text)
    return Change(item.text, as_position(item.range.start), as_position(item.range.end))


def as_selected(document: Document, info: types.SelectedCompletionInfo) -> Selected:
    """Return the entry selected in the editor's menu, in offsets."""
    start = document.offset(as_position(info.range.start))
    return Selected(start, document.offset(as_position(info.range.end)), info.text)


def inline_items(answer: Answer, document: Document, name: str) -> list[types.InlineCompletionItem]:
    """Return the answer as inline completion items; always with a range, or VS Code guesses one.

    Args:
        answer: what is suggested.
        document: where.
        name: id that comes back with the command when it is accepted.
    """
    if not answer.text:
        return []
    where = _range(document, answer.start, answer.end)
    return [
        types.InlineCompletionItem(insert_text=text, range=where, command=_accept_command(name))
        for text in (answer.text, *answer.others)
    ]


def shown_item(params: object) -> tuple[str, str] | None:
    """Return id and text of the item that a client's notification is about; None if it has none."""
    item = params.get("item") if isinstance(params, Mapping) else None
    command = item.get("command") if isinstance(item, Mapping) else None
    arguments = command.get("arguments") if isinstance(command, Mapping) else None
    if not isinstance(item, Mapping) or not isinstance(arguments, list) or not arguments:
        return None
    text = item.get("insertText")
    return str(arguments[0]), text if isinstance(text, str) else ""


def accepted_chars(params: object, text: str) -> int:
    """Return how many characters of `text` were accepted: `acceptedLength` counts UTF-16 units."""
    length = params.get("acceptedLength") if isinstance(params, Mapping) else None
    if type(length) is not int or length <= 0:
        return 0
    units = text.encode("utf-16-le", "surrogatepass")[: 2 * length]
    return len(units.decode("utf-16-le", "ignore"))


def _accept_command(name: str) -> types.Command:
    return types.Command(title="", command=DID_ACCEPT, arguments=[name])


def completion_list(answer: Answer, document: Document, name: str) -> types.CompletionList:
    """Return the answer as a menu entry that stays visible while its first word is typed on.

    Menus filter by the word before the cursor, so the entry replaces that word by itself and what
    follows. The list is incomplete: the next character asks again. The entry comes first: who
    wants a word of another server types on.
    """
    items = []
    if answer.text:
        before = document.text[max(0, answer.start - _MAX_LABEL_CHARS) : answer.start]
        match = _WORD_BEFORE.search(before)
        word = match.group() if match else ""
        text = word + answer.text
        items.append(
            types.CompletionItem(
                label=_label(word, answer.text),
                kind=types.CompletionItemKind.Text,
                detail="keyturn",
                documentation=text,
                command=_accept_command(name),
                sort_text=_FIRST,
                filter_text=text,
                insert_text_format=types.InsertTextFormat.PlainText,
                # The lines carry their indentation; VS Code would add the current line's.
                insert_text_mode=types.InsertTextMode.AsIs,
                text_edit=types.TextEdit(
                    range=_range(document, answer.start - len(word), answer.end), new_text=text
                ),
            )
        )
    return types.CompletionList(is_incomplete=True, items=items)


def _label(word: str, text: str) -> str:
    """Return the first line that adds something, shortened; "…" says that there is more."""
    first = first_line(text)
    shown = " ".join((word + (first if first.strip() else text)).split())
    cut = shown[:_MAX_LABEL_CHARS]
    return cut + ("…" if cut != shown or (first.strip() and first != text) else "")


def _range(document: Document, start: int, end: int) -> types.Range:
    first, last = document.position(start), document.position(end)
    return types.Range(types.Position(*first), types.Position(*last))
