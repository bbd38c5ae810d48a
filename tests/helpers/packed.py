"""Packed matrices in previous formats."""

import numpy as np

INT8 = 2  # value type in the header


def in_version(blob: np.ndarray, version: int) -> np.ndarray:
    """A packed matrix as earlier releases stored it; its blocks have at most 256 columns.

    Version 3 has columns instead of steps, and quads, with their padding, of 4x1 codes alone; version 2 has no quads.
    """
    old = blob.copy()
    rows, columns, block_rows, kind, block_columns, group_rows = (int(x) for x in old[16:40].view(np.uint32))
    entries, groups_at, counts_at, _, indices_at, values_at = (int(x) for x in old[56:104].view(np.uint64))
    per_entry, together = (2, 2) if block_rows == 1 else (1, 4)  # indices; rows of a unit
    value_bytes = (4, 2, 1)[kind]
    stays_in_quads = kind == INT8 and block_rows == 4 and version == 3
    blocks = -(-columns // block_columns)
    units = [blocks * -(-min(group_rows, rows - first) // together) for first in range(0, rows, group_rows)]
    counts = old[counts_at : counts_at + 2 * sum(units)].view(np.uint16)
    indices, values = (
        old[indices_at : indices_at + entries],
        old[values_at : values_at + entries * block_rows * value_bytes],
    )
    index_parts, value_parts, firsts, first = [], [], [], 0
    for unit, count in enumerate(counts.tolist()):
        if unit in np.cumsum([0, *units]):
            firsts.append(sum(len(part) for part in index_parts))
        last = first + count * per_entry
        index = _by_entry(indices[first:last], per_entry, 1, kind)
        value = _by_entry(
            values[first * block_rows * value_bytes : last * block_rows * value_bytes], together, value_bytes, kind
        )
        column = np.cumsum(index, axis=0, dtype=np.uint8)
        while count and kind == INT8 and not stays_in_quads and not value[count - 1].any():
            count -= 1
        value = value[:count]
        if stays_in_quads:
            value = value.reshape(-1, 4, together, 1).transpose(0, 2, 1, 3)
        index_parts.append(column[:count].ravel())
        value_parts.append(value.ravel())
        counts[unit], first = count, last
    old[8] = version
    kept = sum(len(part) for part in index_parts)
    old[56:64] = np.frombuffer(np.uint64(kept).tobytes(), np.uint8)
    old[groups_at : groups_at + 8 * len(firsts) + 8].view(np.uint64)[:] = [*firsts, kept]
    for section, parts in ((indices, index_parts), (values, value_parts)):
        section[:] = np.pad(np.concatenate(parts), (0, len(section) - sum(map(len, parts))))
    return with_checksum(old)


def _by_entry(data: np.ndarray, rows: int, size: int, kind: int) -> np.ndarray:
    """[entries, rows, bytes] of what is in quads, if it is of codes."""
    if kind != INT8:
        return data.reshape(-1, rows, size)
    return data.reshape(-1, rows, 4, size).transpose(0, 2, 1, 3).reshape(-1, rows, size)


def with_checksum(blob: np.ndarray) -> np.ndarray:
    """Writes the checksum of `native/format.cpp` into a packed matrix."""
    blob[120:128] = 0
    words, mask = blob[: len(blob) // 8 * 8].view(np.uint64).tolist(), 2**64 - 1
    total = 0xCBF29CE484222325 ^ len(blob)
    for word in words:
        total = (total ^ word) * 0x9E3779B97F4A7C15 & mask
        total ^= total >> 29
    for byte in blob[len(blob) // 8 * 8 :].tolist():
        total = (total ^ byte) * 0x9E3779B97F4A7C15 & mask
    blob[120:128] = np.frombuffer(np.uint64(total ^ total >> 32).tobytes(), np.uint8)
    return blob
