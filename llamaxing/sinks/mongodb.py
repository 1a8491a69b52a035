"""MongoDB, and Azure Cosmos DB for MongoDB: a document an exchange, whose `_id` is its id."""

import asyncio
import importlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, SecretStr, field_validator

from llamaxing.documents import document
from llamaxing.logs import log
from llamaxing.plugins import Surroundings
from llamaxing.sinks import Record

# A server that does not answer within these is away, and the records wait for it; the URI may
# say otherwise.
_WAITS = {"connectTimeoutMS": 5_000, "serverSelectionTimeoutMS": 5_000, "socketTimeoutMS": 10_000}
_THERE = 11000
# What a server says of a document that it will never take: of a wrong type, too deep, too large
# (16: Cosmos DB), not BSON, with names that it does not allow, or against the collection's rules.
_NEVER = frozenset({14, 15, 16, 22, 52, 53, 55, 56, 57, 121, 10334, 17280})
_OTHER_OPTIONS = frozenset({85, 86})

Failures = dict[int, tuple[int, str]]
"""By the place of a document: the server's code, and its words."""


class MongoDB:
    """What is there already stays; but for the beginning of an exchange, known by its missing end
    (`finished`), which makes way for the whole of it.
    """

    batch = 100

    class Options(BaseModel, frozen=True):
        logging_client_mongodb_uri: SecretStr = Field(
            description="The server that `mongodb` writes to: `mongodb://…` or `mongodb+srv://…`."
        )
        logging_client_mongodb_db_name: str = Field(
            default="llamaxing", description="The database there; the collection is `apicalls`."
        )
        logging_client_mongodb_keep_days: float = Field(
            default=0, ge=0, description="Days after which MongoDB deletes a record; 0 never."
        )
        logging_client_mongodb_document_limit: int = Field(
            default=16_000_000,
            ge=1_000_000,
            le=16_000_000,
            description="Bytes of a document; the largest texts of a larger one are cut. Cosmos DB "
            "may want 2000000.",
        )

        @field_validator("logging_client_mongodb_uri")
        @classmethod
        def _uri(cls, value: SecretStr) -> SecretStr:
            if not value.get_secret_value().startswith(("mongodb://", "mongodb+srv://")):
                raise ValueError("has to begin with 'mongodb://' or 'mongodb+srv://'")
            return value

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        self._options = options
        self._client: Any = None
        self._apicalls: Any = None
        self._indexed = False

    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        await self._open()
        documents, refused = await asyncio.to_thread(self._documents, records)
        ids = list(documents)
        failed = await self._insert([documents[id] for id in ids])
        there = [ids[at] for at, (code, _) in failed.items() if code == _THERE]
        refused |= {ids[at]: why for at, (code, why) in failed.items() if code != _THERE}
        failed = await self._complete([documents[id] for id in there])
        return refused | {there[at]: why for at, (_, why) in failed.items()}

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _open(self) -> None:
        if self._client is None:
            self._connect(await asyncio.to_thread(self._library))
        if not self._indexed:
            await self._index()
            self._indexed = True

    def _library(self) -> Any:
        uri = self._options.logging_client_mongodb_uri.get_secret_value()
        if uri.startswith("mongodb+srv://"):
            # It would import this by itself, and on the loop.
            importlib.import_module("dns.asyncresolver")
        return importlib.import_module("pymongo")

    def _connect(self, pymongo: Any) -> None:
        if self._client is not None:
            return  # another task was faster
        uri = self._options.logging_client_mongodb_uri.get_secret_value()
        waits = {name: ms for name, ms in _WAITS.items() if name.lower() not in uri.lower()}
        # Whoever delivers tries again, and Cosmos DB cannot do it by itself.
        self._client = pymongo.AsyncMongoClient(
            uri, appname="llamaxing", retryWrites=False, **waits
        )
        database = self._client[self._options.logging_client_mongodb_db_name]
        self._apicalls = database.get_collection(
            "apicalls", write_concern=pymongo.WriteConcern("majority", j=True)
        )

    async def _index(self) -> None:
        """Without its indexes it serves as well: a server that refuses them is only logged."""
        from pymongo.errors import OperationFailure

        try:
            try:
                await self._create_indexes()
            except OperationFailure as error:
                if error.code not in _OTHER_OPTIONS:
                    raise
                await self._apicalls.drop_index("started_1")
                await self._create_indexes()
        except OperationFailure as error:
            log.warning("MongoDB refuses the indexes of apicalls: code %s", error.code)

    async def _create_indexes(self) -> None:
        from pymongo import IndexModel

        days = self._options.logging_client_mongodb_keep_days
        expiry = {"expireAfterSeconds": round(days * 86_400)} if days else {}
        await self._apicalls.create_indexes(
            [
                IndexModel({"started": 1}, **expiry),
                IndexModel({"identity.id": 1, "started": -1}),
                IndexModel({"model": 1, "started": -1}),
            ]
        )

    async def _insert(self, documents: Sequence[Any]) -> Failures:
        from pymongo.errors import OperationFailure

        if not documents:
            return {}
        try:
            return await _failures(self._apicalls.insert_many(documents, ordered=False))
        except OperationFailure as error:
            if error.code not in _NEVER:
                raise
            if len(documents) == 1:
                return {0: (error.code, _words(error.details or {}))}
            # One of them made it refuse all: which one, it tells when asked for each.
            each = [await self._insert([document]) for document in documents]
            return {at: failed[0] for at, failed in enumerate(each) if failed}

    async def _complete(self, documents: Sequence[Any]) -> Failures:
        """Puts these where the beginning of their exchange stands."""
        from pymongo import ReplaceOne

        if not documents:
            return {}
        begun = [{"_id": it["_id"], "finished": None} for it in documents]
        writes = [ReplaceOne(*both) for both in zip(begun, documents, strict=True)]
        return await _failures(self._apicalls.bulk_write(writes, ordered=False))

    def _documents(self, records: Sequence[Record]) -> tuple[dict[str, Any], dict[str, str]]:
        from bson.errors import BSONError

        documents: dict[str, Any] = {}
        refused: dict[str, str] = {}
        limit = self._options.logging_client_mongodb_document_limit
        # The whole of an exchange after its beginning, where both are there.
        for record in sorted(records, key=lambda record: bool(record.get("finished"))):
            try:
                documents[record["id"]] = document(record, limit)
            except (BSONError, ValueError) as error:
                refused[record["id"]] = f"it cannot be written as BSON: {error}"
            except (KeyError, TypeError, AttributeError) as error:
                # Of another version, or by another hand: to try it again would mend nothing.
                refused[record["id"]] = f"it is not made as a record is: {error!r}"
        return documents, refused


PLUGIN = MongoDB


async def _failures(writing: Awaitable[object]) -> Failures:
    """What the server did not take of a bulk, and will not. Raises for every other failure."""
    from pymongo.errors import BulkWriteError

    try:
        await writing
    except BulkWriteError as error:
        failed = {it["index"]: (it["code"], _words(it)) for it in error.details["writeErrors"]}
        codes = {code for code, _ in failed.values()}
        if error.details["writeConcernErrors"] or codes - _NEVER - {_THERE}:
            raise
        return failed
    return {}


def _words(error: Mapping[str, Any]) -> str:
    return f"{error.get('errmsg', 'refused')} (code {error.get('code')})"
