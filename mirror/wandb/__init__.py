"""W&B's wire: GraphQL over HTTP, read by `mirror sync`. The only package that knows GraphQL names.

`budget` and `transport` move bytes, `client` asks queries and leaves out what a server does not know,
`listing`, `documents` and `rows` are the three kinds of questions, `ranges` sizes the pages of a history.
"""
