"""Replay what a program writes to a terminal."""

import re

_PIECE = re.compile(r"\x1b\[(?P<count>[0-9;?]*)(?P<code>[A-Za-z])|(?P<control>[\r\n])|(?P<text>[^\x1b\r\n]+)")


def replay(written: str) -> list[str]:
    """Return the lines that stand on a terminal at the end; it does not wrap, since rich wraps lines itself."""
    lines, row, column = [""], 0, 0
    for piece in _PIECE.finditer(written):
        match piece["code"] or piece["control"]:
            case None:
                before = lines[row].ljust(column)
                column += len(piece["text"])
                lines[row] = before[: column - len(piece["text"])] + piece["text"] + before[column:]
            case "\r":
                column = 0
            case "\n":
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            case "A":
                row = max(0, row - int(piece["count"] or 1))
            case "K":
                lines[row] = ""
    return [line.rstrip() for line in lines]
