"""The Python API: a trained model in an app. Load it, adapt it to a user, recommend; nothing leaves the process.

    rec = Recommender.load("run")
    user = rec.adapt(["1197", ("Matrix, The (1999)", 5.0)])
    for item in user.recommend(10):
        print(item.title, user.explain(item.item_id))

A ``Recommender`` and its users may be shared between threads: a model and a catalogue are read and replaced whole.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from client.answer import Recommendation
from client.explain import influences
from client.history import Profile, clear_position, position_of, read_attributes
from client.interaction import Interaction, Told, check_clear, interactions_of, profile_of
from client.lists import (
    Item,
    Wish,
    best,
    best_of_each,
    checked_k,
    chosen,
    listed,
    ranked_scores,
)
from client.recommend import predicted_ratings, task_of
from metarec_shared.catalogue import Catalogue
from metarec_shared.checkpoint import Checkpoint, load_checkpoint
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import DataError
from metarec_shared.files import write_text
from metarec_shared.model import BertRecommender
from metarec_shared.other_catalogue import model_with
from metarec_shared.settings import Settings

__all__ = ["Explanation", "Influence", "Interaction", "Item", "Recommendation", "Recommender", "User"]

USER_FORMAT = 1
"""Version of the file that ``User.save`` writes."""

USERS_AT_ONCE = 64
"""Users of one batch; memory is users x items x 4 bytes, a few times."""

NAMED = 3
"""Items of the history that an explanation names in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """How much an item of the history moves a score: its derivative in the item's weight."""

    item_id: str
    title: str
    influence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why an item has its score.

    Attributes:
        item_id: The item.
        title: Its title.
        influences: Of all items of the history, the one that speaks most for it first.
    """

    item_id: str
    title: str
    influences: Sequence[Influence]

    def __str__(self) -> str:
        """Say in words which items of the history moved the score most."""
        if not self.influences:
            return f"{self.title}: nothing is known of you yet that speaks for it or against it"
        speaking = [one.title for one in self.influences if one.influence > 0][:NAMED]
        if speaking:
            return f"{self.title}: because of {', '.join(speaking)}"
        against = [one.title for one in reversed(self.influences)][:NAMED]
        return f"{self.title}: nothing in your history speaks for it; most against it {', '.join(against)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A model over a catalogue, and what every user needs of it; never changed, only replaced.

    Attributes:
        model: The recommender.
        catalogue: Its items.
        vectors: Their vectors.
        text: Their text vectors, of length 1.
    """

    model: BertRecommender
    catalogue: Catalogue
    vectors: Float[Tensor, "items width"]
    text: Float[Tensor, "items text"]

    @classmethod
    @torch.no_grad()
    def of(cls, model: BertRecommender, catalogue: Catalogue) -> "State":
        """Compute it."""
        return cls(model=model, catalogue=catalogue, vectors=model.item_vectors(), text=F.normalize(model.text, dim=1))


