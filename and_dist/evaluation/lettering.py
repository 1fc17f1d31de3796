"""Write names of any script into pictures, in a font that has their letters. No torch.

DejaVu Sans comes with the program, and has Latin, Greek, Cyrillic, Arabic, Armenian, Georgian and
many symbols. A text with other letters is written in the first font of the machine that has all of
them. Letters that no font has are written as their code points, such as [U+4E2D U+6587].
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from unicodedata import category

from PIL import Image, ImageDraw, ImageFont, features

from and_dist.utils.formatting import as_text

SHIPPED = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"
SUFFIXES = (".ttf", ".otf", ".ttc")
MOST_FONTS = 500
"""The largest number of the machine's fonts that are looked at."""
OTHER_STYLES = re.compile("bold|black|heavy|italic|oblique|light|thin|condensed|mono", re.I)
"""A pattern of the file names of fonts that are taken only where no plain one serves."""
NO_LETTER = "\U0010ffff"
"""A code point that no font has, so that it is drawn as the box of a missing letter."""
JOINERS = frozenset("\u200c\u200d") | {chr(code) for code in range(0xFE00, 0xFE10)}
"""Letters that are not seen, but change how their neighbours are drawn."""
LONGEST_TEXT = 400
"""The largest number of letters of a text that are looked at."""
ELLIPSIS = "…"
ALWAYS_NEEDED = f"[U+0123456789ABCDEF ]{ELLIPSIS}"
"""Letters that stand for those that are missing or have no room."""
GAPS = (" ", "_", "-", ".")
"""Letters after which a line may end."""
BASELINE = 0.76
"""Where letters stand, as a share of the height of their line."""


class Font:
    """Hold a font of one size, and remember which letters it has."""

    def __init__(self, path: Path, size: int) -> None:
        """Open a font file; raise OSError if it cannot be drawn in this size."""
        self._path, self._size = path, size
        # Raqm may replace or leave out letters, and here each is looked at alone.
        self._plain = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
        self._missing = self._look(NO_LETTER)
        self._has: dict[str, bool] = {}

    @cached_property
    def drawn(self) -> ImageFont.FreeTypeFont:
        """Return the font that text is drawn in."""
        return ImageFont.truetype(self._path, self._size)

    def has(self, letter: str) -> bool:
        """Return whether the font draws a letter, and not the box of a missing one."""
        if letter not in self._has:
            self._has[letter] = self._is_drawn(letter)
        return self._has[letter]

    def count(self, letters: Iterable[str]) -> int:
        """Return how many of the letters the font has."""
        return sum(map(self.has, letters))

    def _is_drawn(self, letter: str) -> bool:
        """Return whether a letter has ink, unless it is a space, and not that of a missing one."""
        try:
            seen = self._look(letter)
        except OSError:  # the font is damaged there
            return False
        return (any(seen[1]) or category(letter) == "Zs") and seen != self._missing

    def _look(self, letter: str) -> tuple[tuple[int, int], bytes]:
        """Return the size and pixels of a letter."""
        mask = self._plain.getmask(letter)
        return mask.size, bytes(mask)


def list_fonts() -> tuple[Path, ...]:
    """Return the font files of this machine where fontconfig has them, plain styles first."""
    home = os.path.expanduser("~")
    data_home = os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share"
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    places = [f"{folder}/fonts" for folder in (data_home, *shared.split(":")) if folder]
    found = [
        Path(base, name)
        for place in dict.fromkeys((*places, f"{home}/.fonts"))
        for base, _, names in os.walk(place)
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]
    plain_first = sorted(found, key=lambda path: (bool(OTHER_STYLES.search(path.name)), path))
    return tuple(plain_first[:MOST_FONTS])


@cache
def open_font(path: Path, size: int) -> Font | None:
    """Return a font in a size, or None if it cannot be drawn in it or lacks ALWAYS_NEEDED."""
    try:
        font = Font(path, size)
    except OSError:  # such as a font of bitmaps, which has other sizes
        return None
    return font if all(map(font.has, ALWAYS_NEEDED)) else None


@cache
def shipped_font(size: int) -> Font:
    """Return the font that comes with the program."""
    return Font(SHIPPED, size)


