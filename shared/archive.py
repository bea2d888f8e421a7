"""The archive: what versions have learned from, kept in the artifact store, so that streams can be trimmed.

It follows the stream and not the versions: each publication adds what is not archived yet, up to the furthest range
end. Ranges of versions overlap after a rollback; the archive holds every entry once all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from shared.archive_files import ArchiveFiles, Span, covered_to, gaps
from shared.manifest import Manifest
from shared.stream import InteractionLog
from shared.types import STREAM_START, DomainId, Interaction, StreamPositions, order_of

log = structlog.get_logger(__name__)

PART_ROWS = 50_000  # of one file: what is in memory at once


class Archive:
    def __init__(self, stream: InteractionLog, files: ArchiveFiles, partitions: int) -> None:
        self._stream = stream
        self._files = files
        self._partitions = partitions

    async def extend(self, domain: DomainId, versions: Sequence[Manifest]) -> int:
        """Writes what the versions' ranges hold and the archive does not; how many interactions that were.

        A crash leaves whole files alone, and the next call goes on behind them.
        """
        written = 0
        for partition, until in furthest(versions).items():
            spans = await asyncio.to_thread(self._files.spans, domain, partition)
            for gap in gaps(spans, until):
                if spans and order_of(gap.until) < order_of(spans[-1].until):
                    log.warning("archive_file_missing", domain=domain, partition=partition, range=gap.file)
                written += await self._fill(domain, partition, gap)
        return written

    async def _fill(self, domain: DomainId, partition: int, gap: Span) -> int:
        written, after, part = 0, gap.after, list[Interaction]()
        async for event in self._stream.entries(domain, partition, gap.after, gap.until):
            if len(part) == PART_ROWS:
                await self._write(domain, partition, Span(after, part[-1].stream_id), part)
                written, after, part = written + len(part), part[-1].stream_id, []
            part.append(event)
        await self._write(domain, partition, Span(after, gap.until), part)
        return written + len(part)

    async def _write(self, domain: DomainId, partition: int, span: Span, events: Sequence[Interaction]) -> None:
        await asyncio.to_thread(self._files.write, domain, partition, span, events, self._partitions)

    async def trim(self, domain: DomainId, kept: Sequence[Manifest]) -> int:
        """Drops the stream's entries that no kept version's range holds or follows; how many that were.

        Only as far as the archive has them without a gap: whatever version the champion goes back to, its window is
        still in the stream.
        """
        trimmed = 0
        for partition, oldest in oldest_starts(kept).items():
            first = await self._stream.first_id(domain, partition)
            if first is None:
                continue
            spans = await asyncio.to_thread(self._files.spans, domain, partition)
            up_to = min(covered_to(spans, first) or STREAM_START, oldest, key=order_of)
            if order_of(first) <= order_of(up_to):
                trimmed += await self._stream.trim(domain, partition, up_to)
        return trimmed


def furthest(versions: Sequence[Manifest]) -> StreamPositions:
    """The last stream id that any of the versions learned from, per partition."""
    ends: dict[int, str] = {}
    for version in versions:
        for partition, until in version.range_end.items():
            ends[partition] = max(ends.get(partition, STREAM_START), until, key=order_of)
    return ends


def oldest_starts(kept: Sequence[Manifest]) -> StreamPositions:
    """Where the earliest range of the versions starts, per partition; one without a range starts with the stream."""
    partitions = {partition for version in kept for partition in version.stream_ranges}
    return {
        partition: min((_start(version, partition) for version in kept), key=order_of)
        for partition in sorted(partitions)
    }


def _start(version: Manifest, partition: int) -> str:
    return version.stream_ranges.get(partition, (STREAM_START, STREAM_START))[0]
