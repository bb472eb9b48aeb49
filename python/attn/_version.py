"""The package's version, read by CMake and pyproject.toml too."""

__version__ = "0.1.0"
