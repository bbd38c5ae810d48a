"""Packed matrices of 4x1 blocks in previous formats."""

import numpy as np


def as_version_3(blob: np.ndarray) -> np.ndarray:
    """A matrix with columns where there are steps now; its blocks have at most 256 columns."""
    old = blob.copy()
    _, counts_at, _, indices_at, _ = (int(x) for x in old[64:104].view(np.uint64))
    first = indices_at
    for count in old[counts_at : counts_at + 2 * sum(_units(old))].view(np.uint16).tolist():
        old[first : first + count] = np.cumsum(old[first : first + count])
        first += count
    old[8] = 3
    return with_checksum(old)


def _units(blob: np.ndarray) -> list[int]:
    """Units of each group of rows, in all blocks of columns."""
    rows, columns, _, _, block_columns, group_rows = (int(x) for x in blob[16:40].view(np.uint32))
    blocks = -(-columns // block_columns)
    return [blocks * -(-min(group_rows, rows - first) // 4) for first in range(0, rows, group_rows)]


def as_version_2(blob: np.ndarray) -> np.ndarray:
    """A matrix of codes, moreover without padding, and with four rows' values of each entry in turn."""
    old = as_version_3(blob)
    entries, groups_at, counts_at, _, indices_at, values_at = (int(x) for x in old[56:104].view(np.uint64))
    units = _units(old)
    counts = old[counts_at : counts_at + 2 * sum(units)].view(np.uint16)
    indices = old[indices_at : indices_at + entries]
    values = old[values_at : values_at + 4 * entries].reshape(-1, 4, 4).transpose(0, 2, 1).reshape(-1, 4)
    kept, firsts, first = [], [], 0
    for unit, count in enumerate(counts.tolist()):
        if unit in np.cumsum([0, *units]):
            firsts.append(len(kept))
        while count and not values[first + count - 1].any():
            count -= 1
        kept += range(first, first + count)
        first, counts[unit] = first + int(counts[unit]), count
    old[8] = 2
    old[56:64] = np.frombuffer(np.uint64(len(kept)).tobytes(), np.uint8)
    old[groups_at : groups_at + 8 * len(firsts) + 8].view(np.uint64)[:] = [*firsts, len(kept)]
    for at, found in ((indices_at, indices[kept]), (values_at, values[kept].ravel())):
        old[at : at + len(found)], old[at + len(found) : at + len(found) * entries // len(kept)] = found, 0
    return with_checksum(old)


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
