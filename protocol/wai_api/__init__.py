"""The admin API's types: what the relay answers and accepts, described once.

The relay checks requests against these structs, encodes answers from them and makes the OpenAPI
document of them; the CLI decodes answers into them; the dashboard's TypeScript types are generated
from their schemas. This package imports nothing of the relay, the node or the CLI.

Times are seconds since 1970. A request refuses unknown fields: a mistyped limit must not pass for
no limit. A reader of an answer ignores fields that it does not know, and a field that is added to
an answer later has a default: a CLI and a relay of different versions understand each other.
"""
