"""Titles and descriptions of generated books, composed from word lists of each topic."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Topic:
    """What books of one kind are about.

    Attributes:
        genre: Name of the genre, as a shop would print it.
        adjectives: For titles.
        nouns: For titles.
        themes: For descriptions.
    """

    genre: str
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    themes: tuple[str, ...]


def _topic(genre: str, adjectives: str, nouns: str, themes: str) -> Topic:
    return Topic(genre, tuple(adjectives.split()), tuple(nouns.split()), tuple(themes.split(", ")))


TOPICS = (
    _topic(
        "Space opera",
        "Distant Silent Orbital Stellar Falling Burning",
        "Star Fleet Colony Horizon Planet Nebula Station",
        "an alien signal, a mutiny aboard a starship, first contact, a dying sun, colonists far from Earth",
    ),
    _topic(
        "Detective",
        "Crooked Silent Missing Second Careful Cold",
        "Witness Alibi Inspector Verdict Clue Cellar Ledger",
        "a murder in a locked room, a retired inspector, a forged will, a vanished witness, poison at dinner",
    ),
    _topic(
        "Romance",
        "Tender Summer Secret Forgotten Second Gentle",
        "Heart Promise Wedding Letter Kiss Garden Waltz",
        "a broken engagement, rivals who fall in love, a wedding by the sea, letters never sent, a second chance",
    ),
    _topic(
        "Epic fantasy",
        "Broken Iron Ancient Hollow Golden Cursed",
        "Throne Dragon Sword Oath Kingdom Crown Rune",
        "a dragon awakened, an orphan heir, a war of wizards, a cursed sword, an old prophecy",
    ),
    _topic(
        "Horror",
        "Hollow Whispering Black Rotten Sleepless Cold",
        "House Grave Scream Shadow Cellar Hunger Doll",
        "a haunted house, something in the cellar, a possessed child, graves that open, a village cult, nightmares",
    ),
    _topic(
        "History",
        "Forgotten Great Imperial Long Divided Golden",
        "Empire Siege Treaty Century Republic Dynasty Harbour",
        "the fall of an empire, a forgotten treaty, merchants of the silk road, a peasant revolt, a long siege",
    ),
    _topic(
        "Cooking",
        "Simple Slow Golden Salty Wild Honest",
        "Kitchen Table Bread Oven Feast Spice Harvest",
        "sourdough baking, spices of the south, family recipes, slow stews, vegetables in season, desserts and pastry",
    ),
    _topic(
        "Travel",
        "Long Northern Open Distant Wild Last",
        "Road Island Railway Desert Journey Harbour Map",
        "a journey by train, crossing the desert, islands of the north, hitchhiking, mountain passes",
    ),
    _topic(
        "War",
        "Iron Burning Last Muddy Fallen Divided",
        "Trench Soldier Bridge Regiment Front Siege Winter",
        "soldiers in the trenches, a bridge to hold, a field hospital, deserters, letters from the front, occupation",
    ),
    _topic(
        "Science",
        "Hidden Curious Tiny Infinite Strange Elegant",
        "Atom Gene Universe Experiment Number Cell Equation",
        "the physics of time, evolution of the cell, a failed experiment, black holes, the mathematics of chance",
    ),
    _topic(
        "Comedy",
        "Reluctant Ridiculous Unlikely Careless Hopeless Second",
        "Butler Uncle Holiday Wedding Goose Landlord Disaster",
        "a disastrous dinner party, mistaken identity, an eccentric uncle, a runaway goose, bad advice",
    ),
    _topic(
        "Nature",
        "Wild Quiet Green Northern Wandering Tidal",
        "Forest River Fox Meadow Tide Garden Owl",
        "wolves returning, an ancient forest, birds on migration, a river in flood, tide pools, a year in a meadow",
    ),
)

_FIRST = (
    "Ada Bruno Chiara Dmitri Elif Farah Goran Hana Ines Jonas Keiko Lars Mina Nils Olga Pavel Rosa Samir Tove Yusuf"
)
_LAST = (
    "Abara Bergström Castell Dorn Eriksen Faro Grimaldi Haddad Ivanova Jansen Kato Lindqvist Moreau Novak Okafor "
    "Petrov Quint Rossi Sato Tanaka Ude Varga Weiss Ximenes Yilmaz Zeller"
)
_PATTERNS = ("The {adjective} {noun}", "{adjective} {noun}", "The {noun} of the {other}", "{noun} and {other}")
_VOLUMES = ("A Sequel", "The Return", "Another Year", "The Last Part")
_AUTHORS_PER_TOPIC = 8


def describe_items(topics: NDArray[np.int64], random: np.random.Generator) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a title, unique, and a text for each item.

    Args:
        topics: Positions in :data:`TOPICS` of each item's main and second topic, int64 [items, 2].
        random: Where words are drawn from.
    """
    authors = _draw_authors(random)
    seen: dict[str, int] = {}
    titles, texts = [], []
    for main, second in topics.tolist():
        title = _numbered(_draw_title(TOPICS[main], TOPICS[second], random), seen)
        author = authors[main][int(random.integers(_AUTHORS_PER_TOPIC))]
        first, other = _pick(TOPICS[main].themes, random), _pick(TOPICS[second].themes, random)
        year = 1950 + int(random.integers(75))
        titles.append(title)
        texts.append(
            f"{title} ({year}), by {author}. {TOPICS[main].genre}, {TOPICS[second].genre}. On {first} and {other}."
        )
    return tuple(titles), tuple(texts)


def _draw_title(main: Topic, second: Topic, random: np.random.Generator) -> str:
    return _pick(_PATTERNS, random).format(
        adjective=_pick(main.adjectives, random), noun=_pick(main.nouns, random), other=_pick(second.nouns, random)
    )


def _numbered(title: str, seen: dict[str, int]) -> str:
    """Return the title, told apart from those seen before: first by a subtitle, then by a volume number."""
    count = seen[title] = seen.get(title, 0) + 1
    if count == 1:
        return title
    if count <= len(_VOLUMES) + 1:
        return f"{title}: {_VOLUMES[count - 2]}"
    return f"{title}: Volume {count}"


def _draw_authors(random: np.random.Generator) -> list[list[str]]:
    """Return the authors of each topic; an author writes about one topic."""
    names = [f"{first} {last}" for first in _FIRST.split() for last in _LAST.split()]
    chosen = random.permutation(len(names))[: len(TOPICS) * _AUTHORS_PER_TOPIC]
    return [[names[name] for name in row] for row in chosen.reshape(len(TOPICS), _AUTHORS_PER_TOPIC).tolist()]


def _pick(words: tuple[str, ...], random: np.random.Generator) -> str:
    return words[int(random.integers(len(words)))]
