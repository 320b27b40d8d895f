"""A language server that suggests what a test told it to: for an editor's plugin alone.

`test/script` takes rules, `{"before", "texts", "hold"?, "replaces"?}`: where the text before the
cursor ends with `before`, `texts` are the candidates; `replaces` is how many characters behind the
cursor the range covers, `hold` keeps the reply until `test/release`. `test/log` returns every
message since `test/clear`, and `test/texts` what is held of each document.
"""

import json
import sys
from typing import Any


class ScriptedServer:
    """Answers one client on standard input and output."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self.rules: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []
        self.texts: dict[str, str] = {}
        self.held: list[tuple[int, Any]] = []

    def send(self, **message: Any) -> None:
        body = json.dumps({"jsonrpc": "2.0"} | message).encode()
        sys.stdout.buffer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        sys.stdout.buffer.flush()

    def offset(self, text: str, position: dict[str, int]) -> int:
        """Return the code-point offset of a position."""
        lines = text.splitlines(keepends=True) + [""]
        row = position["line"]
        codec = {"utf-8": "utf-8", "utf-16": "utf-16-le"}[self.encoding]
        width = 2 if self.encoding == "utf-16" else 1
        head = lines[row].encode(codec)[: position["character"] * width]
        return sum(map(len, lines[:row])) + len(head.decode(codec))

    def change(self, params: dict[str, Any]) -> None:
        uri = params["textDocument"]["uri"]
        for change in params["contentChanges"]:
            text = self.texts[uri]
            if "range" not in change:
                self.texts[uri] = change["text"]
                continue
            start, end = (self.offset(text, change["range"][side]) for side in ("start", "end"))
            self.texts[uri] = text[:start] + change["text"] + text[end:]

    def items(self, params: dict[str, Any]) -> tuple[list[dict[str, Any]], bool]:
        text = self.texts[params["textDocument"]["uri"]]
        at = params["position"]
        before = text[: self.offset(text, at)]
        for rule in self.rules:
            if not before.endswith(rule["before"]):
                continue
            end = at | {"character": at["character"] + rule.get("replaces", 0)}
            items = [
                {
                    "insertText": one,
                    "range": {"start": at, "end": end},
                    "command": {
                        "title": "",
                        "command": "keyturn.didAcceptCompletion",
                        "arguments": [str(index)],
                    },
                }
                for index, one in enumerate(rule["texts"])
            ]
            return items, rule.get("hold", False)
        return [], False

    def answer(self, request: int, method: str, params: Any) -> None:
        result: Any = None
        if method == "initialize":
            capabilities = {
                "positionEncoding": self.encoding,
                "textDocumentSync": {"openClose": True, "change": 2},
                "inlineCompletionProvider": {},
                "executeCommandProvider": {"commands": ["keyturn.didAcceptCompletion"]},
            }
            result = {"capabilities": capabilities, "serverInfo": {"name": "k", "version": "7"}}
        elif method == "textDocument/inlineCompletion":
            result, is_held = self.items(params)
            if is_held:
                self.held.append((request, result))
                return
        elif method == "keyturn/status":
            summary = {"state": "ready", "text": "no suggestion: scripted", "help": "Type on."}
            result = {"state": "ready", "summary": summary, "log": __file__}
        elif method == "test/script":
            self.rules = params["rules"]
        elif method == "test/clear":
            self.rules, self.log = [], []
        elif method == "test/log":
            result = self.log
        elif method == "test/texts":
            result = self.texts
        elif method == "test/release":
            for held, items in self.held:
                self.send(id=held, result=items)
            self.held = []
        elif method == "test/notify":
            self.send(method=params["method"], params=params["params"])
        elif method == "test/die":
            sys.exit(9)
        self.send(id=request, result=result)

    def hear(self, method: str, params: Any) -> None:
        if method == "textDocument/didOpen":
            self.texts[params["textDocument"]["uri"]] = params["textDocument"]["text"]
        elif method == "textDocument/didChange":
            self.change(params)
        elif method == "textDocument/didClose":
            self.texts.pop(params["textDocument"]["uri"], None)
        elif method == "exit":
            sys.exit(0)

    def run(self) -> None:
        while header := sys.stdin.buffer.readline():
            length = int(header.split(b":")[1])
            while sys.stdin.buffer.readline().strip():
                pass
            message = json.loads(sys.stdin.buffer.read(length))
            method, params = message.get("method", ""), message.get("params")
            if not method.startswith("test/"):
                self.log.append({"method": method, "params": params})
            if "id" in message and method:
                self.answer(message["id"], method, params)
            elif method:
                self.hear(method, params)


if __name__ == "__main__":
    ScriptedServer(sys.argv[1]).run()
