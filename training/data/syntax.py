"""What the syntax of a text offers as middles: spans found by tree-sitter queries."""

from __future__ import annotations

import functools

import numpy as np
import tree_sitter

from keyturn.engine.syntax.languages import parser_of

_PYTHON = """
(block) @block (module) @block
(function_definition body: (block) @body)
(call arguments: (argument_list) @args)
(assignment right: (_) @expr) (augmented_assignment right: (_) @expr) (return_statement (_) @expr)
(string) @prose
(block . (expression_statement (string) @doc))
(import_statement) @import (import_from_statement) @import
"""
_SCRIPT = """
(statement_block) @block (program) @block (class_body) @block
(function_declaration body: (_) @body) (method_definition body: (_) @body)
(function_expression body: (_) @body) (arrow_function body: (statement_block) @body)
(arguments) @args
(variable_declarator value: (_) @expr) (assignment_expression right: (_) @expr)
(return_statement (_) @expr)
(comment) @prose (template_string) @prose
(import_statement) @import
"""
_GO = """
(statement_list) @block (source_file) @block (field_declaration_list) @block
(function_declaration body: (_) @body) (method_declaration body: (_) @body)
(func_literal body: (_) @body)
(argument_list) @args
(short_var_declaration right: (_) @expr) (assignment_statement right: (_) @expr)
(var_spec value: (_) @expr) (return_statement (_) @expr)
(comment) @prose (raw_string_literal) @prose
(import_declaration) @import
"""
_RUST = """
(block) @block (source_file) @block (declaration_list) @block (match_block) @block
(field_declaration_list) @block (enum_variant_list) @block
(function_item body: (_) @body) (closure_expression body: (block) @body)
(arguments) @args (macro_invocation (token_tree) @args)
(let_declaration value: (_) @expr) (assignment_expression right: (_) @expr)
(return_expression (_) @expr)
(block_comment) @prose (string_literal) @prose (raw_string_literal) @prose
(use_declaration) @import
"""
_JAVA = """
(block) @block (program) @block (class_body) @block (interface_body) @block (enum_body) @block
(constructor_body) @block
(method_declaration body: (_) @body) (constructor_declaration body: (_) @body)
(lambda_expression body: (block) @body)
(argument_list) @args
(variable_declarator value: (_) @expr) (assignment_expression right: (_) @expr)
(return_statement (_) @expr)
(block_comment) @prose (string_literal) @prose
(import_declaration) @import
"""
# What an #ifdef holds is a block too, or a header would have none but its guard.
_C = """
(compound_statement) @block (translation_unit) @block (field_declaration_list) @block
(enumerator_list) @block (preproc_ifdef) @block (preproc_if) @block
(function_definition body: (_) @body)
(argument_list) @args
(init_declarator value: (_) @expr) (assignment_expression right: (_) @expr)
(return_statement (_) @expr)
(comment) @prose
(preproc_include) @import
"""
_CPP = """
(declaration_list) @block (lambda_expression body: (_) @body) (raw_string_literal) @prose
"""
_LANGUAGES = {
    "py": ("python", _PYTHON),
    "js": ("javascript", _SCRIPT),
    "ts": ("typescript", _SCRIPT),
    "tsx": ("typescriptreact", _SCRIPT),
    "go": ("go", _GO),
    "rust": ("rust", _RUST),
    "java": ("java", _JAVA),
    "c": ("c", _C),
    "cpp": ("cpp", _C + _CPP),
}
# What lines begin with: in comments (by one line), and where they name other files.
_COMMON_STARTS = (("#", "//", "*"), ("import ", "from "))
_COMPILED_STARTS = (("//",), ("import ", "use ", "#include", "package "))
_STARTS = {language: _COMMON_STARTS for language in ("py", "js", "ts", "tsx")}


