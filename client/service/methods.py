"""The methods of the service: requests in, answers of the model out."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import grpc

from client.answer import Recommendation
from client.interaction import check_clear, profile_of
from client.service.answers import Answer, explain, similar_items
from client.service.batcher import Batcher
from client.service.calls import Call, Calls, status_of
from client.service.limits import Limits, check_count, check_name
from client.service.proto.metarec.v1 import recommender_pb2 as pb
from client.service.refusal import RefusedError
from client.service.requests import Asked, read_history, read_k, read_recommend, read_user
from client.service.served import Models, Served
from client.service.user_state import Known, pack_state, read_interactions, unpack_state

SERVICE = pb.DESCRIPTOR.services_by_name["Recommender"].full_name


class Methods:
    """Answers calls.

    Args:
        models: The model that is served.
        batcher: What computes.
        limits: How much a call may ask for.
        window: Users of one RecommendBatch that wait at a time.
        places: Users of all RecommendBatches that wait for the model at a time; the others wait for a place.
        batches: RecommendBatches that are answered at a time; further ones are refused.

    Attributes:
        waiting: Users of RecommendBatches that wait for a place.
    """

    def __init__(
        self,
        models: Models,
        batcher: Batcher[Asked, Answer],
        limits: Limits,
        *,
        window: int,
        places: int,
        batches: int,
    ) -> None:
        self._models, self._batcher, self._limits, self._window = models, batcher, limits, window
        self._places, self._batches, self._most_batches = asyncio.Semaphore(places), 0, batches
        self.waiting = 0

    def handler(self, calls: Calls) -> "grpc.GenericRpcHandler":
        """Return all methods as gRPC takes them."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Recommend": calls.single("Recommend", pb.RecommendRequest, self.recommend),
                "RecommendBatch": calls.stream("RecommendBatch", pb.RecommendBatchRequest, self.recommend_batch),
                "Adapt": calls.single("Adapt", pb.AdaptRequest, self.adapt),
                "Update": calls.single("Update", pb.UpdateRequest, self.update),
                "Explain": calls.single("Explain", pb.ExplainRequest, self.explain),
                "SimilarItems": calls.single("SimilarItems", pb.SimilarItemsRequest, self.similar_items),
            },
        )

    async def recommend(self, request: pb.RecommendRequest, call: Call) -> pb.RecommendResponse:
        """Recommend to a user."""
        asked = read_recommend(request, self._models.served.recommender, self._limits)
        answer = await self._batcher.submit(asked, call.deadline)
        return pb.RecommendResponse(items=map(_item, answer.items), skipped=answer.skipped, model=answer.model)

    async def recommend_batch(
        self, request: pb.RecommendBatchRequest, call: Call
    ) -> AsyncIterator[pb.RecommendBatchResponse]:
        """Recommend to many users, in their order; a few of them wait for the model at a time."""
        check_count("users", len(request.users), self._limits.users)
        if self._batches >= self._most_batches:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"batches being answered: got {self._batches}, wanted fewer than {self._most_batches}; try again later",
            )
        self._batches += 1
        pending: deque[asyncio.Task[pb.RecommendBatchResponse]] = deque()
        try:
            for place, one in enumerate(request.users):
                pending.append(asyncio.create_task(self._one_of_many(place, one, call)))
                if len(pending) == self._window:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            self._batches -= 1
            for task in pending:
                task.cancel()

    async def adapt(self, request: pb.AdaptRequest, _: Call) -> pb.StateResponse:
        """Return a history as a state."""
        served = self._models.served
        return _state(read_history(request.history, served.recommender, self._limits), served)

    async def update(self, request: pb.UpdateRequest, _: Call) -> pb.StateResponse:
        """Return a state with further interactions."""
        before = unpack_state(request.state, self._limits)
        new = read_interactions(request.interactions, "interactions", self._limits)
        check_clear(new, self._models.served.recommender.catalogue)
        check_count("state and interactions together", len(before.interactions) + len(new), self._limits.interactions)
        known = Known(interactions=(*before.interactions, *new), attributes=before.attributes)
        return _state(known, self._models.served)

    async def explain(self, request: pb.ExplainRequest, call: Call) -> pb.ExplainResponse:
        """Say which items of a history speak for an item."""
        served = self._models.served
        item = check_name("item", request.item, self._limits)
        known = read_user(request, served.recommender, self._limits)
        found = await self._batcher.run(lambda: explain(served, known, item), call.deadline)
        return pb.ExplainResponse(
            item_id=found.item_id,
            title=found.title,
            influences=(
                pb.Influence(item_id=one.item_id, title=one.title, influence=one.influence) for one in found.influences
            ),
            sentence=str(found),
            model=served.version,
        )

    async def similar_items(self, request: pb.SimilarItemsRequest, call: Call) -> pb.SimilarItemsResponse:
        """Return the items most like an item."""
        served = self._models.served
        item, k = check_name("item", request.item, self._limits), read_k(request, self._limits.items)
        found = await self._batcher.run(lambda: similar_items(served, item, k), call.deadline)
        return pb.SimilarItemsResponse(items=map(_item, found), model=served.version)

    async def _one_of_many(self, place: int, request: pb.RecommendRequest, call: Call) -> pb.RecommendBatchResponse:
        try:
            await self._place()
            try:
                return pb.RecommendBatchResponse(user=place, response=await self.recommend(request, call))
            finally:
                self._places.release()
        except Exception as error:
            code, message = status_of(error)
            return pb.RecommendBatchResponse(user=place, problem=pb.Problem(code=code.value[0], message=message))

    async def _place(self) -> None:
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1


def _state(known: Known, served: Served) -> pb.StateResponse:
    recommender = served.recommender
    profile = profile_of(known.interactions, recommender.catalogue, recommender.rating_scale, known.attributes)
    return pb.StateResponse(
        state=pack_state(known), known=len(profile.items), skipped=profile.skipped, model=served.version
    )


def _item(one: Recommendation) -> pb.Recommendation:
    return pb.Recommendation(item_id=one.item_id, title=one.title, score=one.score, rating=one.rating)
