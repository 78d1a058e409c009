"""HTTP in; JSON, HTML and server-sent events out. No torch, no SQL."""
