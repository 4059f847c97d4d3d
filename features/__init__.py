"""The contract every other room meets at: events, items, feature specs, tiles, names and the online store.

`events`, `items`, `slates`, `specs`, `tiles` and `names` import the standard library only, because every
environment reads them. Feast, Redis, Delta and Great Expectations live in files of their own.
"""
