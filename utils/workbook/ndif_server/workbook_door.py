"""Refuse what is too large or comes without the key, in a sentence, before NDIF sees it."""

import json


def door(app, limit: int, key: str):
    """An ASGI application before `app`.

    Args:
        limit: bytes that a request may hold.
        key: what the header `ndif-api-key` must hold; nothing, and anybody may.
    """

    async def guarded(scope, receive, send):
        if scope["type"] != "http" or scope["path"] != "/request":
            return await app(scope, receive, send)
        headers = dict(scope["headers"])
        size = int(headers.get(b"content-length", 0))
        if key and headers.get(b"ndif-api-key", b"").decode(errors="replace") != key:
            status, said = 403, "Invalid API key."
        elif size > limit:
            status = 413
            said = f"The request holds {size / 1e6:.1f} MB, and this server takes {limit / 1e6:.1f} MB at once."
        else:
            return await app(scope, receive, send)
        while (await receive()).get("more_body"):  # who is still sending would not read the answer
            pass
        body = json.dumps({"detail": said}).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    return guarded
