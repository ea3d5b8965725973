"""Releases over HTTP: one ASGI application over the reader, its limits, its page, and uvicorn as its host."""

from __future__ import annotations

from .application import application
from .config import ServeConfig
from .host import add_options, answering_address, parse_settings, serve, settings_of

__all__ = ["ServeConfig", "add_options", "answering_address", "application", "parse_settings", "serve", "settings_of"]
