"""What two spellings of a film's title have in common."""

import re
import unicodedata

_ARTICLES = re.compile(r"^(.*), (the|a|an|le|la|les|l'|il|el|los|las|der|die|das|un|une)$")
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_OTHER_TITLES = re.compile(r"\([^)]*\)")


def normalized_title(title: str) -> str:
    """Return what two spellings of a title have in common: letters, digits and the year.

    Other titles in parentheses do not count, nor do accents, case, punctuation and where an article stands.

    Examples:
        >>> normalized_title("Matrix, The (1999)") == normalized_title("the matrix  (1999)")
        True
        >>> normalized_title("Cité des enfants perdus, La (City of Lost Children) (1995)")
        'lacitedesenfantsperdus 1995'
    """
    plain = " ".join(unicodedata.normalize("NFKD", title.casefold()).split())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    year = _YEAR.search(plain)
    words = _OTHER_TITLES.sub(" ", _YEAR.sub("", plain)).strip()
    if moved := _ARTICLES.match(words):
        words = f"{moved[2]} {moved[1]}"
    words = re.sub(r"[\W_]", "", words.replace("&", "and"))
    if not words:  # a title of punctuation, or all in parentheses
        return plain
    return f"{words} {year[1]}" if year else words
