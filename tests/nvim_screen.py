"""What a Neovim would draw: its grid as text and as a picture."""

from html import escape
from typing import Any

from .nvim import Nvim

CELL_WIDTH, CELL_HEIGHT, MARGIN = 8.4, 18, 12


class NvimScreen:
    """A screen attached to an editor; `read` it after something has happened.

    Args:
        nvim: the editor, which has no other screen.
        num_columns: its width, in cells.
        num_rows: its height, in cells.
    """

    def __init__(self, nvim: Nvim, num_columns: int, num_rows: int) -> None:
        self._nvim = nvim
        self._cells = [[(" ", 0)] * num_columns for _ in range(num_rows)]
        self._styles: dict[int, dict[str, Any]] = {0: {}}
        self._default = (0xE0E2EA, 0x14161B)
        options = {"rgb": True, "ext_linegrid": True}
        nvim.call("nvim_ui_attach", num_columns, num_rows, options)

    def read(self) -> list[str]:
        """Return the rows of the screen as they are now."""
        self._nvim.lua("vim.cmd.redraw()")
        self._nvim.lua("vim.wait(20)")
        for name, batches in self._nvim.heard:
            for batch in batches if name == "redraw" else ():
                for arguments in batch[1:]:
                    self._draw(batch[0], arguments)
        self._nvim.heard.clear()
        return ["".join(char for char, _ in row).rstrip() for row in self._cells]

    def _draw(self, event: str, arguments: list[Any]) -> None:
        if event == "hl_attr_define":
            self._styles[arguments[0]] = arguments[1]
        elif event == "default_colors_set":
            self._default = (arguments[0], arguments[1])
        elif event == "grid_clear":
            self._cells = [[(" ", 0)] * len(row) for row in self._cells]
        elif event == "grid_line":
            _, row, column, cells = arguments[:4]
            style = 0
            for char, *more in cells:
                style = more[0] if more else style
                for _ in range(more[1] if len(more) > 1 else 1):
                    self._cells[row][column] = (char, style)
                    column += 1
        elif event == "grid_scroll":
            _, top, bottom, left, right, num_rows, _ = arguments
            moved = [row[left:right] for row in self._cells]
            for row in range(top, bottom):
                if top <= row + num_rows < bottom:
                    self._cells[row][left:right] = moved[row + num_rows]

    def svg(self) -> str:
        """Return the screen as it was read last, as a picture."""
        rows, columns = len(self._cells), len(self._cells[0])
        width, height = columns * CELL_WIDTH + 2 * MARGIN, rows * CELL_HEIGHT + 2 * MARGIN
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
            f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14">',
            f'<rect width="100%" height="100%" rx="8" fill="#{self._default[1]:06x}"/>',
        ]
        for number, row in enumerate(self._cells):
            start = 0
            for end in range(1, columns + 1):
                if end == columns or row[end][1] != row[start][1]:
                    text = "".join(char for char, _ in row[start:end])
                    parts += self._run(text, row[start][1], number, start)
                    start = end
        return "\n".join([*parts, "</svg>", ""])

    def _run(self, text: str, style: int, row: int, column: int) -> list[str]:
        look = self._styles.get(style, {})
        front = look.get("foreground", self._default[0])
        back = look.get("background", self._default[1])
        if look.get("reverse"):
            front, back = back, front
        x, y = MARGIN + column * CELL_WIDTH, MARGIN + row * CELL_HEIGHT
        parts = []
        if back != self._default[1]:
            size = f'width="{len(text) * CELL_WIDTH:.1f}" height="{CELL_HEIGHT}"'
            parts.append(f'<rect x="{x:.1f}" y="{y}" {size} fill="#{back:06x}"/>')
        if text.strip():
            kind = ' font-weight="bold"' if look.get("bold") else ""
            kind += ' font-style="italic"' if look.get("italic") else ""
            parts.append(
                f'<text x="{x:.1f}" y="{y + 14}" fill="#{front:06x}" xml:space="preserve"'
                f"{kind}>{escape(text.rstrip())}</text>"
            )
        return parts
