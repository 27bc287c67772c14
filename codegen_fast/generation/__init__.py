"""Text generation: the knobs, their configuration, the checks of a call, and the loop."""
from .config import GenerationConfig
from .request import Request, prepare, require_memory
from .loop import TokenStream, run

__all__ = ["GenerationConfig", "Request", "TokenStream", "prepare", "require_memory", "run"]
