"""What differs by architecture: how a prompt is encoded, what one forward is, how latents become pixels."""