@functools.cache
def _tools(language: str) -> tuple[tree_sitter.Parser, tree_sitter.Query]:
    name, query = _LANGUAGES[language]
    parser = parser_of(name)
    grammar = parser.language
    assert grammar is not None, "a parser is made for one"
    return parser, tree_sitter.Query(grammar, query)


class Source:
    """A parsed text. All places in it are characters, half-open.

    Attributes:
        text: the text.
        starts: where its lines begin.
        spans: kind ("body", "args", "expr", "doc", "import") to the spans, sorted.
        blocks: start, end and node of everything that holds statements, sorted.
        prose: lines, counted from 0, that lie inside of strings or comments of several lines.
        dull: what lines that say little begin with: comments.
        imports: what lines begin with that name other files.
    """

    def __init__(self, text: str, language: str) -> None:
        """Parse a text in one of `documents.LANGUAGES`."""
        self.text = text
        self.starts = [0]
        at = text.find("\n")
        while at >= 0:
            self.starts.append(at + 1)
            at = text.find("\n", at + 1)
        self.spans: dict[str, list[tuple[int, int]]] = {}
        self.blocks: list[tuple[int, int, tree_sitter.Node]] = []
        self.prose: set[int] = set()
        self.dull, self.imports = _STARTS.get(language, _COMPILED_STARTS)
        self._is_script = language != "py"
        data = text.encode()
        self._offsets = _char_offsets(data) if len(data) != len(text) else None
        parser, query = _tools(language)
        self._tree = parser.parse(data)  # nodes do not outlive it
        for kind, nodes in tree_sitter.QueryCursor(query).captures(self._tree.root_node).items():
            self._take(kind, nodes)
        if self._is_script:
            self.spans["doc"] = sorted(self.spans.get("doc", ()))

    def extent(self, node: tree_sitter.Node) -> tuple[int, int]:
        """Return where a node starts and ends, in characters."""
        return self._offset(node.start_byte), self._offset(node.end_byte)

    def _offset(self, byte: int) -> int:
        return byte if self._offsets is None else self._offsets[byte]

    def _take(self, kind: str, nodes: list[tree_sitter.Node]) -> None:
        """File what a query found."""
        if kind == "prose":
            self._take_prose(nodes)
            return
        found = [(*self.extent(node), node) for node in nodes if not node.has_error]
        if kind == "block":
            self.blocks = sorted(found, key=lambda block: block[:2])
            return
        spans = []
        for start, end, node in found:
            if kind == "args":
                start, end = start + 1, end - 1  # inside of the brackets
            elif kind == "body":
                start, end = self._inside_body(start, end, node)
            elif kind == "import":  # the grammar of C counts the line's end
                end -= self.text.endswith("\n", start, end)
            if end - start >= 2:
                spans.append((start, end))
        self.spans[kind] = sorted(spans)

    def _take_prose(self, nodes: list[tree_sitter.Node]) -> None:
        for node in nodes:
            first, last = node.start_point[0], node.end_point[0]
            if last > first:
                self.prose.update(range(first, last + 1))
                if self._is_script:
                    self.spans.setdefault("doc", []).append(self.extent(node))

    def _inside_body(self, start: int, end: int, node: tree_sitter.Node) -> tuple[int, int]:
        """Return a body without its braces and the space at its ends, or without its docstring."""
        if self.text.startswith("{", start):
            inside = self.text[start + 1 : end - 1]
            start += 1 + len(inside) - len(inside.lstrip())
            return start, end - 1 - (len(inside) - len(inside.rstrip()))
        inner = node.named_children
        if len(inner) > 1 and inner[0].type == "expression_statement":
            first = inner[0].named_children
            if first and first[0].type == "string":
                return self._offset(inner[1].start_byte), end
        return start, end


def _char_offsets(data: bytes) -> list[int]:
    """Return, for each byte of UTF-8, how many characters come before it."""
    starts = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    return np.concatenate([[0], np.cumsum(starts)]).tolist()
