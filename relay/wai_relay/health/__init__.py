"""What is wrong now: one list, which the Overview page, `wai status`, `wai doctor`, `/metrics` and
the notifications share.

`health` puts it together from what each file here says of its subject; `watch` looks all the time.
"""
