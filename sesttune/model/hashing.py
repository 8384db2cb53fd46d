"""Random draws that are functions of their inputs: hashes and keyed permutations."""

import numpy as np

ROUNDS = 6
_GOLDEN = 0x9E3779B9


def splitmix64(value: np.ndarray) -> np.ndarray:
    """The SplitMix64 finaliser (Steele, Lea and Flood, 2014) on uint64."""
    with np.errstate(over="ignore"):
        z = value + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def shuffled(index: np.ndarray, sizes: np.ndarray, row: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each `index` goes in its row's keyed permutation of 0 .. size - 1.

    `index` and `row` are int64 [draws], index < sizes[row] < 2^31; `sizes` int64 and `keys`
    uint64 are [rows]. Indices 0 .. m - 1 of a row are m draws without replacement. A
    generalised Feistel network with cycle walking (Black and Rogaway, 2002): memory and
    time per draw, not per element of the permutation.
    """
    # left < a and right < b with a * b barely above the size, so few draws walk on.
    a = np.ceil(np.sqrt(sizes)).astype(np.uint32)
    b = -(-sizes // np.maximum(a, 1)).astype(np.uint32)
    low, high = (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32), (keys >> np.uint64(32))
    parts = (a[row], b[row], low[row], high.astype(np.uint32)[row])
    out = _feistel(index.astype(np.uint32), *parts)
    size = sizes[row]
    outside = np.flatnonzero(out >= size)
    while len(outside):
        out[outside] = _feistel(out[outside], *(part[outside] for part in parts))
        outside = outside[out[outside] >= size[outside]]
    return out.astype(np.int64)


def _feistel(
    value: np.ndarray, a: np.ndarray, b: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    left = value // b
    right = value - left * b
    for number in range(ROUNDS):
        salt = np.uint32((number + 1) * _GOLDEN & 0xFFFFFFFF)
        if number % 2:
            right = _add(right, _mix((left ^ high) + salt), b)
        else:
            left = _add(left, _mix((right ^ low) + salt), a)
    return left * b + right


def _add(value: np.ndarray, noise: np.ndarray, modulus: np.ndarray) -> np.ndarray:
    """(value + noise scaled to the modulus) mod modulus; modulus < 2^16."""
    moved = value + (((noise >> np.uint32(16)) * modulus) >> np.uint32(16))
    return np.where(moved >= modulus, moved - modulus, moved)


def _mix(h: np.ndarray) -> np.ndarray:
    """MurmurHash3's 32-bit finaliser (Appleby, 2011)."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))
