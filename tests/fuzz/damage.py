"""Strategies of damaged inputs: valid data with values, keys and bytes replaced by what users and attackers write."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from toolkit.core.errors import UserError


def refused_or(use: Callable[[], object]) -> None:
    """Calls the product, which may raise nothing but a UserError with a message."""
    try:
        use()
    except UserError as error:
        if not str(error).strip():
            raise AssertionError("a UserError without a message") from error


LONG = "A" * 5000
TEXTS = (
    *("", " ", "\n", "\x00", "\t", "~", "..", "/", ".", "a/b@", "a/b", LONG, "a/" * 2500, "~nobody/x", "-", "--help"),
    *("hub:", "hub:a:b:c", "hub:a/b@c::train[:10%]", "hub:../x:y:train", "package:", "package:../..", "package:pip/x"),
    *("(", "[", "{", "a{99999}", "(?P<x>", "%s%n", "<b>&amp;", "${HOME}", "http://example.com/x", "::", "a:b", "<<"),
    *("1e400", "0x10", "007", "1_000", "1e-4", "2:4", "0:4", "4:2", "tile_pattern_0x1", "tile_pattern_9999999999x1"),
    *("null", "true", "yes", "NaN", "inf", "*x", "&x", "!Pruner", "!!python/name:os.system", "é", "\ufeff", "\u202e"),
)
NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**32, 2**63, 2**64, 10**22, 10**400, 0.0, -0.0, 0.5, 1.0, 1e-320, 1e25, 1e308)
NUMBERS += (float("inf"), float("-inf"), float("nan"))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(TEXTS), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=5,
)


def spots(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key and list item."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from spots(value, (*path, key))


@st.composite
def damaged(draw: st.DrawFn, whole: Any, most: int = 3) -> Any:
    """Data with up to `most` values replaced, removed, copied elsewhere, or put under another key."""
    data = copy.deepcopy(whole)
    for _ in range(draw(st.sampled_from((1, 1, 1, 1, most)))):
        known = list(spots(data))
        if not known:
            break
        path = draw(st.sampled_from(known))
        section = data
        for key in path[:-1]:
            section = section[key]
        how = draw(st.sampled_from(("replace", "remove", "add", "rename", "copy")))
        if how == "remove":
            del section[path[-1]]
        elif how == "add" and isinstance(section, dict):
            section[draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=8)))] = draw(VALUES)
        elif how == "rename" and isinstance(section, dict):
            section[draw(st.sampled_from([p[-1] for p in known if isinstance(p[-1], str)]))] = section.pop(path[-1])
        elif how == "copy":
            other: Any = whole
            for key in draw(st.sampled_from(list(spots(whole)))):
                other = other[key]
            section[path[-1]] = copy.deepcopy(other)
        else:
            section[path[-1]] = draw(VALUES)
    return data


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes, most: int = 4) -> bytes:
    """Bytes with up to `most` pieces replaced, removed, repeated or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.sampled_from((1, 1, most)))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.sampled_from((0, 1, 2, 4, 8, 40))))
        how = draw(st.sampled_from(("replace", "remove", "repeat", "cut")))
        if how == "cut":
            del content[start:]
        elif how == "repeat":
            content[stop:stop] = content[start:stop]
        else:
            content[start:stop] = draw(st.binary(max_size=8)) if how == "replace" else b""
    return bytes(content)
