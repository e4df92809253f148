"""W&B's own API on top of a mirror.

`app` takes requests, `execution` and `resolvers` answer GraphQL, `home` changes things, `look` finds them.
"""
