"""The configuration: one dataclass tree, its loader, and the YAML that differs from it."""