class Recommender:
    """A trained model over a catalogue.

    Args:
        checkpoint: The trained model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._state = State.of(checkpoint.full_model(), checkpoint.items.catalogue)
        self._changes = threading.Lock()

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Load the model of a run's folder.

        Raises:
            CheckpointError: The folder holds no usable model that ranks.
        """
        return cls(load_checkpoint(Path(path)))

    @property
    def catalogue(self) -> Catalogue:
        """The items, those that were added included."""
        return self._state.catalogue

    @property
    def rating_scale(self) -> RatingScale | None:
        """Scale of the ratings of histories; None: the model reads none."""
        return self._checkpoint.rating_scale

    def adapt(self, history: Iterable[Told], *, attributes: Mapping[str, str] | None = None) -> "User":
        """Return a user who is known by a history; an empty one is a user of whom nothing is known.

        Args:
            history: Items by id or exact title, each by choice with a rating and a time; where all have times they are
                read in that order, and the history is taken for whole.
            attributes: What the user tells of himself, by column, for a model that reads such.

        Raises:
            DataError: The history or an attribute makes no sense. Items that are not in the catalogue do
                (``User.skipped``).
        """
        interactions = interactions_of(history)
        check_clear(interactions, self.catalogue)
        return User(self, interactions, self.attribute_hashes(attributes or {}))

    def attribute_hashes(self, attributes: Mapping[str, str]) -> list[int]:
        """Return what a user tells of himself, by column, as the model reads it.

        Raises:
            DataError: The model reads no attributes, or was not trained on such a column.
        """
        return read_attributes([(str(column), str(value)) for column, value in attributes.items()], self._settings)

    def adapt_all(self, histories: Iterable[Iterable[Told]]) -> list["User"]:
        """Return the users of many histories, adapted to in batches; the same as one by one, to rounding.

        Each keeps his scores of the catalogue, items x 4 bytes, as any user does who was recommended something.

        Raises:
            DataError: As ``adapt``.
        """
        users = [self.adapt(history) for history in histories]
        state = self._state
        for start in range(0, len(users), USERS_AT_ONCE):
            batch = users[start : start + USERS_AT_ONCE]
            profiles = [user.profile_in(state) for user in batch]
            for user, profile, scored in zip(batch, profiles, scores_of(state, profiles), strict=True):
                user.know(state, profile, scored)
        return users

    def user(self, path: Path | str) -> "User":
        """Load a user whom ``User.save`` wrote; the model may be another one by now.

        Raises:
            DataError: The file is missing, damaged, or of a later version.
        """
        return User.load(path, self)

    @torch.no_grad()
    def similar_items(self, item: str, k: int = 10) -> list[Recommendation]:
        """Return the items whose text is most like an item's, the most similar first; scores are cosines.

        Args:
            item: Its id or exact title.
            k: How many.

        Raises:
            DataError: There is no such item.
        """
        state = self._state
        position = _known_position(item, state.catalogue)
        cosines = state.text @ state.text[position]
        cosines[position] = -torch.inf
        return listed(state.catalogue, cosines, best(cosines, checked_k(k)))

    def add_items(self, texts: Mapping[str, str], *, titles: Mapping[str, str] | None = None) -> None:
        """Add items to the catalogue; they can be recommended, and adapted to, at once, by what their text says.

        Users that are there already see them too. The run's text encoder must be here, and reads the new texts; the
        built-in one is trained again, on the run's catalogue, which takes as long as it did.

        Args:
            texts: The new items' texts, by id.
            titles: Their titles, by id; an item without one bears the first line of its text.

        Raises:
            DataError: An id is taken, or a text is empty.
            MetaRecError: The run's text encoder is not here, or gives other vectors than it did.
        """
        if not texts:
            return
        named = titles or {}
        if unknown := sorted(named.keys() - texts.keys()):
            raise DataError(f"titles of items that are not added: {', '.join(unknown)}")
        if empty := sorted(item for item, text in texts.items() if not (item.strip() and text.strip())):
            raise DataError(f"items need an id and a text, got none for {', '.join(map(repr, empty))}")
        with self._changes:
            state = self._state
            if taken := sorted(texts.keys() & state.catalogue.index.keys()):
                raise DataError(f"the catalogue has items of these ids: {', '.join(taken)}")
            added = Catalogue(
                item_ids=tuple(texts),
                titles=tuple(named.get(item, text.strip().splitlines()[0]) for item, text in texts.items()),
                texts=tuple(texts.values()),
            )
            model, catalogue = model_with(self._checkpoint, state.model.text, state.catalogue, added)
            self._state = State.of(model, catalogue)

    @property
    def _settings(self) -> Settings:
        return self._checkpoint.settings

    @property
    def state(self) -> State:
        """The model and the catalogue as they are now."""
        return self._state