@cache
def machine_fonts() -> tuple[Path, ...]:
    """Return the machine's fonts, which are looked for once."""
    return list_fonts()


def choose_font(text: str, size: int) -> Font:
    """Return the first font that has all letters of a text, or else the one that has most."""
    letters = [letter for letter in dict.fromkeys(text) if letter not in JOINERS]
    best = shipped_font(size)
    most = best.count(letters)
    for path in machine_fonts() if most < len(letters) else ():
        font = open_font(path, size)
        if font is not None and (count := font.count(letters)) > most:
            best, most = font, count
        if most == len(letters):
            break
    return best


class Line:
    """Hold a text as it is drawn in one line, in a font that has its letters."""

    def __init__(self, text: str, font: Font) -> None:
        """Keep a text, all of whose letters the font has."""
        self.text = text
        self._font = font

    @property
    def width(self) -> int:
        """Return the width in pixels."""
        return int(-(-self._font.drawn.getlength(self.text) // 1))

    def draw(
        self,
        sheet: Image.Image,
        place: tuple[int, int],
        size: tuple[int, int],
        colour: str = "black",
    ) -> None:
        """Draw the text into a box at a place; what reaches beyond the box is cut off."""
        ink = Image.new("L", size)
        baseline = round(BASELINE * size[1])
        ImageDraw.Draw(ink).text((0, baseline), self.text, 255, self._font.drawn, anchor="ls")
        sheet.paste(colour, (*place, place[0] + size[0], place[1] + size[1]), ink)


def fit(text: str, width: int, size: int, most_lines: int = 1) -> list[Line]:
    """Return a text in lines of at most `width` pixels; a longer one loses its middle.

    The end of a file's name is kept, since it often tells files apart.
    """
    if len(text) > LONGEST_TEXT:
        text = text[: LONGEST_TEXT // 2] + ELLIPSIS + text[-LONGEST_TEXT // 2 :]
    shown = as_text(text)
    font = choose_font(shown, size)

    def fits(*parts: str) -> bool:
        return Line("".join(parts), font).width <= width

    rest = split_units(shown, font)
    lines: list[str] = []
    while len(lines) + 1 < most_lines and not fits(*rest):
        end = _end_of_line(rest, fits)
        lines.append("".join(rest[:end]).rstrip())
        rest = rest[end:]
    lines.append(_shorten(rest, fits).lstrip(" " if lines else ""))
    return [Line(line, font) for line in lines]


def split_units(text: str, font: Font) -> list[str]:
    """Return a text in parts that are not broken: a letter with its marks, or a code point."""
    keeps_joiners = features.check("raqm")
    units: list[str] = []
    is_in_brackets = False
    for letter in text:
        if letter in JOINERS:
            if keeps_joiners and units and not is_in_brackets:
                units[-1] += letter
        elif not font.has(letter):
            units.append(f"{' ' if is_in_brackets else '['}U+{ord(letter):04X}")
            is_in_brackets = True
        else:
            units[-1:] = [f"{unit}]" if is_in_brackets else unit for unit in units[-1:]]
            if units and not is_in_brackets and category(letter).startswith("M"):
                units[-1] += letter
            else:
                units.append(letter)
            is_in_brackets = False
    return [*units[:-1], f"{units[-1]}]"] if is_in_brackets else units


def _shorten(units: Sequence[str], fits: Callable[..., bool]) -> str:
    """Return a text that fits, with an ellipsis for its middle if it is too long."""
    if fits(*units):
        return "".join(units)

    head: list[str] = []
    tail: list[str] = []
    for _ in units:
        is_at_head = len("".join(head)) <= len("".join(tail))
        more = [*head, units[len(head)]] if is_at_head else head
        less = tail if is_at_head else [units[-len(tail) - 1], *tail]
        if not fits(*more, ELLIPSIS, *less):
            break
        head, tail = more, less
    return "".join((*head, ELLIPSIS, *tail))


def _end_of_line(units: Sequence[str], fits: Callable[..., bool]) -> int:
    """Return how many units stand in a line: up to its last gap, unless that is near its start."""
    most = 1
    while most < len(units) and fits(*units[: most + 1]):
        most += 1
    for end in range(most, most // 3, -1):
        if units[end - 1] in GAPS or (units[end : end + 1] and units[end].startswith(" ")):
            return end
    return most
