"""Who is told when something is wrong, and when it is over: by a webhook, ntfy or e-mail.

`rules` decides what is told and when, and is pure; `notifier` carries it out; each kind of receiver
has a file.
"""
