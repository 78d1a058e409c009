"""What can be generated with: one TOML file per set, a typed loader, and what a model's vocabulary knows."""
