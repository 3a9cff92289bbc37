"""The version, in one place; the package metadata is built from pyproject.toml and a test compares both."""

VERSION = "0.1.0"
