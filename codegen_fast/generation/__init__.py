"""Text generation: the knobs, their configuration, the checks of a call, and the loops that run it."""
from .config import GenerationConfig

__all__ = ["GenerationConfig"]
