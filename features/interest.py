"""What an event says of a user's interest in its item: the one scale of training, retrieval and ranking."""

from features.events import EventType

EVENT_WEIGHTS: dict[EventType, float] = {
    EventType.IMPRESSION: 0.0,
    EventType.CLICK: 1.0,
    EventType.WATCH: 1.0,
    EventType.LIKE: 2.0,
    EventType.UNLIKE: -2.0,
    EventType.SHARE: 3.0,
    EventType.FOLLOW: 2.0,
    EventType.UNFOLLOW: -2.0,
    EventType.HIDE: -20.0,
    EventType.UNHIDE: 20.0,
}
"""Weight of one event; a pair's weight is the sum of its events'. A hide outweighs all that an item can gather."""
MAX_ITEM_WEIGHT = 10.0
"""A pair's weight is clipped to [0, this]; items of weight 0 are none of the user's."""
