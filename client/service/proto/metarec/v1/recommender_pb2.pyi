from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Interaction(_message.Message):
    __slots__ = ("item", "rating", "time")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    item: str
    rating: float
    time: float
    def __init__(self, item: _Optional[str] = ..., rating: _Optional[float] = ..., time: _Optional[float] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("interactions", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    interactions: _containers.RepeatedCompositeFieldContainer[Interaction]
    attributes: _containers.ScalarMap[str, str]
    def __init__(self, interactions: _Optional[_Iterable[_Union[Interaction, _Mapping]]] = ..., attributes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("state", "history", "k", "exclude", "candidates", "include_known", "popularity", "diversity")
    STATE_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_KNOWN_FIELD_NUMBER: _ClassVar[int]
    POPULARITY_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    state: bytes
    history: History
    k: int
    exclude: _containers.RepeatedScalarFieldContainer[str]
    candidates: Candidates
    include_known: bool
    popularity: float
    diversity: float
    def __init__(self, state: _Optional[bytes] = ..., history: _Optional[_Union[History, _Mapping]] = ..., k: _Optional[int] = ..., exclude: _Optional[_Iterable[str]] = ..., candidates: _Optional[_Union[Candidates, _Mapping]] = ..., include_known: _Optional[bool] = ..., popularity: _Optional[float] = ..., diversity: _Optional[float] = ...) -> None: ...

class Candidates(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, items: _Optional[_Iterable[str]] = ...) -> None: ...

class Recommendation(_message.Message):
    __slots__ = ("item_id", "title", "score", "rating")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    score: float
    rating: float
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., score: _Optional[float] = ..., rating: _Optional[float] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("items", "skipped", "model")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Recommendation]
    skipped: _containers.RepeatedScalarFieldContainer[str]
    model: str
    def __init__(self, items: _Optional[_Iterable[_Union[Recommendation, _Mapping]]] = ..., skipped: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ...) -> None: ...

class RecommendBatchRequest(_message.Message):
    __slots__ = ("users",)
    USERS_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedCompositeFieldContainer[RecommendRequest]
    def __init__(self, users: _Optional[_Iterable[_Union[RecommendRequest, _Mapping]]] = ...) -> None: ...

class RecommendBatchResponse(_message.Message):
    __slots__ = ("user", "response", "problem")
    USER_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    user: int
    response: RecommendResponse
    problem: Problem
    def __init__(self, user: _Optional[int] = ..., response: _Optional[_Union[RecommendResponse, _Mapping]] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class AdaptRequest(_message.Message):
    __slots__ = ("history",)
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    history: History
    def __init__(self, history: _Optional[_Union[History, _Mapping]] = ...) -> None: ...

class UpdateRequest(_message.Message):
    __slots__ = ("state", "interactions")
    STATE_FIELD_NUMBER: _ClassVar[int]
    INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    state: bytes
    interactions: _containers.RepeatedCompositeFieldContainer[Interaction]
    def __init__(self, state: _Optional[bytes] = ..., interactions: _Optional[_Iterable[_Union[Interaction, _Mapping]]] = ...) -> None: ...

class StateResponse(_message.Message):
    __slots__ = ("state", "known", "skipped", "model")
    STATE_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    state: bytes
    known: int
    skipped: _containers.RepeatedScalarFieldContainer[str]
    model: str
    def __init__(self, state: _Optional[bytes] = ..., known: _Optional[int] = ..., skipped: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("state", "history", "item")
    STATE_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    state: bytes
    history: History
    item: str
    def __init__(self, state: _Optional[bytes] = ..., history: _Optional[_Union[History, _Mapping]] = ..., item: _Optional[str] = ...) -> None: ...

class Influence(_message.Message):
    __slots__ = ("item_id", "title", "influence")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    INFLUENCE_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    influence: float
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., influence: _Optional[float] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("item_id", "title", "influences", "sentence", "model")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    INFLUENCES_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    influences: _containers.RepeatedCompositeFieldContainer[Influence]
    sentence: str
    model: str
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., influences: _Optional[_Iterable[_Union[Influence, _Mapping]]] = ..., sentence: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class SimilarItemsRequest(_message.Message):
    __slots__ = ("item", "k")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    item: str
    k: int
    def __init__(self, item: _Optional[str] = ..., k: _Optional[int] = ...) -> None: ...

class SimilarItemsResponse(_message.Message):
    __slots__ = ("items", "model")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Recommendation]
    model: str
    def __init__(self, items: _Optional[_Iterable[_Union[Recommendation, _Mapping]]] = ..., model: _Optional[str] = ...) -> None: ...

class UserState(_message.Message):
    __slots__ = ("interactions", "attributes")
    INTERACTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    interactions: _containers.RepeatedCompositeFieldContainer[Interaction]
    attributes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, interactions: _Optional[_Iterable[_Union[Interaction, _Mapping]]] = ..., attributes: _Optional[_Iterable[int]] = ...) -> None: ...
