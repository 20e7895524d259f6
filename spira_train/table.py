"""CSV as people write it: with or without BOM, comma, semicolon or tab, LF or CRLF, quoted or not."""

import csv
import io

from spira_train.outcome import BadInput

Lines = list[tuple[int, list[str]]]


def read(content: bytes, name: str) -> Lines:
    """The lines that hold something, as (line number in the file, stripped cells).

    name: how messages call the file. Raises `BadInput` where it is not UTF-8 or not CSV.

    >>> read(b"\\xef\\xbb\\xbffile_path;class\\r\\n\\r\\na.wav;1\\r\\n", "metadata.csv")
    [(1, ['file_path', 'class']), (3, ['a.wav', '1'])]
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{name}: not UTF-8; save it as CSV UTF-8 and run again") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    try:
        return [(reader.line_num, [c.strip() for c in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise BadInput(f"{name}: line {reader.line_num} is not valid CSV ({error}); correct it and run again") from None


def by_column(lines: Lines, header: list[str]) -> list[tuple[int, dict[str, str] | None]]:
    """Cells by column name; None for a line with more cells than the header names. Missing cells are empty."""
    width = len(header)
    return [
        (number, None if any(cells[width:]) else dict(zip(header, cells + [""] * width, strict=False)))
        for number, cells in lines
    ]
