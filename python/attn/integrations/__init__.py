"""Bridges to other libraries. Each is imported by name and only then needs its library."""
