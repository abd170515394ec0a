"""HTTP/JSON on httpx and httpcore; how a call looks as HTTP is shared with the server."""