class User:
    """A user that the model is adapted to. Made by ``Recommender.adapt``; holds a private history.

    Args:
        recommender: The model.
        interactions: The history.
        attributes: Hashes of what the user tells of himself.
    """

    def __init__(
        self, recommender: Recommender, interactions: Sequence[Interaction], attributes: Sequence[int] = ()
    ) -> None:
        self._recommender = recommender
        self._interactions, self._attributes = tuple(interactions), tuple(attributes)
        self._ids: dict[str, str] = {}
        self._known: tuple[State, Profile, Tensor] | None = None
        self._changes = threading.Lock()
        self._read(recommender.state, self._interactions)  # what makes no sense is said at once
        self._pin(interactions)

    @property
    def history(self) -> Sequence[Interaction]:
        """What the user did, as it was told."""
        return self._interactions

    @property
    def skipped(self) -> Sequence[str]:
        """What of the history the catalogue lacks, or does not have clearly: a title that several items bear by now."""
        return self.profile_in(self._recommender.state).skipped

    def update(self, interactions: Iterable[Told]) -> Self:
        """Take in new interactions, and adapt anew: to the union of old and new, exactly.

        Raises:
            DataError: They make no sense, alone or with the history; it stays as it was.
        """
        told = interactions_of(interactions)
        check_clear(told, self._recommender.catalogue)
        with self._changes:
            union = (*self._interactions, *told)
            self._read(self._recommender.state, union)  # what makes no sense is said before anything changes
            self._pin(told)
            self._interactions, self._known = union, None
        return self

    @torch.no_grad()
    def recommend(
        self,
        k: int = 10,
        *,
        exclude: Iterable[str] = (),
        candidates: Iterable[str] | None = None,
        filter: Callable[[Item], bool] | None = None,  # noqa: A002 - what an app would call it
        include_known: bool = False,
        popularity: float = 1.0,
        diversity: float = 0.0,
        fresh: Mapping[str, float] | None = None,
        freshness: float = 0.0,
    ) -> list[Recommendation]:
        """Return the items that suit the user, best first; fewer than ``k`` where there are no more.

        Args:
            k: How many.
            exclude: Items that are not wanted; ids that the catalogue lacks are passed over.
            candidates: The only items that may be recommended; None: the whole catalogue.
            filter: Says of an item whether it may be recommended. It is asked in the order of scores, until there are
                enough.
            include_known: Whether items of the history may be recommended.
            popularity: What the score bias counts for, which began as log popularity: 1 as trained, 0 not at all.
            diversity: From 0 to 1: how much unlike each other the items shall be (``rerank``).
            fresh: How fresh items are, from 0 to 1, by id; those that are not named are not.
            freshness: From 0 to 1: what that counts for, against the score.

        Raises:
            DataError: As ``Wish.of``: ``k`` is no whole number from 1 on, a weight or a freshness not from 0 to 1.
        """
        state, profile, scored = self._scored()
        wish = Wish.of(
            state.catalogue,
            profile,
            k=k,
            exclude=exclude,
            candidates=candidates,
            include_known=include_known,
            popularity=popularity,
            diversity=diversity,
            fresh=fresh,
            freshness=freshness,
        )
        ranked = ranked_scores(scored[None], state.model.item_bias, [wish])[0]
        pool = best(ranked, wish.pool, None if filter is None else _asking(filter, state.catalogue))
        places = chosen(ranked, pool, state.vectors, state.catalogue, wish)
        ratings = predicted_ratings(state.model, state.vectors, [profile], [places], self._recommender.rating_scale)[0]
        return listed(state.catalogue, ranked, places, ratings)

    def explain(self, item: str) -> Explanation:
        """Say which items of the history speak for an item: exact influences on its score (``explain.influences``).

        Args:
            item: Its id or exact title.

        Raises:
            DataError: There is no such item.
        """
        state, profile, _ = self._scored()
        position = _known_position(item, state.catalogue)
        found: list[Influence] = []
        if profile.items:
            values = influences(state.model, task_of([profile]), state.vectors, [position])[0].tolist()
            found = [
                Influence(
                    item_id=state.catalogue.item_ids[one.position],
                    title=state.catalogue.titles[one.position],
                    influence=value,
                )
                for one, value in zip(profile.items, values, strict=True)
            ]
        return Explanation(
            item_id=state.catalogue.item_ids[position],
            title=state.catalogue.titles[position],
            influences=sorted(found, key=lambda one: -one.influence),
        )

    def save(self, path: Path | str) -> None:
        """Write the history to a file that its owner alone may read (mode 0600), in place of what was there."""
        value = {
            "format": USER_FORMAT,
            "interactions": [asdict(one) for one in self._interactions],
            "attributes": list(self._attributes),
        }
        write_text(Path(path), json.dumps(value, ensure_ascii=False) + "\n", mode=0o600)

    @classmethod
    def load(cls, path: Path | str, recommender: Recommender) -> Self:
        """Load a user whom ``save`` wrote, adapted by whatever model there is now.

        Raises:
            DataError: The file is missing, damaged, open to others, or of a later version.
        """
        file = Path(path)
        try:
            if file.stat().st_mode & 0o077 and os.name == "posix":
                raise DataError(f"{file}: others may read it; chmod 600 {file}")
            value = json.loads(file.read_text(encoding="utf-8"))
            version = value["format"]
            if version != USER_FORMAT:
                raise DataError(f"{file}: format {version!r} is not the format {USER_FORMAT} that this version reads")
            interactions = interactions_of(Interaction(**one) for one in value["interactions"])
            attributes = [int(one) for one in value["attributes"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: cannot read a user: {error}") from error
        return cls(recommender, interactions, attributes)

    def profile_in(self, state: State) -> Profile:
        """Return the history as the model reads it, over a catalogue."""
        return self._read(state, self._interactions)

    def know(self, state: State, profile: Profile, scored: Float[Tensor, " items"]) -> None:
        """Take in scores that were computed in a batch."""
        with self._changes:
            self._known = (state, profile, scored.clone())  # a row of its own, not the whole batch

    def _pin(self, interactions: Iterable[Interaction]) -> None:
        """Keep in mind which items were meant: added ones may bear the same titles, or titles for ids."""
        catalogue = self._recommender.catalogue
        for one in interactions:
            place = clear_position(one.item, catalogue)
            if place is not None:
                self._ids.setdefault(one.item, catalogue.item_ids[place])

    def _read(self, state: State, interactions: Sequence[Interaction]) -> Profile:
        meant = [replace(one, item=self._ids.get(one.item, one.item)) for one in interactions]
        return profile_of(meant, state.catalogue, self._recommender.rating_scale, self._attributes)

    def _scored(self) -> tuple[State, Profile, Float[Tensor, " items"]]:
        """Return the catalogue's scores, computed once for a history and a model."""
        with self._changes:
            state = self._recommender.state
            if self._known is None or self._known[0] is not state:
                profile = self._read(state, self._interactions)
                self._known = (state, profile, scores_of(state, [profile])[0])
            return self._known


@torch.no_grad()
def scores_of(state: State, profiles: Sequence[Profile]) -> Float[Tensor, "users items"]:
    """Return the scores of all items for each user; who has no history is scored by the meta-initialization."""
    scored = torch.empty(len(profiles), len(state.catalogue))
    known = torch.tensor([len(profile.items) > 0 for profile in profiles])
    for adapt in (True, False):
        places = (known == adapt).nonzero()[:, 0]
        if len(places):
            tasks = task_of([profiles[place] for place in places.tolist()])
            scored[places] = state.model(tasks, adapt=adapt, E=state.vectors)
    return scored


@torch.no_grad()
def lists_of(
    state: State,
    scale: RatingScale | None,
    profiles: Sequence[Profile],
    scored: Float[Tensor, "users items"],
    wishes: Sequence[Wish],
) -> list[list[Recommendation]]:
    """Return the list of each user: what ``User.recommend`` would, ranked at once.

    Args:
        state: The model.
        scale: Scale of its ratings.
        profiles: The users' histories.
        scored: What ``scores_of`` returned for them.
        wishes: What their lists shall be.
    """
    ranked = ranked_scores(scored, state.model.item_bias, wishes)
    places = best_of_each(ranked, state.vectors, state.catalogue, wishes)
    ratings = predicted_ratings(state.model, state.vectors, profiles, places, scale)
    return [listed(state.catalogue, *row) for row in zip(ranked, places, ratings, strict=True)]


def _asking(wanted: Callable[[Item], bool], catalogue: Catalogue) -> Callable[[int], bool]:
    return lambda place: bool(wanted(Item(item_id=catalogue.item_ids[place], title=catalogue.titles[place])))


def _known_position(item: str, catalogue: Catalogue) -> int:
    position = position_of(item, catalogue)
    if position is None:
        raise DataError(f"no item {item!r} in a catalogue of {len(catalogue)}")
    return position
