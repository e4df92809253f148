"""From a source into the store: plan what changed, fetch it, commit it, keep failures apart.

`session` is a whole sync of several paths, `project` that of one project; `plan` compares a listing with what
is held, `feed` runs the threads that fetch and decode, `commit` puts what comes into the store, `quarantine`
says when a run that failed is tried again, `progress` is what all of them report to.
"""
