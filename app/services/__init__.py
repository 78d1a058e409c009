"""Use cases: generate, vote, tell the status. No torch, no HTTP."""
