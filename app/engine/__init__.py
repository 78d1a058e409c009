"""The engine: queue, step-level batched denoising, previews, loading. torch and diffusers, no HTTP, no SQL.

`request` and `batch_scheduler` import no torch, so that the port can be bound before torch is imported.
"""
