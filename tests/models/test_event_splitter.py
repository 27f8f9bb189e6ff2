"""Events of a stream are found wherever the network cuts it."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from afnio.models._raw import EventSplitter, event_json, is_done, split_events

TEXT = st.text(alphabet="ab{}: \u00e9", max_size=8)
EVENT = st.builds(
    lambda lines, end: "".join(f"data: {line}{end}" for line in lines) + end,
    st.lists(TEXT, min_size=1, max_size=3),
    st.sampled_from(["\n", "\r\n"]),
)


@given(
    st.lists(EVENT, max_size=6), st.text(alphabet="x", max_size=3), st.lists(st.integers(0, 200), max_size=8)
)
def test_cuts_do_not_matter(events: list[str], rest: str, cuts: list[int]) -> None:
    body = "".join(events).encode() + rest.encode()
    points = sorted({0, *(min(cut, len(body)) for cut in cuts), len(body)})
    splitter = EventSplitter()
    found = [event for start, end in itertools.pairwise(points) for event in splitter.feed(body[start:end])]
    left = splitter.rest()
    assert body == b"".join(found) + left
    whole = list(split_events(body)) if not body.lstrip().startswith(b"{") else [*found, left]
    assert [event for event in whole if event] == [event for event in (*found, left) if event]


def test_lines_of_json() -> None:
    assert [b'{"a":1}\n', b'{"b":2}'] == list(split_events(b'{"a":1}\n{"b":2}'))


def test_what_is_in_an_event() -> None:
    assert {"a": 1} == event_json(b'event: x\ndata: {"a":\ndata: 1}\n\n')
    assert event_json(b": keep-alive\n\n") is None
    assert event_json(b"data: [DONE]\n\n") is None
    assert is_done(b"data: [DONE]\n\n")
    assert event_json(b"data: {broken\n\n") is None
